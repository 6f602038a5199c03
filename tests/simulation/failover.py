"""Failovers in a simulated cluster: forced ones, with the old voters fenced or vouched for, and planned moves.

They befall some of the seeds that have replicas. The coordinator may be killed at any moment of it; then, as an
operator would, somebody repeats it. In some seeds a second operator, who knows nothing of the first, starts another one
at almost the same time. At the end whatever broke off is finished.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from cluster.history import CheckFailed, Committed, Rejected, Seen, Unknown
from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.node.failover.plan import Plan, Wishes
from kvnode.node.node import Node
from tests.simulation.clock import EPOCH_MS
from tests.simulation.cluster import Cluster, Server
from tests.simulation.failover_observer import EpochObserver
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nemesis import Nemesis

REPLICAS = (0, 0, 0, 1, 2, 2)  # in another region
SHARE = 0.5  # of the seeds with replicas
EXCLUSIVE_MS = 1_500  # so that a repeat comes within the seed's few seconds
ATTEMPT_S = 12.0
RIVALS_SHARE = 0.5  # of the seeds with failovers
RIVAL_WITHIN_S = (0.0, 0.01, 0.1, 0.5)  # of the first one; drawn evenly, then a moment up to it
MEND_S = 1.0
# Of a write: what stands in the database is why. No code is among them that a request alone brings about, nor one that
# says that nobody has judged it.
_JUDGED_ON_DATA = frozenset(
    ("SUM_NON_U64_VALUE", "SUM_OUT_OF_RANGE", "SUM_STORED_BAD_V8", "SUM_TYPE_MISMATCH", "SUM_UNSUPPORTED_TYPE")
)


def draw_replicas(seed: int) -> int:
    """How many replicas a seed has; drawn apart, so that seeds without them stay as they were."""
    return random.Random(f"replicas {seed}").choice(REPLICAS)


def draws_failovers(seed: int, replicas_count: int) -> bool:
    """Whether a seed has failovers; drawn apart, so that other seeds stay as they were."""
    return replicas_count > 0 and random.Random(f"failover {seed}").random() < SHARE


def draws_rivals(seed: int) -> bool:
    """Whether failovers of a seed that has them come in pairs; drawn apart, so that other seeds stay as they were."""
    return random.Random(f"rivals {seed}").random() < RIVALS_SHARE


@contextmanager
def bounds_in_force(fails_over: bool) -> Iterator[None]:
    """The bounds of a seed with failovers."""
    with patch.object(limits, "FAILOVER_EXCLUSIVE_MS", EXCLUSIVE_MS) if fails_over else nullcontext():
        yield


class Failovers:
    """What befalls the primary region of one seed."""

    def __init__(
        self, seed: int, loop: SimulatedLoop, cluster: Cluster, nemesis: Nemesis, observer: EpochObserver
    ) -> None:
        self._loop = loop
        self._cluster = cluster
        self._observer = observer
        observer.now_ms = lambda: EPOCH_MS + loop.time() * 1_000
        self._done = nemesis.done
        self._random = random.Random(f"failovers {seed}")
        self._mending: asyncio.Task[None] | None = None
        self._rivals = random.Random(f"rivals' ways {seed}") if draws_rivals(seed) else None
        self._rivalry: asyncio.Task[None] | None = None
        nemesis.leave_out("members")  # whom to promote is known: the replicas of the beginning

    async def run(self, chaos_s: float) -> None:
        """One to three of them, somewhere in the chaos."""
        draw = self._random
        kinds: list[Callable[[], Awaitable[None]]] = [self._move, self._fence, self._lose_region]
        for _ in range(draw.choice((1, 1, 2, 3))):
            await asyncio.sleep(draw.uniform(0.5, chaos_s / 2))
            kind = draw.choice(kinds)
            self._done.append(f"{self._loop.time():.2f} {kind.__name__}")
            await kind()

    def begin_to_mend(self) -> None:
        """From the healing on: what broke off is repeated until somebody leads."""
        self._rivals = None
        self._mending = self._loop.create_task(self._mend())

    async def _mend(self) -> None:
        while True:
            await asyncio.sleep(MEND_S)
            if self._cluster.leader() is None or not self._serves(self._cluster.leader()):
                await asyncio.sleep(4 * MEND_S)  # an election may be on
                if not self._serves(self._cluster.leader()):
                    region = self._random.choice(self._regions())
                    if not await self._force(region, Wishes) and region == self._primary():
                        await self._move_to(region)  # for those who have promised what never began

    def _serves(self, server: Server | None) -> bool:
        node = None if server is None else server.node
        latest = max((s.node.epochs.latest for s in self._cluster.serving if s.node is not None), default=0)
        return node is not None and not node.raft.sealed and node.raft.own_term_committed and node.epoch == latest

    def _regions(self) -> list[str]:
        return sorted({server.member.region for server in self._cluster.servers.values()})

    def _primary(self) -> str:
        leader = self._cluster.leader()
        return "r1" if leader is None or leader.node is None else leader.node.member.region

    def _other(self) -> str:
        primary = self._primary()
        return next(region for region in self._regions() if region != primary)

    async def _move(self) -> None:
        await self._move_to(self._other())

    async def _move_to(self, region: str) -> None:
        await self._coordinate(region, lambda node: node.coordinator.move(region))

    async def _fence(self) -> None:
        """The old primary may live; a majority of its voters is fenced, or nothing happens."""
        await self._force(self._other(), Wishes)

    async def _lose_region(self) -> None:
        """Everybody in the primary region falls; an operator vouches for it; then they come back."""
        region, lost = self._other(), self._primary()
        fallen = [server for server in self._cluster.serving if server.member.region == lost]
        hurt = self._random.choice((self._cluster.kill, self._cluster.crash))
        for server in fallen:
            hurt(server)
        for _ in range(3):
            if await self._force(region, lambda to, force: Wishes(to, force=force, primary_is_down=True)):
                break
            await asyncio.sleep(self._random.uniform(0.1, 2.0))
        await asyncio.sleep(self._random.uniform(0.0, 4.0))
        for server in fallen:
            if not server.running:
                self._cluster.start(server)

    async def _force(self, region: str, wishes: Callable[..., Wishes]) -> bool:
        wanted = wishes(region, force=True)
        return await self._coordinate(region, self._executing(wanted), vouches=wanted.primary_is_down)

    def _executing(self, wanted: Wishes) -> Callable[[Node], Awaitable[Any]]:
        """A forced failover; what an operator vouches for is what is then carried out."""

        async def execute(node: Node) -> None:
            coordinator = node.coordinator
            carry_out = coordinator._carry_out

            async def vouched_for(plan: Plan, wishes: Wishes) -> Plan:
                if plan.unfenced and wishes.primary_is_down:
                    self._observer.vouched.add(plan.epoch)
                return await carry_out(plan, wishes)

            with patch.object(coordinator, "_carry_out", vouched_for):
                await coordinator.prepare(wanted)
                await coordinator.execute(wanted)

        return execute

    async def _compete(self, draw: random.Random, vouches: bool) -> None:
        """Another operator, to any region, in any of the ways; of a loss that all know of, each of them may vouch."""
        await asyncio.sleep(draw.random() * draw.choice(RIVAL_WITHIN_S))
        region = draw.choice(self._regions())
        if draw.random() < 0.3:
            await self._attempt(region, lambda node: node.coordinator.move(region))
        else:
            wanted = Wishes(region, force=True, primary_is_down=vouches and region != self._primary())
            await self._attempt(region, self._executing(wanted))

    async def _coordinate(self, region: str, work: Callable[[Node], Awaitable[Any]], *, vouches: bool = False) -> bool:
        """Let a node of the region coordinate, and in some seeds another one beside it."""
        if self._rivals is not None and (self._rivalry is None or self._rivalry.done()):
            self._rivalry = self._loop.create_task(self._compete(self._rivals, vouches))
        return await self._attempt(region, work)

    async def _attempt(self, region: str, work: Callable[[Node], Awaitable[Any]]) -> bool:
        """Let a node of the region coordinate; before all is healed it sometimes does not live to see the end."""
        candidates = [server for server in self._cluster.serving if server.member.region == region]
        if not candidates:
            return False
        server = self._random.choice(candidates)
        done: asyncio.Future[str] = self._loop.create_future()

        async def run() -> None:
            try:
                assert server.node is not None
                await work(server.node)
            except KvError as error:
                result = error.code
            else:
                result = "done"
            if not done.done():
                done.set_result(result)

        server.process.spawn(run(), "failover")
        dies = self._random.random() < 0.25
        if dies and self._mending is None:  # all is healed then
            await asyncio.sleep(self._random.choice((0.002, 0.02, 0.2)) * self._random.random())
            if server.serving:
                self._cluster.crash(server)
                await asyncio.sleep(self._random.uniform(0.05, 1.0))
                if not server.running:
                    self._cluster.start(server)
            return False
        try:
            result = await asyncio.wait_for(done, ATTEMPT_S)
        except TimeoutError:
            result = "no end"
        self._observer.note(f"failover to {region}: {result};")
        self._done.append(f"{self._loop.time():.2f} failover to {region}: {result}")
        return result == "done"

    # At the end.

    def close(self) -> None:
        """Nothing more is to be mended."""
        for task in (self._mending, self._rivalry):
            if task is not None:
                task.cancel()

    def remaining(self, records: Iterable[Any]) -> list[Any]:
        """What clients recorded of the history that goes on: what a failover has lost, and said so, is left out.

        A refusal has no versionstamp. Those of the time around a loss may have been judged on what was lost. A write
        that was lost may be applied after all, once and later, where a gateway still had a copy of it on its way.
        """
        kept: list[Any] = []
        for record in records:
            if not self._was_lost(record.operation):
                kept.append(record)
            elif record.is_write and (record.client_id, record.sequence) in self._observer.outcomes:
                again = replace(record.operation, outcome=Unknown(), completed_ms=None)
                kept.append(replace(record, operation=again))
        return kept

    def _was_lost(self, operation: Any) -> bool:
        outcome = operation.outcome
        if isinstance(outcome, Committed | Seen):
            return self._observer.is_lost(outcome.versionstamp)
        if operation.completed_ms is None or not is_judged_on_data(outcome):
            return False
        lost = self._observer.lost_between_ms
        return any(operation.completed_ms >= begin and operation.invoked_ms <= end for begin, end in lost)


def is_judged_on_data(outcome: Any) -> bool:
    """Whether it is a refusal that another history might not have given, since another row may stand there."""
    return isinstance(outcome, CheckFailed) or (isinstance(outcome, Rejected) and outcome.code in _JUDGED_ON_DATA)
