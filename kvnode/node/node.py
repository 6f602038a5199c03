"""One node: joins consensus, log, state and network, and is what the API talks to.

Theory of operation. Everything runs on one event loop; nothing here owns a thread. Four things drive a node:
arrivals (operations from clients, messages from peers), which are taken in at once and only noted; the driver
(driver.py), which turns what was noted into batches; the ticker (ticker.py), which moves the core's time and looks for
what has fallen due; and the disk's and the network's completions. Whatever raises in the driver or the ticker is fatal:
the node stops and says why, rather than acknowledging anything more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.codec.membership import Member, MemberRole, Membership, decode_membership
from kvnode.machine.epochs import read_seal
from kvnode.machine.keyspace import DEFAULT_DATABASE
from kvnode.node.absent_log import AbsentLog
from kvnode.node.address_book import AddressBook
from kvnode.node.applier import Applier
from kvnode.node.calls import Call, OpenDeliver
from kvnode.node.context import NodeContext
from kvnode.node.directory import Directory
from kvnode.node.driver import Driver
from kvnode.node.epochs import Epochs
from kvnode.node.failover.fork import ForkKeeper
from kvnode.node.founding import elect_first
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.guard import Guard
from kvnode.node.handshake import Handshake
from kvnode.node.leadership_log import LeadershipLog
from kvnode.node.leadership_transfer import HANDOVER_TIMEOUT_MS, LeadershipTransfer
from kvnode.node.members import Members
from kvnode.node.operations import Operations
from kvnode.node.peer_inbox import PeerInbox
from kvnode.node.ports import Deliver, LeaseNews, Origin, PeerHandler, SnapshotSink, Transport
from kvnode.node.promotion.promotion import Promotion
from kvnode.node.regions import Regions
from kvnode.node.removal import Removal
from kvnode.node.replication import Replication
from kvnode.node.retention import Retention
from kvnode.node.settings import NodeSettings
from kvnode.node.snapshots import Snapshots
from kvnode.node.stats import Stats
from kvnode.node.status import node_status
from kvnode.node.ticker import Ticker
from kvnode.node.timekeeper import Timekeeper
from kvnode.node.watch import WatchHub
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2
from kvnode.raft.raft import Raft
from kvnode.raft.types import RaftConfig, Role
from kvnode.storage.log import Log
from kvnode.storage.state import State


class Node:
    """A member of a cluster.

    Args:
        settings: who it is.
        log, state: opened; the state holds at least the initial membership.
        clock, random_source: the seams for time and chance.
        make_transport: given the handler of what arrives.
        stats: where it counts.
        forks: where it saves what a failover has cut off; without it, such a node stays as it is.
    """

    def __init__(
        self,
        settings: NodeSettings,
        log: Log,
        state: State,
        clock: Clock,
        random_source: random.Random,
        make_transport: Callable[[PeerHandler], Transport],
        stats: Stats,
        forks: ForkKeeper | None = None,
    ) -> None:
        self.settings = settings
        self.log = log
        self.state = state
        self.clock = clock
        self.stats = stats
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        meta = state.meta
        config = RaftConfig(
            settings.node_id,
            settings.election_ticks,
            settings.heartbeat_ticks,
            holds_commit_notices=True,
            asks_holds=settings.leader_lease,
            vote_hold_ms=settings.vote_hold_ms,
            holds_vote_at_start=True,
        )
        membership = decode_membership(meta.membership)
        view = log if log.damage is None else AbsentLog(meta.applied_index, meta.applied_term)
        sealed = read_seal(state) is not None
        self.raft = Raft(config, view, log.hard_state, membership, meta.applied_index, random_source, sealed=sealed)
        self.freshness = FreshnessTracker(clock, settings.max_clock_offset_ms)
        self._context = NodeContext(
            settings,
            self.raft,
            log,
            state,
            clock,
            random_source,
            stats,
            self.freshness,
            self.failed,
            Guard(self._fail),
            self._fail,
            self.wake,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._driving: asyncio.Task[None] | None = None  # among the tasks; it ends with the cycle it is in
        self._stopping = False
        self._resolving_term = 0
        self._leadership_log = LeadershipLog(self.raft)
        self._join_peers(membership, make_transport)
        self._join_operations()
        self._join_regions(forks)
        self._join_driver()

    def _join_peers(self, membership: Membership, make_transport: Callable[[PeerHandler], Transport]) -> None:
        """What others say, whose epoch, clock and place in the cluster it is judged by, and the way to them."""
        context, settings, state = self._context, self.settings, self.state
        self.epochs = Epochs(self.raft, state, context.meta, self._epoch_heard, settings.epoch)
        self.removal = Removal(settings.node_id, self.epochs, membership)
        self.book = AddressBook(
            settings, self.raft, membership, self.removal, self.clock.monotonic_ms, self._introduced
        )
        self.introductions = self.book.introductions
        self.timekeeper = Timekeeper(
            self.clock, settings.max_clock_offset_ms, self.raft, self.stats, lambda: state.meta.log_time_ms
        )
        self.replication = Replication(
            self.raft,
            lambda: self.raft.membership,
            self.clock,
            settings.on_replication_stall,
            settings.max_unreplicated_ms,
        )
        handshake = Handshake(context, self.epochs, self.removal, self.book, self._heard_of)
        self.peers: PeerHandler = PeerInbox(
            context,
            handshake,
            self.removal,
            self.introductions,
            self.timekeeper.guard,
            self.replication,
            self._take_lease,
            self.submit,
            self._open_forwarded,
        )
        self.transport = make_transport(self.peers)

    def _join_operations(self) -> None:
        context = self._context
        self.watches = WatchHub(self.state, self.stats, self.freshness.age_ms, lambda: self._removed)
        self.directory = Directory(self.state, self.settings.cluster_id)
        self.promotion = Promotion(
            self.settings, self.raft, self.transport, self.clock, self._take_back, self.wake, context.guard
        )
        self.operations = Operations(
            context,
            self.transport,
            self.epochs,
            self.directory,
            self.book.known,
            self.timekeeper,
            self.promotion,
            self.replication,
            self.removal,
            self._nudge,
            self.write,
        )
        self.reads = self.operations.reads
        self.barriers = self.operations.barriers
        self.queues = self.operations.queues
        self.proposals = self.operations.proposals
        self.gateway = self.operations.gateway
        self._intake = self.operations.intake
        self._own_session = self.operations.own_session

    def _join_regions(self, forks: ForkKeeper | None) -> None:
        context = self._context
        self.snapshots = Snapshots(
            self.raft, self.log, self.state, self.transport, self.stats, self.wake, context.guard
        )
        self.regions = Regions(
            context,
            self.transport,
            self.peers,
            self.epochs,
            self.book,
            self.promotion,
            self.replication,
            self.snapshots,
            self.operations.sealed,
            lambda: self._removed and f"SOURCE_REMOVED: {self._removed}",
            forks,
        )
        self.changelog = self.regions.changelog
        self.follower = self.regions.follower
        self.failover = self.regions.failover
        self.coordinator = self.regions.coordinator
        self.members = Members(
            self.settings,
            self.raft,
            self.transport,
            self.wake,
            context.applied_index,
            self.clock.monotonic_ms,
            context.guard,
            context.epoch,
            self.promotion.check_change,
        )
        self._transfer = LeadershipTransfer(context, self.members.require_leader)

    def _join_driver(self) -> None:
        applier = Applier(
            self.state,
            self.proposals,
            self.barriers,
            self.reads,
            self.watches,
            self.directory,
            self.freshness,
            self.stats,
            self.clock,
            self._membership_applied,
            self.queues.dispatcher,
            self.regions.epochs_applied,
        )
        self.driver = Driver(
            self.raft,
            self.log,
            self.state,
            self.transport,
            applier,
            self.proposals,
            self.barriers,
            self.snapshots,
            self.freshness,
            self.operations.lease,
            self.stats,
            self._leadership_changed,
            self.changelog.committed,
            lambda: self.promotion.vouches,
        )
        self._ticker = Ticker(
            self._context,
            self.timekeeper,
            self.introductions,
            self.operations,
            self.promotion,
            self.regions,
            Retention(self.settings, self.log, self.state, self.clock),
            self._end_if_removed,
        )

    # What it is.

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self.settings.name

    @property
    def node_id(self) -> int:
        """Its id, never used by another."""
        return self.settings.node_id

    @property
    def cluster_id(self) -> str:
        """The cluster it belongs to."""
        return self.settings.cluster_id

    @property
    def epoch(self) -> int:
        """The epoch of its state."""
        return self.state.meta.epoch

    @property
    def is_leader(self) -> bool:
        """Whether it leads, as far as it knows."""
        return self.raft.is_leader

    @property
    def leader_id(self) -> int:
        """The leader it knows of; 0 = none."""
        return self.raft.leader_id

    @property
    def applied_index(self) -> int:
        """The last index in its state."""
        return self.state.meta.applied_index

    @property
    def membership(self) -> Membership:
        """The newest membership in its log."""
        return self.raft.membership

    @property
    def member(self) -> Member:
        """Itself, as the cluster knows it."""
        return self.book.own

    @property
    def is_replica(self) -> bool:
        """Whether it follows the changelog, instead of taking part in the Raft group."""
        return self.member.role is MemberRole.REPLICA

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether it serves, and why not."""
        if self.failed.done():
            return False, f"the node has failed: {self.failed.result()}"
        if self.log.damage:
            return False, self.log.damage
        if self._stopping:
            return False, "the node is stopping"
        if self._removed:
            return False, f"MEMBER_REMOVED: {self._removed}"
        if not self.raft.leader_id:
            return False, "no leader is known: fewer than a majority of the voters answer, or an election is on"
        if not self.applied_index and self.member.role is not MemberRole.VOTER:
            return False, "waiting for the first copy of the cluster's data"
        behind = self.raft.commit - self.applied_index
        if behind > limits.MAX_BATCH_TRANSACTIONS_COUNT:
            return False, f"catching up: {behind} entries to apply"
        return True, "ok"

    @property
    def _removed(self) -> str:
        """That this node was removed, and what to do; empty = it was not, or leads until its successor does."""
        return "" if self.raft.is_leader else self.removal.own

    # Life.

    async def start(self) -> None:
        """Begin to take part. A damaged log keeps the node out of votes, campaigns and acknowledgements."""
        if self.log.damage is None:
            self._connect()
            self._driving = self._spawn("driver", self.driver.run())
            self.regions.take_up_seal()
            self.wake()
            self._spawn("changelog", self.follower.run())
            if self.settings.automatic_promotion:
                self._spawn("promoter", self.regions.promoter.run())
        self._spawn("ticker", self._ticker.run())

    def _spawn(self, part: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guarded(work), name=f"{self.name}:{part}")
        self._tasks.append(task)
        return task

    async def elect_first(self) -> None:
        """As the node that has founded the cluster, which the others have joined: lead it, if nobody ever has."""
        await elect_first(self._context)

    async def hand_over(self) -> None:
        """Give leadership to the most caught-up voter, if this node has it."""
        self._stopping = True
        await self._transfer.give_up()

    async def stop(self) -> None:
        """Hand leadership over, let what is under way settle, and close everything."""
        await self.hand_over()
        deadline = self.clock.monotonic_ms() + HANDOVER_TIMEOUT_MS
        while self.proposals.pending_count and not self.failed.done() and self.clock.monotonic_ms() < deadline:
            await asyncio.sleep(self.settings.tick_ms / 1000)
        self.driver.stop()
        if self._tasks:  # none when the start itself failed
            for task in self._tasks:
                if task is not self._driving:
                    task.cancel()
            await asyncio.wait(self._tasks, timeout=HANDOVER_TIMEOUT_MS / 1000)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.operations.end()
        await self.snapshots.close()
        await self.transport.close()
        await self.reads.close()
        try:
            if not self.failed.done():
                await self.state.make_durable()
        finally:
            await self.state.close()
            await self.log.close()

    def wake(self) -> None:
        """Tell the driver that something arrived.

        While its fsync is under way this sends, applies and answers at once: what fails then is the node's failure,
        not that of whoever happened to wake it.
        """
        try:
            self.driver.wake()
        except Exception as error:
            self._fail(error)

    def _nudge(self) -> None:
        self.driver.nudge()

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)
            self.driver.stop()

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    def _end_if_removed(self) -> None:
        if self._removed:
            self.watches.end_all()

    # News.

    def _leadership_changed(self) -> None:
        raft = self.raft
        self.stats.leader_changes += 1
        self._leadership_log.changed()
        if raft.is_leader and self._resolving_term != raft.term:
            self._resolving_term = raft.term
            self.timekeeper.elected()
        self.operations.leader_changed()

    def _membership_applied(self, data: bytes) -> None:
        self.removal.applied(decode_membership(data))
        self.changelog.dismiss(self.removal)
        self._connect()
        self.follower.look()

    def _epoch_heard(self) -> None:
        self.regions.epoch_heard()

    def _heard_of(self, epoch: int, ballot: int) -> None:
        self.failover.heard_of(epoch, ballot)

    def _take_lease(self, news: LeaseNews) -> None:
        self.promotion.take(news)

    def _introduced(self) -> None:
        """There is a stranger more, or one less."""
        if not self.failed.done():
            self._connect()
            self.follower.look()

    def _connect(self) -> None:
        self.transport.set_members(self.book.peers())

    # Operations.

    def submit(
        self, operations: Sequence[kv_pb2.Operation], origin: Origin, deliver: Deliver, *, forwarded: bool = False
    ) -> None:
        """Take in operations; each is answered once through `deliver`, in any order.

        Args:
            operations: their ids are the client's; a write's id and the origin's client id are its request id.
            origin: the client's session, and the database.
            deliver: called on this loop, possibly before submit returns.
            forwarded: they come from another node and go no further.
        """
        self._intake.submit(operations, origin, deliver, forwarded=forwarded)

    async def read(
        self, request: kv_pb2.ReadRequest, timeout_ms: int = 0, *, database: int = DEFAULT_DATABASE
    ) -> kv_pb2.ReadResponse:
        """One read. Raises KvError."""
        result = await self._own_session.run(kv_pb2.Operation(read=request, timeout_ms=timeout_ms), database)
        return result.read

    async def write(
        self,
        request: kv_pb2.AtomicWriteRequest,
        timeout_ms: int = 0,
        *,
        database: int = DEFAULT_DATABASE,
        settle: bool = False,
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write under this node's own session; `settle`: see OwnSession.run. Raises KvError."""
        operation = kv_pb2.Operation(write=request, timeout_ms=timeout_ms)
        result = await self._own_session.run(operation, database, settle=settle)
        return result.write

    @property
    def can_begin_writes(self) -> bool:
        """Whether `begin` takes a write now: this node's own session is open."""
        return self._own_session.is_open

    def begin(self, operation: kv_pb2.Operation, database: int, deliver: Deliver) -> None:
        """As read, or as write with `settle`, without a task: see OwnSession.begin."""
        self._own_session.begin(operation, database, deliver)

    async def open_session(self, timeout_ms: int = 0, *, database: int = DEFAULT_DATABASE) -> bytes:
        """A fresh client id, opened through the log, for a client's writes to that database. Raises KvError."""
        return await self._own_session.open(database, timeout_ms)

    def _open_forwarded(self, owner: int, deliver: OpenDeliver) -> None:
        self._intake.open_session(deliver, owner, self.settings.operation_timeout_ms, forwarded=True)

    def _take_back(self, calls: list[Call], unknown: bool) -> None:
        self.gateway.take_back(calls, unknown)

    # Administration.

    def status(self) -> admin_pb2.StatusResponse:
        """What this node knows of itself and, when it leads, of its peers."""
        return node_status(self)

    async def transfer_leadership(self, to: int) -> None:
        """Hand leadership to `to`, or to the most caught-up voter if 0. Raises KvError."""
        await self._transfer.ask(to)

    async def snapshot_now(self) -> admin_pb2.SnapshotResponse:
        """Write a snapshot and compact the log behind it."""
        snapshot = await self.snapshots.make()
        await self.state.make_durable()
        await self.log.compact(min(snapshot.index, self.state.durable_applied))
        return admin_pb2.SnapshotResponse(
            index=snapshot.index, term=snapshot.term, size_bytes=snapshot.size_bytes, digest=snapshot.file_digest.hex()
        )

    async def digest(self, *, scrub: bool) -> admin_pb2.DigestResponse:
        """The digest of the applied state; with `scrub`, recomputed from every row and compared."""
        matches = await self.state.scrub() if scrub else False
        meta = self.state.meta
        return admin_pb2.DigestResponse(
            applied_index=meta.applied_index, digest=f"{meta.digest:032x}", scrubbed=scrub, matches=matches
        )

    def snapshot_sink(self) -> SnapshotSink:
        """For one incoming snapshot."""
        return self.snapshots.sink()


__all__ = ["Node", "Role"]
