"""Three production nodes on one loop of virtual time, for tests that need to say what happens when.

The ground is that of tests/simulation (its loop, disks, states, network and the observer, which holds every run
against Raft's safety properties); what is added here are the verbs of a test: ask this node that, cut that node
off, hold these messages back, wait until. Nothing sleeps in real time, so a bound of a minute costs nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kvnode.base.errors import KvError
from kvnode.node.node import Node
from kvnode.node.ports import Origin
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation import loop as simulated_loop
from tests.simulation.cluster import Cluster, Server
from tests.simulation.failover_observer import EpochObserver
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Host, Network
from tests.simulation.observer import Observer
from tests.simulation.tuning import STANDARD, Tuning

Result = TypeVar("Result")

SUCCESS = kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
CHECK_FAILED = kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED
EVENTUAL = kv_pb2.CONSISTENCY_EVENTUAL
NO_SESSION = Origin(b"", 0)


@dataclass
class Wire(Network):
    """A network that can also hold back chosen batches of Raft messages until they are released."""

    holds: Callable[[int, int, peer_pb2.PeerBatch], bool] | None = None
    held: list[tuple[int, int, Callable[[Host], None]]] = field(default_factory=list)

    def packet(self, source: int, target: int, arrive: Callable[[Host], None]) -> None:
        """See Network."""
        batch = getattr(getattr(arrive, "__self__", None), "batch", None)
        if self.holds is not None and batch is not None and self.holds(source, target, batch):
            self.held.append((source, target, arrive))
        else:
            super().packet(source, target, arrive)

    def release(self) -> None:
        """Send what was held, and hold nothing more."""
        self.holds = None
        held, self.held = self.held, []
        for source, target, arrive in held:
            super().packet(source, target, arrive)


class Asked:
    """An operation on its way; every result that is delivered for it is kept."""

    def __init__(self) -> None:
        self.results: list[kv_pb2.OperationResult] = []

    def deliver(self, result: kv_pb2.OperationResult) -> None:
        """Given to the node."""
        self.results.append(result)

    @property
    def done(self) -> bool:
        """Whether an answer has come."""
        return bool(self.results)

    async def result(self, within_s: float = 30.0) -> kv_pb2.OperationResult:
        """The answer; fails unless there is exactly one."""
        await until(lambda: self.done, within_s, "an operation was not answered")
        assert len(self.results) == 1, f"answered {len(self.results)} times"
        return self.results[0]

    async def write(self) -> kv_pb2.AtomicWriteResponse:
        """The answer to a write; fails on an error."""
        result = await self.result()
        assert result.HasField("write"), result
        return result.write

    async def read(self) -> kv_pb2.ReadResponse:
        """The answer to a read; fails on an error."""
        result = await self.result()
        assert result.HasField("read"), result
        return result.read

    async def error(self) -> kv_pb2.Error:
        """The error."""
        result = await self.result()
        assert result.HasField("error"), result
        return result.error


class Trio(Cluster):
    """The cluster of a test. Servers that a test makes fail on purpose go into `may_stop`."""

    wire: Wire
    may_stop: set[int]

    def node(self, server: Server) -> Node:
        """Its node, which runs."""
        assert server.node is not None, server.errors
        return server.node

    async def leading(self) -> Server:
        """The leader, once it resolves and all who run and can be reached follow it."""

        def settled() -> bool:
            leader = self.leader()
            if leader is None or not self.node(leader).proposals.resolving:
                return False
            return all(
                self.node(server).leader_id == leader.member.node_id
                for server in self.serving
                if self.wire.connected(leader.member.node_id, server.member.node_id)
            )

        await until(settled, 30.0, "no leader")
        leader = self.leader()
        assert leader is not None
        return leader

    async def leader_and_followers(self) -> tuple[Server, Server, Server]:
        """The leader and the two others, in order of their ids."""
        leader = await self.leading()
        one, other = self.others(leader)
        return leader, one, other

    def others(self, server: Server) -> list[Server]:
        """All but that one."""
        return [other for other in self.servers.values() if other is not server]

    # Faults.

    def cut(self, server: Server) -> None:
        """Cut it off from all others, both ways."""
        for other in self.others(server):
            a, b = server.member.node_id, other.member.node_id
            self.wire.cuts |= {(a, b), (b, a)}

    def heal(self) -> None:
        """Undo every cut."""
        self.wire.cuts.clear()

    # Operations.

    def ask(self, server: Server, operation: kv_pb2.Operation, origin: Origin = NO_SESSION) -> Asked:
        """Submit one operation to a node."""
        asked, node = Asked(), self.node(server)
        copy = kv_pb2.Operation.FromString(operation.SerializeToString())
        server.process.context.run(node.submit, [copy], origin, asked.deliver)
        return asked

    async def within(self, server: Server, work: Coroutine[Any, Any, Result]) -> Result:
        """Await a coroutine of a node's in its own process."""
        return await asyncio.wait_for(server.process.spawn(work), 200)  # type: ignore[no-any-return]

    async def refused(self, server: Server, work: Coroutine[Any, Any, Any]) -> KvError:
        """The error that a coroutine of a node's raises."""
        try:
            result = await self.within(server, work)
        except KvError as error:
            return error
        raise AssertionError(f"not refused: {result!r}")

    async def put(self, server: Server, key: bytes, value: bytes = b"v", **rest: int) -> bytes:
        """Set a key through a node; returns the versionstamp."""
        answer = await self.ask(server, write(put(key, value, **rest))).write()
        assert answer.status == SUCCESS
        return answer.versionstamp

    async def get(self, server: Server, key: bytes) -> bytes | None:
        """A strong read of one key through a node."""
        return value_of(await self.ask(server, read(key)).read())

    async def everywhere(self) -> None:
        """Until all who run have applied all that the leader has committed."""
        leader = await self.leading()
        wanted = self.node(leader).raft.commit
        await until(lambda: all(self.node(s).applied_index >= wanted for s in self.serving), 30.0, "not applied")


Story = Callable[[Trio], Awaitable[None]]


def on_trio(story: Story) -> Callable[[Path], None]:
    """Make a test of a coroutine: it is given three nodes that were just started."""

    def test(tmp_path: Path) -> None:
        simulated_loop.run(lambda loop: _play(loop, tmp_path, story))

    test.__name__, test.__qualname__ = story.__name__, story.__qualname__
    test.__module__, test.__doc__ = story.__module__, story.__doc__
    return test


def on_leased_regions(story: Story) -> Callable[[Path], None]:
    """As on_regions, with leaders that use leases."""

    def test(tmp_path: Path) -> None:
        tuning = STANDARD._replace(leader_lease=True)
        simulated_loop.run(lambda loop: _play(loop, tmp_path, story, EpochObserver(), 2, tuning=tuning))

    test.__name__, test.__qualname__ = story.__name__, story.__qualname__
    test.__module__, test.__doc__ = story.__module__, story.__doc__
    return test


def on_regions(story: Story) -> Callable[[Path], None]:
    """As on_trio, with two replicas of another region beside the three; failovers may befall them."""

    def test(tmp_path: Path) -> None:
        simulated_loop.run(lambda loop: _play(loop, tmp_path, story, EpochObserver(), 2))

    test.__name__, test.__qualname__ = story.__name__, story.__qualname__
    test.__module__, test.__doc__ = story.__module__, story.__doc__
    return test


class _Unobserved(EpochObserver):
    def fail(self, kind: str, text: str) -> None:
        """The observer knows one history that goes on, and those that were cut off before."""


def on_regions_apart(story: Story) -> Callable[[Path], None]:
    """As on_regions, for two failovers of which the one that goes on has more than the other: the test itself looks."""

    def test(tmp_path: Path) -> None:
        simulated_loop.run(lambda loop: _play(loop, tmp_path, story, _Unobserved(), 2))

    test.__name__, test.__qualname__ = story.__name__, story.__qualname__
    test.__module__, test.__doc__ = story.__module__, story.__doc__
    return test


def on_three_regions(lease_ms: int) -> Callable[[Story], Callable[[Path], None]]:
    """As on_regions, with two replicas in each of two regions, and a primary lease that is in force."""

    def decorate(story: Story) -> Callable[[Path], None]:
        def test(tmp_path: Path) -> None:
            simulated_loop.run(lambda loop: _play(loop, tmp_path, story, EpochObserver(), 2, 2, lease_ms))

        test.__name__, test.__qualname__ = story.__name__, story.__qualname__
        test.__module__, test.__doc__ = story.__module__, story.__doc__
        return test

    return decorate


async def _play(
    loop: SimulatedLoop,
    directory: Path,
    story: Story,
    observer: Observer | None = None,
    replicas_count: int = 0,
    third_count: int = 0,
    lease_ms: int = 0,
    tuning: Tuning = STANDARD,
) -> None:
    wire = Wire(loop, random.Random(1))
    observer = observer or Observer()
    trio = Trio(
        loop,
        wire,
        observer,
        random.Random(2),
        "abc",
        directory,
        tuning=tuning,
        replicas_count=replicas_count,
        third_count=third_count,
        lease_ms=lease_ms,
    )
    trio.wire, trio.may_stop = wire, set()
    for server in trio.servers.values():
        trio.start(server)
    await until(lambda: all(server.node is not None for server in trio.servers.values()), 5.0, "no start")
    await story(trio)
    observer.raise_violation()
    assert not loop.failures, loop.failures
    unexpected = [(s.member.name, s.errors) for s in trio.servers.values() if s.member.node_id not in trio.may_stop]
    assert not [pair for pair in unexpected if pair[1]], unexpected


async def until(holds: Callable[[], bool], within_s: float = 30.0, otherwise: str = "it never came to hold") -> None:
    """Wait, in virtual time, until something holds."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while not holds():
        assert loop.time() < end_s, otherwise
        await asyncio.sleep(0.002)


# Operations.


def put(key: bytes, value: bytes = b"v", *, expire_at_ms: int = 0) -> kv_pb2.Mutation:
    """A set."""
    body = kv_pb2.Value(data=value, encoding=kv_pb2.VALUE_ENCODING_BYTES)
    return kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=key, value=body, expire_at_ms=expire_at_ms)


def delete(key: bytes) -> kv_pb2.Mutation:
    """A delete."""
    return kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_DELETE, key=key)


def add_one(key: bytes) -> kv_pb2.Mutation:
    """A sum of one: applied twice, it shows."""
    body = kv_pb2.Value(data=(1).to_bytes(8, "little"), encoding=kv_pb2.VALUE_ENCODING_LE64)
    return kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SUM, key=key, value=body)


def absent(key: bytes) -> kv_pb2.Check:
    """A check that the key does not exist."""
    return kv_pb2.Check(key=key)


def write(
    *mutations: kv_pb2.Mutation,
    checks: Sequence[kv_pb2.Check] = (),
    number: int = 1,
    timeout_ms: int = 0,
    resend: bool = False,
) -> kv_pb2.Operation:
    """An atomic write."""
    request = kv_pb2.AtomicWriteRequest(mutations=mutations, checks=checks)
    return kv_pb2.Operation(id=number, write=request, timeout_ms=timeout_ms, resend=resend)


def read(
    key: bytes,
    *,
    eventual: bool = False,
    min_versionstamp: bytes = b"",
    max_staleness_ms: int = 0,
    timeout_ms: int = 0,
    number: int = 1,
) -> kv_pb2.Operation:
    """A read of one key, strong unless said otherwise."""
    request = kv_pb2.ReadRequest(
        ranges=[kv_pb2.ReadRange(start=key, end=key + b"\x00", limit=1)],
        consistency=EVENTUAL if eventual else kv_pb2.CONSISTENCY_STRONG,
        min_versionstamp=min_versionstamp,
        max_staleness_ms=max_staleness_ms,
    )
    return kv_pb2.Operation(id=number, read=request, timeout_ms=timeout_ms)


def value_of(response: kv_pb2.ReadResponse) -> bytes | None:
    """The value of the one key that was read."""
    entries = response.ranges[0].entries
    return entries[0].value if entries else None


def number_of(value: bytes | None) -> int:
    """A sum's value."""
    return 0 if value is None else int.from_bytes(value, "little")
