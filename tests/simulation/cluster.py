"""A simulated cluster: production nodes on simulated machines, each of which can be hurt and restarted.

A `Server` is a machine: it keeps its disk, its state and its clock while processes come and go on it. A `kill`
ends the process alone, as kill -9 does; a `crash` is a loss of power, which also takes back what was not fsynced.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvnode.base.errors import KvError, StorageFailed
from kvnode.codec.entry import Entry, HardState
from kvnode.codec.membership import Member, MemberRole, Membership, encode_membership
from kvnode.node.failover.fork import RejoinNeeded
from kvnode.node.member_wire import member_to_wire
from kvnode.node.node import Node
from kvnode.node.ports import PeerHandler, Transport
from kvnode.node.settings import NodeSettings
from kvnode.node.stats import Stats
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.storage.fork_file import ForkFiles
from kvnode.storage.log import Log
from kvnode.storage.rejoin import rejoin_if_decided
from tests.simulation.clock import SimulatedClock
from tests.simulation.disk import SimulatedDisk
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.network import Host, Network, SimulatedTransport
from tests.simulation.observer import DurableLog, Observer
from tests.simulation.state import SimulatedState
from tests.simulation.tuning import STANDARD, Tuning

CLUSTER_ID = "simulated"
MAX_RATE_ERROR = 0.02  # of a monotonic clock, where leases are counted by it; two of them stay within the margin
SEGMENT_BYTES = 8_192
RETENTION_BYTES = 8_192
ELECTION_TICKS = 10
LOG_DIRECTORY = "data/log"
_ALL_BYTES = 1 << 40


class ObservedLog(Log):
    """The production log, telling the observer what it has been made to promise."""

    observer: Observer
    node_id: int
    unsynced: list[Entry]

    def watch(self, observer: Observer, node_id: int) -> None:
        """Begin to tell; what the log shows now is durable."""
        self.observer, self.node_id, self.unsynced = observer, node_id, []
        before = observer.durable.get(node_id)
        now = DurableLog(self.first_index() - 1, self.term(self.first_index() - 1) or 0)
        for index in range(self.first_index(), self.last_index() + 1):
            now.keep(index, self.term(index) or 0)
        if before is not None and self.damage is None:
            for index, term in before.terms.items():
                if not now.holds(index, term):
                    observer.fail("durability", f"node {node_id} lost entry {index}/{term}, which had been fsynced")
        observer.durable[node_id] = now

    async def append(self, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool = True) -> None:
        if entries:
            self.observer.appending(self.node_id, entries, self.term(entries[0].index - 1))
            self.unsynced = [entry for entry in self.unsynced if entry.index < entries[0].index]
        await super().append(entries, hard_state, sync=sync)
        self.unsynced.extend(entries)
        if sync:
            self.observer.synced(self.node_id, self.unsynced)
            self.unsynced = []

    async def reset(self, index: int, term: int, *, discard: bool = False) -> None:
        await super().reset(index, term, discard=discard)
        if not hasattr(self, "unsynced"):
            return  # not watched yet
        self.unsynced = []
        self.observer.log_reset(self.node_id, index, term)


@dataclass
class Server:
    """One machine."""

    member: Member
    clock: SimulatedClock
    disk: SimulatedDisk
    state: SimulatedState
    process: Process
    host: Host
    random: random.Random
    node: Node | None = None
    log: ObservedLog | None = None
    errors: list[BaseException] = field(default_factory=list)
    may_fail: bool = False  # its disk was made to fail: it may stop, saying so
    disk_factor: float = 1.0
    restarts: int = 0
    wished_lease_ms: int = 0  # by its configuration
    joined: bool = True

    @property
    def running(self) -> bool:
        """Whether a process runs on it."""
        return not self.process.dead

    @property
    def serving(self) -> bool:
        """Whether its node takes part."""
        return self.running and self.node is not None


class Cluster:
    """The servers and the verbs to hurt them.

    Args:
        dcs: the data center of each initial voter, for example "abc" or "aaabc".
        directory: for snapshot files.
        tuning: the nodes' bounds.
        replicas_count: of another region.
        third_count: replicas of a third region.
        lease_ms: of the primary lease, in force from the beginning; 0 = none.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        network: Network,
        observer: Observer,
        random_source: random.Random,
        dcs: str,
        directory: Path,
        make_node: Callable[..., Node] = Node,
        tuning: Tuning = STANDARD,
        replicas_count: int = 0,
        third_count: int = 0,
        lease_ms: int = 0,
    ) -> None:
        self.lease_ms = lease_ms
        self.loop = loop
        self.network = network
        self.observer = observer
        self.random = random_source
        self.directory = directory
        self.servers: dict[int, Server] = {}
        self.tuning = tuning
        self._make_node = make_node
        members = tuple(_member(number + 1, dc) for number, dc in enumerate(dcs))
        voters_count = len(members)
        members += tuple(_replica(voters_count + 1 + number) for number in range(replicas_count))
        first = voters_count + replicas_count + 1
        members += tuple(_replica(first + number, "r3") for number in range(third_count))
        self.initial = Membership(members, min(2, len(set(dcs))), lease_ms)
        self.one_entry_appends = False
        observer.memberships.append(self.initial)
        network.on_send = observer.sent
        for member in members:
            self.add_server(member)

    def add_server(self, member: Member) -> Server:
        """A new machine, with nothing on its disk and no process."""
        rng = random.Random(self.random.getrandbits(64))
        clock = SimulatedClock(
            self.loop,
            offset_ms=rng.uniform(-40, 40),
            drift=rng.uniform(-5e-5, 5e-5),
            uptime_ms=rng.uniform(0, 1e6),
        )
        if self.lease_ms or self.tuning.leader_lease:
            clock.rate = 1 + rng.uniform(-MAX_RATE_ERROR, MAX_RATE_ERROR)
        process = Process(self.loop, member.name)
        process.dead = True
        server: Server
        disk = SimulatedDisk(rng, sleep=asyncio.sleep, sync_seconds=lambda _: self._disk_latency(server))
        state = SimulatedState(
            self.directory / str(member.node_id), clock=clock, latency_s=lambda: self._disk_latency(server) * 2
        )
        host = Host(member.node_id, member.address, process, clock)
        server = Server(member, clock, disk, state, process, host, rng, wished_lease_ms=self.lease_ms)
        self.servers[member.node_id] = server
        return server

    def _disk_latency(self, server: Server) -> float:
        latency_s = server.random.uniform(0.0005, 0.004) * server.disk_factor
        return latency_s + (server.random.uniform(0, 0.05) if server.random.random() < 0.02 else 0)

    # Processes.

    def start(self, server: Server) -> None:
        """Start a process on a machine that has none."""
        server.process = Process(self.loop, server.member.name)
        server.node = server.log = None
        server.host = Host(server.member.node_id, server.member.address, server.process, server.clock)
        self.network.hosts[server.member.node_id] = server.host
        server.restarts += 1
        server.process.spawn(self._main(server, server.process), f"{server.member.name}.{server.restarts}")

    def kill(self, server: Server) -> None:
        """kill -9: the operating system keeps what was written."""
        self._end(server)
        server.disk = server.disk.kill()
        server.state = server.state.kill()

    def crash(self, server: Server) -> None:
        """Power loss: what was not fsynced may be gone."""
        self._end(server)
        server.disk = server.disk.crash()
        server.state = server.state.crash(server.random)

    def _end(self, server: Server) -> None:
        self.observer.note(f"end {server.member.name} {self.loop.time():.6f};")
        server.process.kill()
        server.node = server.log = None

    async def _main(self, server: Server, process: Process) -> None:
        """What `kvnode serve` does, on simulated ground."""
        try:
            if not server.joined:
                await self._wait_for_adoption(server)
            await self._serve(server)
        except Exception as error:
            self._stopped(server, process, error)

    def _stopped(self, server: Server, process: Process, error: BaseException) -> None:
        server.errors.append(error)
        self.observer.note(f"stopped {server.member.name} {type(error).__name__};")
        if server.process is process and not process.dead:
            self.crash(server)

    async def _serve(self, server: Server) -> None:
        server.disk.make_directory("data")
        log = await ObservedLog.open(LOG_DIRECTORY, server.disk, segment_bytes=SEGMENT_BYTES)
        assert isinstance(log, ObservedLog)
        state: Any = server.state
        if not state.meta.membership:
            initial = encode_membership(self.initial)
            state.apply({}, applied_index=0, applied_term=0, log_time_ms=0, epoch=1, membership=initial)
        if await rejoin_if_decided(server.disk, "data", log, state):
            self.observer.let_go(server.member.node_id)
        log.watch(self.observer, server.member.node_id)
        meta = state.meta
        if log.damage is None and log.term(meta.applied_index) != meta.applied_term:
            await log.reset(meta.applied_index, meta.applied_term)
        if log.damage is not None:
            self.observer.fail("durability", f"{server.member.name}: undamaged disk, yet: {log.damage}")
        if meta.applied_index:
            self.observer.reached(server.member.node_id, meta.applied_index, meta.digest)
        self._watch_state(server, log)
        member = server.member
        settings = NodeSettings(
            node_id=member.node_id,
            name=member.name,
            region=member.region,
            dc=member.dc,
            address=member.address,
            cluster_id=CLUSTER_ID,
            replica=member.role is MemberRole.REPLICA,
            tick_ms=self.tuning.tick_ms,
            election_ticks=ELECTION_TICKS,
            heartbeat_ticks=1,
            log_retention_bytes=RETENTION_BYTES,
            leader_lease=self.tuning.leader_lease,
            automatic_promotion=server.wished_lease_ms > 0,
            primary_lease_ms=server.wished_lease_ms,
        )
        rng = random.Random(server.random.getrandbits(64))

        def make_transport(handler: PeerHandler) -> Transport:
            return SimulatedTransport(self.network, server.host, handler)

        forks = ForkFiles(server.disk, "data")
        node = self._make_node(settings, log, state, server.clock, rng, make_transport, Stats(), forks)
        if self.one_entry_appends:
            node.raft.config = replace(node.raft.config, max_append_bytes=1, max_inflight_count=1)
        node.raft.config = self.tuning.config(node.raft.config)
        if not self.tuning.leader_lease:
            node.raft.hold_ticks = (
                0  # what a node holds after its start would keep away elections that must be safe too
            )
        server.node, server.log = node, log
        server.host.handler, server.host.node = node.peers, node
        server.host.sink = node.snapshot_sink
        server.host.identify = lambda: _identity(member, joined=True)
        server.host.adopt = lambda request: peer_pb2.AdoptResponse(member=member_to_wire(member))
        await node.start()
        error = await node.failed
        if isinstance(error, RejoinNeeded):
            self.kill(server)
            self.start(server)
            return
        raise error

    def _watch_state(self, server: Server, log: ObservedLog) -> None:
        state: Any = server.state
        apply, install = type(state).apply, type(state).install_snapshot
        node_id = server.member.node_id

        def observed_apply(writes: Any, *, applied_index: int, **rest: Any) -> Any:
            first = state.meta.applied_index + 1
            entries = log.entries(first, applied_index + 1, _ALL_BYTES)
            meta = apply(state, writes, applied_index=applied_index, **rest)
            if [entry.index for entry in entries] != list(range(first, applied_index + 1)):
                self.observer.fail("apply-order", f"node {node_id} applied {applied_index} beyond its log")
            else:
                if server.node is not None:
                    self.observer.proposed(server.node.raft.log.unstable())
                self.observer.applied(node_id, entries, meta.digest)
            return meta

        async def observed_install(path: Path, *, index: int, term: int) -> Any:
            meta = await install(state, path, index=index, term=term)
            self.observer.installs_count += 1
            self.observer.reached(node_id, index, meta.digest)
            return meta

        state.apply = observed_apply
        state.install_snapshot = observed_install

    async def _wait_for_adoption(self, server: Server) -> None:
        adopted: asyncio.Future[bytes] = self.loop.create_future()

        def adopt(request: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
            if not adopted.done():
                adopted.set_result(request.membership)
            return peer_pb2.AdoptResponse(member=member_to_wire(server.member))

        server.host.identify = lambda: _identity(server.member, joined=False)
        server.host.adopt = adopt
        membership = await adopted
        server.state.apply({}, applied_index=0, applied_term=0, log_time_ms=0, epoch=1, membership=membership)
        await server.state.make_durable()
        server.joined = True

    # What can be asked.

    @property
    def serving(self) -> list[Server]:
        """The servers whose nodes take part."""
        return [server for server in self.servers.values() if server.serving]

    def hosts(self) -> list[Host]:
        """For clients."""
        return [server.host for server in self.serving]

    def leader(self) -> Server | None:
        """The leader of the greatest term, if any believes to lead."""
        leaders = [server for server in self.serving if server.node is not None and server.node.is_leader]
        return max(leaders, key=lambda server: server.node.raft.term, default=None)  # type: ignore[union-attr]

    def unexpected_errors(self) -> list[tuple[Server, BaseException]]:
        """Nodes that stopped although nobody had hurt their disk."""
        return [
            (server, error)
            for server in self.servers.values()
            for error in server.errors
            if not (server.may_fail and isinstance(error, StorageFailed | OSError))
        ]

    async def administer(self, server: Server, verb: Callable[[Node], Any]) -> bool:
        """Run an administrative verb in the server's process; False if it was refused."""
        node = server.node
        if node is None:
            return False
        done: asyncio.Future[bool] = self.loop.create_future()

        async def run() -> None:
            try:
                await verb(node)
            except KvError as error:
                self.observer.note(f"refused {error.code};")
                result = False
            else:
                result = True
            if not done.done():
                done.set_result(result)

        server.process.spawn(run(), "admin")
        try:
            return await asyncio.wait_for(done, 5)
        except TimeoutError:
            return False


def _member(node_id: int, dc: str) -> Member:
    return Member(node_id, f"node{node_id}", "r1", dc, f"sim:{node_id}", MemberRole.VOTER)


def _replica(node_id: int, region: str = "r2") -> Member:
    return Member(node_id, f"node{node_id}", region, f"far{node_id}", f"sim:{node_id}", MemberRole.REPLICA)


def _identity(member: Member, *, joined: bool) -> peer_pb2.IdentifyResponse:
    return peer_pb2.IdentifyResponse(
        member=member_to_wire(member), cluster_id=CLUSTER_ID if joined else "", joined=joined
    )
