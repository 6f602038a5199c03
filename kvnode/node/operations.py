"""The way of an operation through a node, from its arrival to its answer: the parts that stand along it, joined.

    intake -> reads                            an eventual read
           -> gateway -> barriers -> reads     a strong one, on the leader
                      -> proposals             a write, on the leader
                      -> the transport         either, on another node

What the leader answers passes the primary lease's gate (node/promotion). Queues are here because their claims are
proposals, and their pulls operations.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.base.errors import Unavailable
from kvnode.codec.membership import Membership
from kvnode.machine.resolve import Resolver
from kvnode.node.barriers import Barriers, Item
from kvnode.node.calls import Call
from kvnode.node.context import NodeContext
from kvnode.node.directory import Directory
from kvnode.node.epochs import Epochs
from kvnode.node.gateway import Gateway
from kvnode.node.intake import Intake
from kvnode.node.leader_lease import LeaderLease
from kvnode.node.onward import Onward
from kvnode.node.own_session import OwnSession
from kvnode.node.ports import Deliver, Origin, Transport
from kvnode.node.promotion.promotion import Promotion
from kvnode.node.proposals import Proposals, deadline_error
from kvnode.node.queue.queues import Queues
from kvnode.node.queue.settler import Write
from kvnode.node.read_batch import ReadBatches, apart
from kvnode.node.reads import Reads
from kvnode.node.removal import Removal
from kvnode.node.replication import Replication
from kvnode.node.timekeeper import Timekeeper
from kvnode.proto.kv.v1 import kv_pb2


class Operations:
    """Those parts of one node.

    Args:
        context: the node.
        transport: to whoever leads.
        epochs: by which versionstamps are judged.
        directory: the databases.
        members: whom reads may go on to.
        timekeeper: gives entries their log time.
        promotion: says whether a leader may answer.
        replication: says whether a leader may take writes.
        removal: says whether this node may still send anything on.
        nudge: tells the driver that an operation was queued.
        write: Node.write.
    """

    def __init__(
        self,
        context: NodeContext,
        transport: Transport,
        epochs: Epochs,
        directory: Directory,
        members: Callable[[], Membership],
        timekeeper: Timekeeper,
        promotion: Promotion,
        replication: Replication,
        removal: Removal,
        nudge: Callable[[], None],
        write: Write,
    ) -> None:
        settings, raft, state, stats = context.settings, context.raft, context.state, context.stats
        monotonic_ms = context.clock.monotonic_ms
        self._context = context
        self._gate = promotion.gate
        self._view = directory.view
        self.onward = Onward(settings.node_id, raft, members, transport.forward, monotonic_ms, stats)
        self.reads = Reads(
            state,
            context.freshness,
            stats,
            epochs.current,
            self.onward,
            monotonic_ms,
            context.fail,
            context.wake,
            promotion.gate,
            self._under_lease,
        )
        self.barriers = self._make_barriers(nudge)
        self.queues = self._make_queues(write, timekeeper, nudge)
        self.proposals = Proposals(
            raft,
            state,
            self.barriers,
            stats,
            self._make_resolver,
            timekeeper.next_ms,
            self.take_back,
            nudge,
            self.queues.dispatcher,
            directory.takes_write,
            promotion.gate,
            self.queues.settler.ride,
        )
        self.gateway = Gateway(
            settings.node_id,
            raft,
            self.proposals,
            self.barriers,
            transport,
            stats,
            nudge,
            self.queues.dispatcher.add,
            lambda: replication.sentence() if replication.is_stalled and replication.holds_writes else "",
            promotion.unleased,
            lambda: removal.own,
        )
        self._open_to_callers(directory, ReadBatches(self.barriers, nudge))

    def _make_queues(self, write: Write, timekeeper: Timekeeper, nudge: Callable[[], None]) -> Queues:
        context = self._context
        return Queues(
            context.settings.node_id,
            context.state,
            nudge,
            self._submit_one,
            write,
            self._begin_own,
            self.take_back,
            timekeeper.next_ms,
            context.clock.monotonic_ms,
        )

    def _make_barriers(self, nudge: Callable[[], None]) -> Barriers:
        context = self._context
        self.lease = LeaderLease(context.raft, context.clock.monotonic_ms)
        return Barriers(context.raft, self.lease, context.stats, self.reads.strong, self._barriers_lost, nudge)

    def _open_to_callers(self, directory: Directory, batches: ReadBatches) -> None:
        context = self._context
        timeout_ms = context.settings.operation_timeout_ms
        self.intake = Intake(
            self.gateway,
            self.reads,
            batches,
            directory.view,
            context.stats,
            context.clock,
            timeout_ms,
            context.guard,
            context.fail,
        )
        self.own_session = OwnSession(self.intake.submit_one, self.intake.open_session, timeout_ms)

    def sweep(self, now_ms: float) -> None:
        """Answer what is past its deadline, and try again what waits for something.

        Args:
            now_ms: of the monotonic clock.
        """
        self.proposals.sweep(now_ms)
        self.barriers.sweep(now_ms, deadline_error)
        self._gate.sweep(now_ms, deadline_error)
        self.reads.sweep(now_ms)
        self.gateway.tick(now_ms)
        self.queues.dispatcher.sweep(now_ms)
        self._context.stats.proposal_queue = self.proposals.queued_count

    def leader_changed(self) -> None:
        """Role, term or leader is another one."""
        raft = self._context.raft
        self.queues.dispatcher.term_began()
        if not raft.is_leader:
            self.queues.dispatcher.lose_leadership()
        self._gate.lose_leadership()
        self._take_back_reads()
        self.gateway.leader_changed(raft.leader_id)

    def sealed(self) -> None:
        """This node has ended its epoch as the leader: what waits goes to whoever leads the next one."""
        self.proposals.lose_leadership()
        self.queues.dispatcher.lose_leadership()
        self._take_back_reads()

    async def end(self) -> None:
        """The node stops: answer all that nobody else will."""
        await self.queues.close()
        self._gate.lose_leadership()
        self.reads.fail_waiting(Unavailable("the node is stopping: shutdown", code="NODE_STOPPING"))
        self.gateway.fail_all(RuntimeError("shutdown"))

    def take_back(self, calls: list[Call], unknown: bool) -> None:
        """See Gateway.take_back."""
        self.gateway.take_back(calls, unknown)

    def _take_back_reads(self) -> None:
        self.gateway.take_back(apart(self.reads.lose_leadership()), False)

    def _under_lease(self, call: Call, negative: kv_pb2.OperationResult | None) -> bool:
        return self.barriers.answers_under_lease(call, negative)

    def _barriers_lost(self, items: list[Item]) -> None:
        self.gateway.take_back(apart(item.call for item in items), False)

    def _begin_own(self, operation: kv_pb2.Operation, database: int, deliver: Deliver) -> bool:
        if not self.own_session.is_open:
            return False
        self.own_session.begin(operation, database, deliver)
        return True

    def _submit_one(self, operation: kv_pb2.Operation, origin: Origin, deliver: Deliver) -> None:
        self.intake.submit_one(operation, origin, deliver)

    def _make_resolver(self) -> Resolver:
        meta = self._context.meta()
        # A round of its own may be acknowledged already, while it applies what it found in the log: leases did not run
        # on until then.
        confirmed = self._context.freshness.before_leading
        last_led_ms = meta.log_time_ms if confirmed is None else max(meta.log_time_ms, confirmed.sent_at_ms)
        return Resolver(self._context.state, meta.epoch, last_led_ms, self._view.max_value_bytes)
