"""One seed: a cluster, its clients, its nemesis, and everything that is checked."""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.checker import check
from cluster.history import Committed, Operation, Unknown
from kvnode.base.limits import MAX_CLOCK_OFFSET_MS
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation import loop as simulated_loop
from tests.simulation.cluster import Cluster
from tests.simulation.failover import Failovers, bounds_in_force, draw_replicas, draws_failovers
from tests.simulation.failover_observer import EpochObserver
from tests.simulation.loop import Hang, Livelock, SimulatedLoop
from tests.simulation.nemesis import Nemesis
from tests.simulation.network import Network
from tests.simulation.observer import Observer, Violation
from tests.simulation.promotion import (
    LAYOUT,
    REPLICAS_COUNT,
    Promotions,
    answers_watched,
    draw_lease_ms,
    draws_promotions,
    promotion_bounds,
)
from tests.simulation.queues import draw_queues
from tests.simulation.tuning import draw_tuning
from tests.simulation.watchers import Watchers
from tests.simulation.workload import EVERYTHING, Client, Journal

LAYOUTS = ("abc", "abc", "abc", "aaabc", "abcab")
FIGURE_8 = 0.15  # of the seeds with three voters
CHAOS_S = (6.0, 14.0)
RECOVERY_S = 25.0  # from the healing on, for a write to be acknowledged again
CONVERGENCE_S = 40.0  # from the healing on, for all to have applied the same
# What expires may be judged by a leader that was elected with a clock off by the bound and then stepped: log time
# follows such a step by the bound again. The rest is the median's own distance from true time.
CLOCK_SLACK_MS = 2 * MAX_CLOCK_OFFSET_MS + 100


@dataclass
class Result:
    """How a seed went. `checker` is empty when all promises held."""

    seed: int
    checker: str = ""
    message: str = ""
    trace: str = ""
    operations_count: int = 0
    acknowledged_count: int = 0
    committed_count: int = 0
    virtual_s: float = 0.0
    snapshots_count: int = 0
    kinds: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the seed passed."""
        return not self.checker


def run_seed(seed: int, mutant: Callable[[], AbstractContextManager[object]] = nullcontext) -> Result:
    """Run one seed to its end or its first broken promise.

    Args:
        seed: everything that happens follows from it.
        mutant: a planted bug, in force during the run.
    """
    result = Result(seed)
    gc.disable()  # when the collector runs depends on more than the seed
    try:
        _play(seed, mutant, result)
    finally:
        gc.enable()
        gc.collect()  # the scene is gone by now: what lives still would be looked at for nothing
    return result


def _play(seed: int, mutant: Callable[[], AbstractContextManager[object]], result: Result) -> None:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="kvnode-simulation-", dir=base) as directory, mutant():
        scene = Scene(seed, Path(directory), result)
        try:
            bounds = bounds_in_force(scene.fails_over)
            with scene.tuning.in_force(), scene.queues.in_force(), bounds, scene.promotion_in_force():
                simulated_loop.run(scene.play)
        except Violation as violation:
            result.checker, result.message = violation.checker, violation.message
        except Hang as error:
            result.checker, result.message = "hang", str(error)
        except Livelock as error:
            result.checker, result.message = "livelock", str(error)
        scene.account()


class Scene:
    """The parts of a seed."""

    def __init__(self, seed: int, directory: Path, result: Result) -> None:
        self.random = random.Random(seed)
        self.tuning = draw_tuning(seed)
        self.queues = draw_queues(seed)
        self.directory = directory
        self.result = result
        self.promotes = draws_promotions(seed)
        self.fails_over = self.promotes or draws_failovers(seed, draw_replicas(seed))
        self.observer = EpochObserver() if self.fails_over else Observer()
        self.failovers: Failovers | None = None
        self.journal = Journal()
        self.snapshots_count = 0

    def promotion_in_force(self) -> AbstractContextManager[object]:
        """What a seed with automatic promotions needs around it."""
        if not isinstance(self.observer, EpochObserver) or not self.promotes:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(promotion_bounds())
        stack.enter_context(answers_watched(self.observer, lambda: list(self.cluster.servers.values())))
        return stack

    async def play(self, loop: SimulatedLoop) -> None:
        """From the start of the first node to the last check."""
        self.loop = loop
        draw = self.random
        self.network = Network(loop, random.Random(draw.getrandbits(64)))
        layout = draw.choice(LAYOUTS)
        if self.promotes:
            layout = LAYOUT
        self.cluster = Cluster(
            loop,
            self.network,
            self.observer,
            random.Random(draw.getrandbits(64)),
            layout,
            self.directory,
            tuning=self.tuning,
            replicas_count=REPLICAS_COUNT if self.promotes else draw_replicas(self.result.seed),
            third_count=REPLICAS_COUNT if self.promotes else 0,
            lease_ms=draw_lease_ms(self.result.seed) if self.promotes else 0,
        )
        self.queues.build(loop, self.network, self.cluster, self.observer)
        self.nemesis = Nemesis(loop, self.cluster, random.Random(draw.getrandbits(64)))
        if isinstance(self.observer, EpochObserver):
            disasters = Promotions if self.promotes else Failovers
            self.failovers = disasters(self.result.seed, loop, self.cluster, self.nemesis, self.observer)
        else:
            self._draw_figure_8()
        replicas = len(self.cluster.initial.replicas)
        name = layout + (f"+{replicas}" if replicas else "") + self.queues.label
        self.result.kinds = [name, *self.nemesis.kinds, *self._disasters()]
        self.clients = [
            Client(n, loop, self.network, self.cluster.hosts, self.journal, random.Random(draw.getrandbits(64)))
            for n in range(draw.choice((2, 3, 5)))
        ]
        for server in self.cluster.servers.values():
            self.cluster.start(server)
        self.watchers = Watchers(self.result.seed, loop, self.cluster, self.journal)
        self.watchers.start()
        watch = loop.create_task(self._watch())
        story = loop.create_task(self._story(draw.uniform(*CHAOS_S)))
        await asyncio.wait((watch, story), return_when=asyncio.FIRST_COMPLETED)
        for task in (watch, story):
            if task.done():
                task.result()
        watch.cancel()
        self._judge()

    def _disasters(self) -> list[str]:
        if self.promotes:
            return ["promotions"]
        return ["failovers"] if self.fails_over else []

    def _draw_figure_8(self) -> None:
        """Whether leaders fall before their first entry is everywhere: Raft's figure 8, which chance never draws.

        A leader sends what it inherited and its own no-op in one message, unless a message has room for one entry
        only: the moment between the two is what matters. Other trouble would hardly ever let the story reach its
        end. Drawn apart, so that the other seeds stay as they were.
        """
        draw = random.Random(f"figure 8 {self.result.seed}")
        if draw.random() < FIGURE_8 and len(self.cluster.servers) == 3:
            self.cluster.one_entry_appends = True
            self.nemesis.play_figure_8(draw)

    async def _story(self, chaos_s: float) -> None:
        draw = self.random
        pause_ms = draw.choice(((5.0, 60.0), (50.0, 250.0)))
        width = draw.choice((1, 2, 4))
        working = [client.process.spawn(client.run(pause_ms, width)) for client in self.clients]
        working += self.queues.start(self.journal)
        if self.failovers is None:
            await self.nemesis.run(chaos_s)
        else:
            await self._fail_over(self.failovers, chaos_s)
        reviving = self.loop.create_task(self._keep_all_running())
        try:
            await self._come_to_an_end(working)
        finally:
            reviving.cancel()

    async def _come_to_an_end(self, working: list[asyncio.Task[None]]) -> None:
        """After the healing: writes again, every client and message done, and the same everywhere."""
        await self._recover()
        for client in self.clients:
            client.stopped = True
        self.queues.stop()
        await asyncio.wait(working, timeout=CONVERGENCE_S)
        if any(not task.done() for task in working):
            raise Violation("liveness", "a client has not come to an end long after everything was healed")
        await self.queues.drain()
        await self._converge()
        await self._read_everything()
        self.watchers.stop()

    async def _fail_over(self, failovers: Failovers, chaos_s: float) -> None:
        story = self.loop.create_task(failovers.run(chaos_s))
        await self.nemesis.run(chaos_s)
        await asyncio.wait((story,), timeout=CONVERGENCE_S)
        if not story.done():
            raise Violation("liveness", "a failover has not come to an end long after everything was healed")
        story.result()
        for server in self.cluster.servers.values():
            if not server.running:
                self.cluster.start(server)
        failovers.begin_to_mend()

    async def _watch(self) -> None:
        """Look often whether a promise is broken already."""
        while True:
            await asyncio.sleep(0.05)
            if self.observer.violation is not None:
                raise self.observer.violation
            for server, error in self.cluster.unexpected_errors():
                raise Violation("stopped", f"{server.member.name} stopped: {type(error).__name__}: {error}") from error
            for process, error in self.loop.failures:
                where = process.name if process else "outside"
                raise Violation("exception", f"in {where}: {type(error).__name__}: {error}") from error

    async def _recover(self) -> None:
        before = self.journal.acknowledged_count
        end_s = self.loop.time() + RECOVERY_S
        while self.journal.acknowledged_count < before + 3:
            if self.loop.time() > end_s:
                raise Violation(
                    "liveness", f"no writes for {RECOVERY_S} s after everything was healed: {self._roles()}"
                )
            await asyncio.sleep(0.2)

    async def _keep_all_running(self) -> None:
        """Start who stopped because its disk had been hurt, though that may show only long after the healing."""
        while True:
            for server in self.cluster.servers.values():
                if not server.running:
                    self.cluster.start(server)
            await asyncio.sleep(0.2)

    def _roles(self) -> str:
        parts = []
        for server in self.cluster.servers.values():
            node = server.node
            if node is None:
                parts.append(f"{server.member.name}: down {server.errors[-1:]!r}")
            else:
                raft = node.raft
                parts.append(
                    f"{server.member.name}: {raft.role.value} term {raft.term} leader {raft.leader_id} "
                    f"commit {raft.commit} last {raft.last_index} applied {node.applied_index}"
                )
        return "; ".join(parts)

    async def _converge(self) -> None:
        end_s = self.loop.time() + CONVERGENCE_S
        while not self._converged():
            if self.loop.time() > end_s:
                raise Violation("convergence", f"the replicas stay apart: {self._roles()}")
            await asyncio.sleep(0.2)

    def _converged(self) -> bool:
        leader = self.cluster.leader()
        if leader is None or leader.node is None:
            return False
        wanted = leader.node.raft.commit
        for member in leader.node.membership.members:
            server = self.cluster.servers[member.node_id]
            if server.node is None or server.node.applied_index < wanted:
                return False
        return True

    async def _read_everything(self) -> None:
        """A last strong read, so that the replay compares every row."""
        request = kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=EVERYTHING[0], end=EVERYTHING[1], limit=1000)])
        client = self.clients[0]
        await client.process.spawn(client.operate(kv_pb2.Operation(read=request)))

    def _judge(self) -> None:
        """What can only be said at the end."""
        self.observer.raise_violation()
        self.queues.judge()
        records = self.journal.records
        if self.failovers is not None:
            self.failovers.close()
            records = self.failovers.remaining(records)
        operations = [self._settled(record) for record in records]
        report = check(operations, clock_slack_ms=CLOCK_SLACK_MS)
        if not report.ok:
            first = report.violations[0]
            raise Violation(first.rule, str(first))

    def _settled(self, record: object) -> Operation:
        """Hold what the client was told against the log, and settle what it does not know."""
        operation: Operation = record.operation  # type: ignore[attr-defined]
        if not record.is_write:  # type: ignore[attr-defined]
            return operation
        found = self.observer.outcomes.get((record.client_id, record.sequence))  # type: ignore[attr-defined]
        outcome = operation.outcome
        if isinstance(outcome, Committed):
            if (
                found is None
                or found.versionstamp != outcome.versionstamp
                or found.kind != log_pb2.OUTCOME_KIND_COMMITTED
            ):
                raise Violation("acknowledged", f"{operation.label} was acknowledged, and the log says {found}")
        elif found is not None and found.kind == log_pb2.OUTCOME_KIND_COMMITTED:
            if not isinstance(outcome, Unknown):
                raise Violation(
                    "exactly-once", f"{operation.label} was told {outcome}, yet the log holds it as applied"
                )
            return replace(operation, outcome=Committed(found.versionstamp))
        return operation

    def account(self) -> None:
        """Numbers for the result."""
        result = self.result
        result.trace = self.observer.trace.hexdigest()
        result.operations_count = len(self.journal.records)
        result.acknowledged_count = self.journal.acknowledged_count
        result.committed_count = len(self.observer.committed)
        result.virtual_s = self.loop.time()
        result.events = self.nemesis.done
        result.snapshots_count = self.observer.installs_count
