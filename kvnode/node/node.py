"""One node: joins consensus, log, state and network, and is what the API talks to.

Theory of operation. Everything runs on one event loop; nothing here owns a thread. Four things drive a node:
arrivals (operations from clients, messages from peers), which are taken in at once and only noted; the driver
(driver.py), which turns what was noted into batches; the ticker, which moves the core's time and looks for what has
fallen due; and the disk's and the network's completions. Whatever raises in the driver or the ticker is fatal: the
node stops and says why, rather than acknowledging anything more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace as with_fields

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.membership import Member, MemberRole, Membership, decode_membership
from kvnode.machine.epochs import read_seal
from kvnode.machine.keyspace import DEFAULT_DATABASE
from kvnode.machine.resolve import Resolver
from kvnode.node.absent_log import AbsentLog
from kvnode.node.applier import Applier
from kvnode.node.barriers import Barriers, Item
from kvnode.node.calls import Call
from kvnode.node.changelog.follower import ChangelogFollower
from kvnode.node.changelog.source import Sources
from kvnode.node.directory import Directory
from kvnode.node.driver import Driver
from kvnode.node.epochs import Epochs
from kvnode.node.failover.coordinator import Coordinator
from kvnode.node.failover.fork import ForkKeeper, Forks
from kvnode.node.failover.participant import Participant
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.gateway import Gateway
from kvnode.node.guard import Guard
from kvnode.node.intake import Intake
from kvnode.node.introductions import Introductions
from kvnode.node.leadership_log import LeadershipLog
from kvnode.node.members import Members
from kvnode.node.message_stream import hello_to
from kvnode.node.onward import Onward
from kvnode.node.own_session import OwnSession
from kvnode.node.ports import (
    Deliver,
    Freshness,
    Held,
    LeaseNews,
    NodeIdentity,
    Origin,
    PeerHandler,
    SnapshotSink,
    Transport,
)
from kvnode.node.promotion.granter import NO_PART
from kvnode.node.promotion.promoter import Promoter
from kvnode.node.promotion.promotion import Promotion
from kvnode.node.proposals import Proposals, deadline_error
from kvnode.node.queue.queues import Queues
from kvnode.node.reads import Reads
from kvnode.node.removal import Removal, removal_sentence
from kvnode.node.replication import Replication
from kvnode.node.retention import Retention
from kvnode.node.settings import NodeSettings
from kvnode.node.snapshots import Snapshots
from kvnode.node.stats import Stats
from kvnode.node.status import node_status
from kvnode.node.timekeeper import Timekeeper
from kvnode.node.watch import WatchHub
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2
from kvnode.raft.messages import Message
from kvnode.raft.raft import Raft
from kvnode.raft.types import RaftConfig, Role
from kvnode.storage.log import Log
from kvnode.storage.state import State

HANDOVER_TIMEOUT_MS = 3_000
RETENTION_CHECK_TICKS = 20


class Node:
    """A member of a cluster.

    Args:
        settings: who it is.
        log, state: opened; the state holds at least the initial membership.
        clock, random_source: the seams for time and chance.
        make_transport: given this node as the handler of what arrives.
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
            settings.node_id, settings.election_ticks, settings.heartbeat_ticks, holds_commit_notices=True
        )
        membership = decode_membership(meta.membership)
        self._known_at_start = membership
        view = log if log.damage is None else AbsentLog(meta.applied_index, meta.applied_term)
        sealed = read_seal(state) is not None
        self.raft = Raft(config, view, log.hard_state, membership, meta.applied_index, random_source, sealed=sealed)
        self.epochs = Epochs(self.raft, state, lambda: state.meta, self._epoch_heard, settings.epoch)
        self.removal = Removal(settings.node_id, self.epochs, membership)
        self._fork_keeper = forks
        self._random_source = random_source
        self.freshness = FreshnessTracker(clock, settings.max_clock_offset_ms)
        self.watches = WatchHub(state, stats, self.freshness.age_ms, lambda: self._removed)
        self.directory = Directory(state, settings.cluster_id)
        self.introductions = Introductions(
            settings.node_id,
            lambda node_id: self._known_members.get(node_id) is not None or node_id in self.removal,
            clock.monotonic_ms,
            self._introduced,
        )
        self.transport = make_transport(self)
        self.timekeeper = Timekeeper(
            clock, settings.max_clock_offset_ms, self.raft, stats, lambda: state.meta.log_time_ms
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._driving: asyncio.Task[None] | None = None  # among the tasks; it ends with the cycle it is in
        self.retention = Retention(settings, log, state, clock)
        self._guard = Guard(self._fail)
        self._stopping = False
        self._resolving_term = 0
        self._leadership_log = LeadershipLog(self.raft)
        self._join_parts()

    def _join_parts(self) -> None:
        self.onward = Onward(
            self.node_id,
            self.raft,
            lambda: self._known_members,
            self.transport.forward,
            self.clock.monotonic_ms,
            self.stats,
        )
        self.promotion = Promotion(
            self.settings, self.raft, self.transport, self.clock, self._take_back, self.wake, self._guard
        )
        self.reads = Reads(
            self.state,
            self.freshness,
            self.stats,
            self.epochs.current,
            self.onward,
            self.clock.monotonic_ms,
            self._fail,
            self.wake,
            self.promotion.gate,
        )
        self.barriers = Barriers(self.raft, self.stats, self.reads.strong, self._barriers_lost)
        self.queues = Queues(
            self.node_id,
            self.state,
            self.wake,
            self._submit_one,
            self.write,
            self._take_back,
            self.timekeeper.next_ms,
            self.clock.monotonic_ms,
        )
        self.proposals = Proposals(
            self.raft,
            self.state,
            self.barriers,
            self.stats,
            self._make_resolver,
            self.timekeeper.next_ms,
            self._take_back,
            self._nudge,
            self.queues.dispatcher,
            self.directory.takes_write,
            self.promotion.gate,
        )
        self.replication = Replication(
            self.raft,
            lambda: self.raft.membership,
            self.clock,
            self.settings.on_replication_stall,
            self.settings.max_unreplicated_ms,
        )
        self.gateway = Gateway(
            self.settings.node_id,
            self.raft,
            self.proposals,
            self.barriers,
            self.transport,
            self.stats,
            self._nudge,
            self.queues.dispatcher.add,
            lambda: self.replication.sentence() if self.replication.holds_writes else "",
            self.promotion.unleased,
            lambda: self.removal.own,
        )
        self.snapshots = Snapshots(self.raft, self.log, self.state, self.transport, self.stats, self.wake, self._guard)
        self.changelog = Sources(
            self.raft,
            self.freshness,
            lambda: self.epoch,
            self.snapshots.send,
            region=self.settings.region,
            own_id=self.node_id,
            epochs=lambda: self.epochs.table,
            hello=lambda node_id: hello_to(self, node_id),
            lease_ask=lambda: self.promotion.ask,
            on_lease=self.promotion.take,
        )
        self.forks = Forks(
            self.settings, self.raft, lambda: self.epoch, self.clock, self._fork_keeper, self.wake, self._fail
        )
        self.follower = ChangelogFollower(
            self.node_id,
            self.settings.region,
            lambda: self._reachable_members,
            lambda: self.epochs.latest,
            self.raft,
            self.freshness,
            lambda: self.applied_index,
            self.transport,
            self.clock,
            self.wake,
            is_active=lambda: self.follows_changelog,
            learn=self.check_hello,
            forked=self.forks.meet,
            heard_from=lambda: self.epochs.heard_from,
            lease_news=self.promotion.news_upward,
            on_lease=self.promotion.take,
        )
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
            self._epochs_applied,
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
            self.stats,
            self._leadership_changed,
            self.changelog.committed,
            lambda: self.promotion.vouches,
        )
        self.members = Members(
            self.settings,
            self.raft,
            self.transport,
            self.wake,
            lambda: self.applied_index,
            self.clock.monotonic_ms,
            self._guard,
            lambda: self.epoch,
            self.promotion.check_change,
        )
        self.failover = Participant(
            self.settings,
            self.raft,
            self.epochs,
            lambda: self.state.meta,
            self.freshness,
            self.transport,
            self.clock,
            self._epoch_heard,
            self._guard,
            self._sealed,
            lambda: self.promotion.ballot_wait_ms() if self.log.damage is None else NO_PART,
            lambda: self.promotion.vouches,
            self.forks.keep_tail,
        )
        self.coordinator = Coordinator(
            self.settings,
            self.raft,
            self.epochs,
            self.failover,
            self.transport,
            self.clock,
            self._random_source,
            lambda: self._known_members,
        )
        self.promoter = Promoter(
            self.settings,
            self.raft,
            self.promotion,
            self.coordinator,
            self.clock,
            self._random_source,
            lambda: self.epoch,
        )
        timeout_ms = self.settings.operation_timeout_ms
        self._intake = Intake(
            self.gateway,
            self.reads,
            self.directory.view,
            self.stats,
            self.clock,
            timeout_ms,
            self._guard,
            self._fail,
        )
        self._own_session = OwnSession(self._intake.submit_one, self._intake.open_session, timeout_ms)

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
        known = self.raft.membership.get(self.node_id)
        if known is not None:
            return known
        s = self.settings
        role = MemberRole.REPLICA if s.replica else MemberRole.LEARNER
        return Member(s.node_id, s.name, s.region, s.dc, s.address, role)

    @property
    def is_replica(self) -> bool:
        """Whether it follows the changelog, instead of taking part in the Raft group."""
        return self.member.role is MemberRole.REPLICA

    @property
    def follows_changelog(self) -> bool:
        """Whether it follows the changelog: as a replica, or as what was a voter in an epoch that has ended."""
        return self.is_replica or self.raft.promised_epoch > self.raft.history.epoch

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
        loop = asyncio.get_running_loop()
        if self.log.damage is None:
            self._connect()
            self._driving = loop.create_task(self._guarded(self.driver.run()), name=f"{self.name}:driver")
            self._tasks.append(self._driving)
            self._take_up_seal()
            self.wake()
            self._tasks.append(loop.create_task(self._guarded(self.follower.run()), name=f"{self.name}:changelog"))
            if self.settings.automatic_promotion:
                self._tasks.append(loop.create_task(self._guarded(self.promoter.run()), name=f"{self.name}:promoter"))
        self._tasks.append(loop.create_task(self._guarded(self._ticker()), name=f"{self.name}:ticker"))

    async def hand_over(self) -> None:
        """Give leadership to the most caught-up voter, if this node has it."""
        self._stopping = True
        target = self._best_successor()
        if not self.raft.is_leader or not target or self.failed.done():
            return
        deadline = self.clock.monotonic_ms() + HANDOVER_TIMEOUT_MS
        try:
            with self._guard:
                self.raft.transfer_leadership(target)
        except KvError:
            return
        self.wake()
        while self.raft.is_leader and self.clock.monotonic_ms() < deadline:
            await asyncio.sleep(self.settings.tick_ms / 1000)

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
        await self.queues.close()
        self.promotion.gate.lose_leadership()
        self.gateway.fail_all(RuntimeError("shutdown"))
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

    async def _guarded(self, work) -> None:  # type: ignore[no-untyped-def]
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    async def _ticker(self) -> None:
        tick_ms = self.settings.tick_ms
        election_ms = tick_ms * self.settings.election_ticks
        last = self.clock.monotonic_ms()
        count = 0
        while True:
            await asyncio.sleep(tick_ms / 1000)
            now = self.clock.monotonic_ms()
            self.stats.loop_lag_ms.observe(max(0.0, now - last - tick_ms))
            if self.log.damage is None:
                if now - last > election_ms:
                    self.raft.clock_gap()
                self.introductions.sweep()
                self.timekeeper.judge()
                self.raft.tick()
                self.proposals.tick()
                self._confirm_alone()
                self.promotion.tick()
                count += 1
                if count % limits.HELD_INTERVAL_TICKS == 0:
                    self._tell_held()
                if count % RETENTION_CHECK_TICKS == 0:
                    await self.retention.apply()
            if self._removed:
                self.watches.end_all()
            self.proposals.sweep(now)
            self.barriers.sweep(now, deadline_error)
            self.promotion.gate.sweep(now, deadline_error)
            self.reads.sweep(now)
            self.gateway.tick(now)
            self.queues.dispatcher.sweep(now)
            self.stats.proposal_queue = self.proposals.queued_count
            last = now
            self.wake()

    def _confirm_alone(self) -> None:
        """A single voter is its own quorum: it sends no heartbeat whose acknowledgement could say how fresh it is."""
        raft = self.raft
        if raft.own_term_committed and len(raft.membership.voters) == 1 and self.promotion.vouches:
            meta = self.state.meta
            self.freshness.alone(raft.commit, meta.log_time_ms, meta.applied_index)

    def _tell_held(self) -> None:
        """The leader learns how far the replicas are that follow this node, which may be itself."""
        rows = self.changelog.held()
        if self.raft.is_leader:
            self.replication.take(rows)
        elif rows and self.raft.leader_id and not self.is_replica:
            self.transport.send_held(self.raft.leader_id, rows)
        self.replication.tick()

    # Leadership.

    def _make_resolver(self) -> Resolver:
        return Resolver(self.state, self.epoch, self.state.meta.log_time_ms)

    def _leadership_changed(self) -> None:
        raft = self.raft
        self.stats.leader_changes += 1
        self._leadership_log.changed()
        if raft.is_leader and self._resolving_term != raft.term:
            self._resolving_term = raft.term
            self.timekeeper.elected()
        if not raft.is_leader:
            self.queues.dispatcher.lose_leadership()
        self.promotion.gate.lose_leadership()
        self.gateway.leader_changed(raft.leader_id)

    def _membership_applied(self, data: bytes) -> None:
        self.removal.applied(decode_membership(data))
        self.changelog.dismiss(self.removal)
        self._connect()
        self.follower.look()

    def _epoch_heard(self) -> None:
        self.follower.look()
        self.wake()

    def _epochs_applied(self) -> None:
        """An epoch began or was sealed in the state, or a snapshot may have brought one."""
        self.epochs.applied()
        if self.epochs.seal is not None and not self.raft.sealed:
            self.raft.stands_at_seal()
        self.transport.announce()
        self.follower.look()
        self._take_up_seal()

    def _take_up_seal(self) -> None:
        """If the state stands at a seal, the next epoch begins with it; not from within an apply."""
        seal = self.epochs.seal
        if seal is not None:
            asyncio.get_running_loop().call_soon(self.failover.take_up, *seal)

    def _sealed(self) -> None:
        """This node has ended its epoch as the leader: what waits goes to whoever leads the next one."""
        self.proposals.lose_leadership()
        self.queues.dispatcher.lose_leadership()

    def _connect(self) -> None:
        """Have streams to all members.

        A node that joins replays memberships from before its time, which know neither it nor, perhaps, the present
        leader: until it meets itself in the log it also keeps those whom it was told of when it was adopted.
        """
        self.transport.set_members([m for m in self._reachable_members.members if m.node_id != self.node_id])

    def _introduced(self) -> None:
        """There is a stranger more, or one less."""
        if not self.failed.done():
            self._connect()
            self.follower.look()

    @property
    def _reachable_members(self) -> Membership:
        """All whose addresses this node knows."""
        known, strangers = self._known_members, self.introductions.members
        return with_fields(known, members=(*known.members, *strangers)) if strangers else known

    @property
    def _known_members(self) -> Membership:
        """The newest membership, and those whom this node was told of if it is too old to know this node."""
        membership = self.raft.membership
        if membership.get(self.node_id) is not None:
            return membership
        known = {member.node_id: member for member in (*self._known_at_start.members, *membership.members)}
        return with_fields(membership, members=tuple(known.values()))

    def _best_successor(self) -> int:
        voters = {member.node_id for member in self.raft.membership.voters}
        candidates = [p for p in self.raft.progress() if p.node_id in voters and p.node_id != self.node_id]
        alive = [p for p in candidates if 0 <= p.ticks_since_contact <= self.settings.election_ticks]
        return max(alive, key=lambda p: p.match).node_id if alive else 0

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

    async def open_session(self, timeout_ms: int = 0) -> bytes:
        """A fresh client id, opened through the log. Raises KvError."""
        return await self._own_session.open(timeout_ms)

    def _submit_one(self, operation: kv_pb2.Operation, origin: Origin, deliver: Deliver) -> None:
        self._intake.submit_one(operation, origin, deliver)

    def _take_back(self, calls: list[Call], unknown: bool) -> None:
        self.gateway.take_back(calls, unknown)

    def _barriers_lost(self, items: list[Item]) -> None:
        self.gateway.take_back([item.call for item in items], False)

    # Administration.

    def status(self) -> admin_pb2.StatusResponse:
        """What this node knows of itself and, when it leads, of its peers."""
        return node_status(self)

    async def transfer_leadership(self, to: int) -> None:
        """Hand leadership to `to`, or to the most caught-up voter if 0. Raises KvError."""
        self.members.require_leader()
        target = to or self._best_successor()
        if target == self.node_id:
            return
        if not target or self.raft.membership.get(target) is None:
            raise InvalidRequest(
                "MEMBER_UNKNOWN", f"no voter {to or ''} to hand leadership to; see `kvnode member list`"
            )
        with self._guard:
            self.raft.transfer_leadership(target)
        self.wake()
        deadline = self.clock.monotonic_ms() + HANDOVER_TIMEOUT_MS
        while self.raft.leader_id != target:
            if self.clock.monotonic_ms() >= deadline:
                raise KvError(
                    "TRANSFER_TIMEOUT", f"node {target} did not take over in time; this node leads on", phase="admin"
                )
            await asyncio.sleep(self.settings.tick_ms / 5000)

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

    # What peers say (ports.PeerHandler).

    def identity(self) -> NodeIdentity:
        """See ports.PeerHandler."""
        epochs = self.epochs
        return NodeIdentity(
            self.cluster_id,
            epochs.latest,
            self.node_id,
            self.name,
            epochs.established,
            epochs.ballot,
            self.member,
        )

    def check_hello(self, hello: peer_pb2.Hello) -> str:
        """See ports.PeerHandler."""
        if hello.cluster_id != self.cluster_id:
            return f"node '{hello.name}' is of cluster {hello.cluster_id}, this node is of {self.cluster_id}"
        if hello.to_node_id and hello.to_node_id != self.node_id:
            return (
                f"node '{hello.name}' expects node {hello.to_node_id} here, but this is '{self.name}' with the id "
                f"{self.node_id}: a new data directory is a new node; use `kvnode member replace`"
            )
        if self.log.damage is not None:
            return ""
        self.failover.heard_of(hello.epoch, hello.ballot)
        if refusal := self.epochs.refusal(hello):
            return refusal
        self.removal.hear(hello)
        if hello.node_id in self.removal:
            return f"MEMBER_REMOVED: {removal_sentence(hello.name)}"
        self.introductions.hear(hello)
        return ""

    def has_removed(self, node_id: int) -> bool:
        """See ports.PeerHandler."""
        return node_id in self.removal

    def on_messages(self, sender: int, messages: Sequence[Message], freshness: Freshness | None) -> None:
        """See ports.PeerHandler."""
        if self.log.damage is not None or self.failed.done():
            return
        self.stats.messages_received += len(messages)
        if self.introductions:
            self.introductions.spoke(sender)
        try:
            for message in messages:
                if message.sender == sender:
                    self.raft.step(message)
            if freshness is not None and sender == self.raft.leader_id:
                self.freshness.heard(freshness, self.applied_index, self.timekeeper.guard.now_of(sender))
            self.wake()
        except InvariantViolation as error:
            self._fail(error)

    def on_held(self, rows: Sequence[Held]) -> None:
        """See ports.PeerHandler."""
        self.replication.take(rows)

    def on_lease(self, news: LeaseNews) -> None:
        """See ports.PeerHandler."""
        if self.log.damage is None and not self.failed.done():
            self.promotion.take(news)

    def on_clock_sample(self, sender: int, theirs_ms: float, round_trip_ms: float) -> None:
        """See ports.PeerHandler."""
        self.timekeeper.guard.sample(sender, theirs_ms, round_trip_ms)

    def on_unreachable(self, node_id: int) -> None:
        """See ports.PeerHandler."""
        try:
            self.raft.report_unreachable(node_id)
        except InvariantViolation as error:
            self._fail(error)  # and no further: the stream that reports it opens again for ever
        self.wake()

    def on_forwarded(self, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """See ports.PeerHandler."""
        self.stats.forwarded_served += 1
        self.submit((operation,), origin, deliver, forwarded=True)

    def on_forwarded_open(self, deliver: Callable[[bytes, kv_pb2.Error | None], None]) -> None:
        """See ports.PeerHandler."""
        self._intake.open_session(deliver, self.settings.operation_timeout_ms, forwarded=True)

    def snapshot_sink(self) -> SnapshotSink:
        """For one incoming snapshot."""
        return self.snapshots.sink()


__all__ = ["Node", "Role"]
