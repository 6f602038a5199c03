"""Where an operation goes: here, to the leader, or into the waiting room until there is one.

A client sees a pause, not an error. An operation that was sent on and came back unanswered (the stream broke, the
leader changed, the leader froze) is sent again under the same request id with `resend` set; the first copy, if it
was applied, answers for both. Once an operation has been sent again, an answer from an earlier attempt is ignored:
a negative answer from a former leader would be about a copy that the present one may still apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from kvnode.base import limits
from kvnode.base.errors import KvError, Unavailable
from kvnode.client.status import error_from_proto
from kvnode.node.barriers import Barriers
from kvnode.node.calls import RETRIED_CODES, Call
from kvnode.node.ports import Transport
from kvnode.node.proposals import Proposals, deadline_error
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.raft import Raft

_MAX_MARGIN_MS = 1_000.0


class Gateway:
    """Routes strong operations; eventual reads never come here.

    Args:
        wake: tells the driver that there is a read round or a batch to begin.
        add_pull: takes a pull of messages, on the leader.
        stalled: why the leader takes no writes now; empty = it does (replication.py).
        unleased: why the leader answers nothing strong now; empty = it does (promotion).
        removed: that this node was removed from the cluster; empty = it was not (removal.py).
    """

    def __init__(
        self,
        node_id: int,
        raft: Raft,
        proposals: Proposals,
        barriers: Barriers,
        transport: Transport,
        stats: Stats,
        wake: Callable[[], None],
        add_pull: Callable[[Call], None],
        stalled: Callable[[], str] = lambda: "",
        unleased: Callable[[], str] = lambda: "",
        removed: Callable[[], str] = lambda: "",
    ) -> None:
        self._removed = removed
        self._unleased = unleased
        self._add_pull = add_pull
        self._stalled = stalled
        self._node_id = node_id
        self._raft = raft
        self._proposals = proposals
        self._barriers = barriers
        self._transport = transport
        self._stats = stats
        self._wake = wake
        self._held: list[Call] = []
        self._held_bytes = 0
        self._sent: dict[Call, int] = {}  # forwarded and unanswered: to whom
        self._leader_id = 0

    @property
    def held_count(self) -> int:
        """Operations waiting for a leader."""
        return len(self._held)

    @property
    def reads_here(self) -> bool:
        """Whether strong reads are this node's to answer now."""
        return self._raft.is_leader and not self._raft.sealed and not self._unleased()

    def route(self, call: Call) -> None:
        """Send a strong operation on its way. It has been validated."""
        raft = self._raft
        if raft.is_leader and not raft.sealed:
            if self._unleased():
                self._hold(call)
            elif call.operation is None or call.operation.HasField("write"):
                if self._stalled() and self._adds(call):
                    self._hold(call)
                else:
                    self._proposals.add(call)
            elif call.operation.HasField("read"):
                self._barriers.add(call)
                self._wake()
            else:
                self._add_pull(call)
        elif call.forwarded:
            call.fail(_not_leader(raft.leader_id))
        elif removed := self._removed():
            call.fail(_removed_error(call, removed))
        elif raft.leader_id and raft.leader_id != self._node_id:
            self._forward(call, raft.leader_id)
        else:
            self._hold(call)

    def take_back(self, calls: Iterable[Call], unknown: bool) -> None:
        """Calls that this node, no longer leader, cannot settle. `unknown`: they may have been applied."""
        for call in calls:
            if call.done:
                continue
            if unknown:
                call.mark_resend()
            if call.forwarded:
                call.fail(_leadership_lost(unknown))
            else:
                self._hold(call)

    def leader_changed(self, leader_id: int) -> None:
        """Another leader, or none: send again what the former one has not answered, and what is held."""
        self._leader_id = leader_id
        if leader_id:
            stranded = [call for call, to in self._sent.items() if to != leader_id]
            for call in stranded:
                del self._sent[call]
                call.mark_resend()
            self._release(stranded)

    def tick(self, now_ms: float) -> None:
        """Try what is held again, and answer what is past its deadline."""
        for call in [call for call in self._sent if now_ms >= call.deadline_ms]:
            del self._sent[call]
            call.attempt += 1
            call.sent = True
            call.fail(deadline_error(call))
        if self._held:
            leads = self._raft.is_leader
            unleased = self._unleased() if leads else ""
            stalled = self._stalled() if leads else ""
            for call in self._held:
                if now_ms >= call.deadline_ms - (_margin_ms(call) if unleased or stalled else 0):
                    call.fail(_held_error(call, unleased, stalled))
            if (self._raft.leader_id or self._removed()) and not (unleased or stalled):
                self._release([])
            else:
                self._keep([call for call in self._held if not call.done])
                if stalled and not unleased:
                    self._release_all_but_writes()
        self._stats.held_now = len(self._held)

    def fail_all(self, error: Exception) -> None:
        """The node stops: nobody will answer these."""
        for call in self._sent:
            call.sent = True
        for call in [*self._held, *self._sent]:
            stopping = Unavailable(f"the node is stopping: {error}", code="NODE_STOPPING")
            stopping.not_applied = not call.sent  # the leader may still apply what was sent to it
            call.fail(stopping)
        self._held, self._held_bytes = [], 0
        self._sent.clear()

    def _release(self, calls: list[Call]) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        for call in [*calls, *held]:
            if not call.done:
                self.route(call)

    def _adds(self, call: Call) -> bool:
        """Whether a call adds to what the regions lack: a write does, unless a copy of it is in the log already."""
        operation = call.operation
        return operation is not None and operation.HasField("write") and not self._proposals.knows(call)

    def _release_all_but_writes(self) -> None:
        """What waited for the lease alone goes on; a stall holds writes."""
        held = self._held
        self._keep([call for call in held if self._adds(call)])
        kept = dict.fromkeys(self._held)
        for call in held:
            if call not in kept:
                self.route(call)

    def _keep(self, calls: list[Call]) -> None:
        self._held = calls
        self._held_bytes = sum(call.size_bytes for call in calls)

    def _hold(self, call: Call) -> None:
        if call.operation is not None and not call.size_bytes:
            call.size_bytes = call.operation.ByteSize()
        full = (
            len(self._held) >= limits.MAX_HELD_REQUESTS_COUNT
            or self._held_bytes + call.size_bytes > limits.MAX_HELD_REQUEST_BYTES
        )
        if full and not call.sent:
            call.fail(Unavailable("no leader takes writes now and too many requests wait for one already; retry later"))
            return
        # One that may have been applied is kept even above the bound: only its resend can settle it. Their number
        # is bounded by what the sessions may have unanswered.
        self._held.append(call)
        self._held_bytes += call.size_bytes
        self._stats.held += 1
        self._stats.held_now = len(self._held)

    def _forward(self, call: Call, leader_id: int) -> None:
        self._stats.forwarded += 1
        self._sent[call] = leader_id
        call.attempt += 1
        if call.operation is None:
            answered = partial(self._open_answered, call, call.attempt)
            self._transport.forward_open(leader_id, call.origin.session_owner, answered)
        else:
            self._transport.forward(leader_id, call.origin, call.operation, partial(self._answered, call, call.attempt))

    def _answered(self, call: Call, attempt: int, result: kv_pb2.OperationResult) -> None:
        if call.attempt != attempt or call.done:
            return
        self._sent.pop(call, None)
        if result.HasField("error") and self._try_again(call, result.error):
            return
        call.answer(result)

    def _open_answered(self, call: Call, attempt: int, client_id: bytes, error: kv_pb2.Error | None) -> None:
        if call.attempt != attempt or call.done:
            return
        self._sent.pop(call, None)
        if error is None:
            call.opened(client_id)
        elif not self._try_again(call, error):
            call.fail(error_from_proto(error))

    def _try_again(self, call: Call, error: kv_pb2.Error) -> bool:
        if error.code not in RETRIED_CODES:
            return False
        if not error.not_applied:
            call.mark_resend()
        self._hold(call)  # until the next tick or leader: an immediate resend would spin against a dying stream
        return True


def _not_leader(leader_id: int) -> Unavailable:
    hint = f"; the leader is node {leader_id}" if leader_id else " and knows of none"
    return Unavailable(f"this node is not the leader{hint}", code="NOT_LEADER")


def _margin_ms(call: Call) -> float:
    """So much before its deadline is a held write answered: whoever sent it has the same one, and is to hear why."""
    return min(_MAX_MARGIN_MS, (call.deadline_ms - call.started_ms) / 4)


def _held_error(call: Call, unleased: str, stalled: str) -> KvError:
    """What a held call past its time is told."""
    doubt = ". It had been sent before, and that copy may yet be applied: read the key to see" if call.sent else ""
    if unleased:
        error = Unavailable(
            f"{unleased}; see `kvnode status`, and automatic_promotion in the configuration{doubt}",
            code="PRIMARY_LEASE_LOST",
            phase="commit",
        )
    elif stalled:
        error = Unavailable(
            f"{stalled}; see `kvnode status`, and on_replication_stall in the configuration{doubt}",
            code="REPLICATION_STALLED",
            phase="commit",
        )
    else:
        return deadline_error(call)
    error.not_applied = not call.sent
    return error


def _removed_error(call: Call, removed: str) -> Unavailable:
    """Another endpoint may take it, and settle what this one has sent on before."""
    error = Unavailable(removed, code="MEMBER_REMOVED")
    error.not_applied = not call.sent
    return error


def _leadership_lost(unknown: bool) -> Unavailable:
    error = Unavailable("leadership was lost before the operation was settled; send it again", code="LEADERSHIP_LOST")
    error.not_applied = not unknown
    return error
