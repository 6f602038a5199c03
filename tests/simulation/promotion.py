"""Automatic promotions in a simulated cluster: what befalls the regions, and who answers in which epoch.

They befall some of the seeds without replicas, which then have three regions, of three voters, two and two nodes, and a
short primary lease that is in force from the beginning. Nobody coordinates anything here: the nodes do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kvnode.base import limits
from kvnode.codec.epoch import epoch_of_term
from kvnode.node.calls import Call
from kvnode.node.failover.coordinator import Coordinator
from kvnode.node.gateway import Gateway
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.cluster import Cluster, Server
from tests.simulation.failover import Failovers, draw_replicas
from tests.simulation.failover_observer import EpochObserver
from tests.simulation.loop import SimulatedLoop, current_process
from tests.simulation.nemesis import Nemesis
from tests.simulation.queues import has_queues

SHARE = 0.12  # of the seeds that have neither replicas nor queues
LEASES_MS = (1_500, 3_000)
REPLICAS_COUNT = 2  # in each other region
LAYOUT = "abc"  # of the voters
MAX_OTHER_TROUBLES_COUNT = 1  # kinds
BALLOT_INTERVAL_MS = 200
BALLOT_TURN_MS = 800
RENEWAL_AFTER_MS = 4_000


def draws_promotions(seed: int) -> bool:
    """Whether a seed has automatic promotions; drawn apart, so that other seeds stay as they were."""
    return not has_queues(seed) and not draw_replicas(seed) and random.Random(f"promotions {seed}").random() < SHARE


def draw_lease_ms(seed: int) -> int:
    """How long its primary lease is."""
    return random.Random(f"lease {seed}").choice(LEASES_MS)


@contextmanager
def promotion_bounds() -> Iterator[None]:
    """The bounds of a seed with promotions: it lasts a few seconds only."""
    with (
        patch.object(limits, "BALLOT_INTERVAL_MS", BALLOT_INTERVAL_MS),
        patch.object(limits, "BALLOT_TURN_MS", BALLOT_TURN_MS),
        patch.object(limits, "RENEWAL_AFTER_MS", RENEWAL_AFTER_MS),
    ):
        yield


@contextmanager
def answers_watched(observer: EpochObserver, nodes: Callable[[], list[Server]]) -> Iterator[None]:
    """Tell the observer of every strong answer at the node that gives it, and of every ballot that is held."""
    answer, answered, carry_out = Call.answer, Gateway._answered, Coordinator._carry_out
    relaying = False

    def observed(self: Call, result: kv_pb2.OperationResult) -> None:
        is_new = not self.done and not relaying
        if is_new and (result.HasField("write") or (result.HasField("read") and result.read.strongly_consistent)):
            process = current_process()
            server = next((server for server in nodes() if server.process is process), None)
            if server is not None and server.node is not None:
                node = server.node
                observer.answered(node.node_id, max(node.epoch, epoch_of_term(node.raft.term)))
        answer(self, result)

    def relayed(self: Gateway, *arguments: Any) -> None:
        nonlocal relaying
        relaying = True
        try:
            answered(self, *arguments)
        finally:
            relaying = False

    async def carried_out(self: Coordinator, plan: Any, wishes: Any) -> Any:
        if wishes.automatic:
            observer.balloted.add(plan.epoch)
            observer.vouched.add(plan.epoch)
        return await carry_out(self, plan, wishes)

    with (
        patch.object(Call, "answer", observed),
        patch.object(Gateway, "_answered", relayed),
        patch.object(Coordinator, "_carry_out", carried_out),
    ):
        yield


class Promotions(Failovers):
    """What befalls the regions of one seed; the nodes see to the rest."""

    def __init__(
        self, seed: int, loop: SimulatedLoop, cluster: Cluster, nemesis: Nemesis, observer: EpochObserver
    ) -> None:
        super().__init__(seed, loop, cluster, nemesis, observer)
        self._rivals = None
        for kind in nemesis.kinds[MAX_OTHER_TROUBLES_COUNT:]:
            nemesis.leave_out(kind)  # with a region gone nobody else may be missing: too much trouble is none

    async def run(self, chaos_s: float) -> None:
        """One to three disasters, somewhere in the chaos."""
        draw = self._random
        kinds: list[Callable[[], Awaitable[None]]] = [
            *(self._lose, self._cut_off, self._cut_off, self._freeze, self._cut_and_restart, self._cut_and_restart),
            *(self._restart_others, self._move),
        ]
        await asyncio.sleep(draw.uniform(1.0, 2.0))
        for _ in range(draw.choice((1, 2, 2))):
            await asyncio.sleep(draw.uniform(0.0, chaos_s / 4))
            kind = draw.choice(kinds)
            self._done.append(f"{self._loop.time():.2f} {kind.__name__}")
            await kind()

    def begin_to_mend(self) -> None:
        """Nobody mends anything: the nodes do."""

    def close(self) -> None:
        """Note what was promoted."""
        begun = sorted(self._observer.balloted & self._observer.begun)
        self._done.append(f"{self._loop.time():.2f} promoted by ballot: {begun}")

    def _in(self, region: str) -> list[Server]:
        return [server for server in self._cluster.serving if server.member.region == region]

    def _lease_s(self) -> float:
        return self._cluster.lease_ms / 1_000

    async def _lose(self) -> None:
        """The whole primary region falls, and comes back."""
        fallen = self._in(self._primary())
        hurt = self._random.choice((self._cluster.kill, self._cluster.crash))
        for server in fallen:
            hurt(server)
        await asyncio.sleep(self._lease_s() + self._random.uniform(0.5, 5.0))
        self._revive(fallen)

    async def _cut_off(self) -> None:
        """The primary region is cut off from both others, or one of its nodes is, or one way only."""
        own = {server.member.node_id for server in self._in(self._primary())}
        await self._cut(own, both_ways=self._random.random() < 0.7)

    async def _cut(self, own: set[int], *, both_ways: bool) -> None:
        others = set(self._cluster.servers) - own
        pairs = {pair for a in own for b in others for pair in (((a, b), (b, a)) if both_ways else ((a, b),))}
        self._cluster.network.cuts |= pairs
        await asyncio.sleep(self._lease_s() * self._random.uniform(0.8, 1.2) + self._random.uniform(0.5, 6.0))
        self._cluster.network.cuts -= pairs

    async def _freeze(self) -> None:
        """The primary region stands still, and believes for a moment that nothing was."""
        frozen = [server.process for server in self._in(self._primary()) if not server.process.frozen]
        for process in frozen:
            process.freeze()
        await asyncio.sleep(self._lease_s() + self._random.uniform(0.0, 5.0))
        for process in frozen:
            await asyncio.sleep(self._random.uniform(0.0, 0.05))
            if not process.dead and process.frozen:
                process.thaw()

    async def _restart_others(self) -> None:
        """Everybody who has granted the lease starts anew, and must not forget that."""
        others = [server for server in self._cluster.serving if server.member.region != self._primary()]
        for server in others:
            self._cluster.crash(server)
        await asyncio.sleep(self._random.uniform(0.05, 0.3))
        self._revive(others)

    async def _cut_and_restart(self) -> None:
        """The same, while the primary is cut off and goes on."""
        own = {server.member.node_id for server in self._in(self._primary())}
        cutting = self._loop.create_task(self._cut(own, both_ways=True))
        await asyncio.sleep(self._random.uniform(0.0, 0.1))
        await self._restart_others()
        await cutting

    def _revive(self, servers: list[Server]) -> None:
        for server in servers:
            if not server.running:
                self._cluster.start(server)
