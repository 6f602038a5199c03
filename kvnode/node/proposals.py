"""From waiting writes to log entries, and from committed entries to answers.

    add() ─► queue ─► flush(): resolve all that wait, then claims for consumers, into ONE entry ─► pending[index]
                                        │ a negative verdict: to the ReadIndex barrier with the prefix it was judged on
    committed(entry): pending[index].term == entry.term ? answer : wait for
    applied(entry):   pending[index].term == entry.term ? answer : not applied, send it again

What a transaction comes to was settled when it was resolved, and a committed entry stays: nobody has to wait for the
leader's own apply to be told, nor for a message that the entry claims. Whoever reads strongly after that waits for it
at the barrier. Answered when it is applied, which then is at once, is an entry that writes to the system database:
this node judges tokens and databases by what it has applied.

A leader resolves nothing before an entry of its own term is committed and applied: the tail that it inherited may
hold writes and request ids that the overlay does not know. When leadership is lost the resolver (and its overlay)
goes, but `pending` stays: whether those entries commit is decided by others, and the log tells us. An entry applied
at that index with the same term is ours; with another term ours is gone for good; and if a snapshot skipped the
index, only the request id can tell, so the operation is sent again as a resend.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import NamedTuple, Protocol

from kvnode.base import limits
from kvnode.base.errors import KvError, NotFound, OutcomeUnknown, Unavailable
from kvnode.base.invariant import invariant
from kvnode.codec.entry import Entry
from kvnode.machine.keyspace import DEFAULT_DATABASE, SYSTEM_DATABASE
from kvnode.machine.queue.arrivals import QueueId
from kvnode.machine.resolve import Batch, RequestId, Resolver
from kvnode.machine.sessions import NODES_OWN
from kvnode.machine.verdict import Accepted, CheckFailed, InFlight, Refused, Rejected, Settled, Verdict
from kvnode.node.barriers import Barriers
from kvnode.node.calls import Answers, Call, DirectAnswers, error_message
from kvnode.node.first_copies import FirstCopies
from kvnode.node.holding import may_hold
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.raft import Raft

# Entries proposed and not yet committed. More would only make each batch smaller; fewer would leave the disk idle
# while the followers' acknowledgements travel.
MAX_PENDING_ENTRIES_COUNT = 4
_new = tuple.__new__  # a NamedTuple in half the time
_TRANSACTION_FROM_COUNT = 3  # from so many operations on that read, SQLite's transaction around that is worth its cost

Body = Accepted | kv_pb2.AtomicWriteResponse | kv_pb2.Error | kv_pb2.OperationResult
"""What a waiter will be told: a verdict or an answer, which becomes a result when it is given; or a whole result."""
_SUCCESS = kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
_CHECK_FAILED = kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED


class PendingEntry(NamedTuple):
    """An entry of ours on its way. `waiters` are answered when it is committed, or, if `is_late`, applied."""

    term: int
    size_bytes: int
    waiters: list[tuple[Call, object]]  # a Body, or a client id
    is_late: bool = False


class DueSource(Protocol):
    """Where the keys whose time has come are found, and what a batch is resolved against (the state)."""

    def reading(self) -> AbstractContextManager[None]:
        """One read transaction around many reads; no apply inside."""

    def due(self, now_ms: int, limit: int) -> list[tuple[bytes, int]]:
        """(key, expire_at_ms) of rows with expire_at_ms <= now_ms, by time."""

    def next_expiry(self) -> int | None:
        """The earliest expire_at_ms of all rows."""


class Claims(Protocol):
    """Whoever wants messages of queues under lease (queue/dispatcher.py)."""

    @property
    def has_claims(self) -> bool:
        """Whether there may be a claim to make."""

    def arrived(self, queue_ids: Iterable[QueueId]) -> None:
        """The entry that is being made brings messages to these queues."""

    def next_claim(self) -> Call | None:
        """The next claim to be resolved, if there is one."""

    def took(self, claim: Call, count: int, index: int) -> None:
        """It is in the entry at `index`, with that many messages; with none it is not, and will not be answered."""


class Proposals:
    """The writes of one node.

    Args:
        make_resolver: called when this node may begin to resolve.
        log_time: log time for the next entry.
        reroute: takes back calls that this node can no longer settle; `unknown` = they may have been applied.
        wake: tells the driver that there is something to flush.
        claims: of queues; made last in each entry, so that they see what it brings.
        takes_write: whether a database that is not the default one still takes this write.
        answers: where those go that say what is committed.
        ride: an entry is about to be made: whoever has writes that waited for one adds them.
    """

    def __init__(
        self,
        raft: Raft,
        due: DueSource,
        barriers: Barriers,
        stats: Stats,
        make_resolver: Callable[[], Resolver],
        log_time: Callable[[], int],
        reroute: Callable[[list[Call], bool], None],
        wake: Callable[[], None],
        claims: Claims,
        takes_write: Callable[[int, kv_pb2.AtomicWriteRequest], bool] = lambda _database, _write: True,
        answers: Answers | None = None,
        ride: Callable[[], None] = lambda: None,
    ) -> None:
        self._ride = ride
        self._answers: Answers = DirectAnswers() if answers is None else answers
        self._takes_write = takes_write
        self._raft = raft
        self._due = due
        self._barriers = barriers
        self._stats = stats
        self._make_resolver = make_resolver
        self._log_time = log_time
        self._reroute = reroute
        self._wake = wake
        self._claims = claims
        self._claims_waited = False  # the entry before had no room for them
        self._resolver: Resolver | None = None
        self._resolver_term = 0
        self._queue: deque[Call] = deque()
        self._queue_bytes = 0
        self._pending: dict[int, PendingEntry] = {}
        self._pending_bytes = 0
        self._answered: dict[int, PendingEntry] = {}  # committed, and not yet applied
        self.is_holding = False  # writes that came while a larger entry is under way
        self._late_index = 0  # the last committed entry whose waiters wait for its apply
        self._first_copies = FirstCopies()

    @property
    def queued_count(self) -> int:
        """Writes that wait for a batch."""
        return len(self._queue)

    @property
    def pending_count(self) -> int:
        """Entries proposed here and not yet settled; what is committed is."""
        return len(self._pending)

    @property
    def awaits_apply(self) -> bool:
        """Whether somebody waits for a committed entry to be applied."""
        return self._late_index > 0

    @property
    def resolving(self) -> bool:
        """Whether this node is a leader that may resolve."""
        return self._resolver is not None

    def add(self, call: Call) -> None:
        """Queue a write, or the opening of a session; answers Unavailable when the queue is full.

        One that may have been applied is queued even above the bound, as the gateway holds it: only its resend can
        settle it, and a refusal would say that nothing was applied.
        """
        if call.operation is not None and not call.size_bytes:
            call.size_bytes = call.operation.ByteSize()
        full = (
            len(self._queue) >= limits.MAX_PROPOSAL_QUEUE_COUNT
            or self._queue_bytes + call.size_bytes > limits.MAX_PROPOSAL_QUEUE_BYTES
        )
        if full and not call.sent:
            call.fail(
                Unavailable("the leader's queue of writes is full; send less at once or retry", code="OVERLOADED")
            )
            return
        self._queue.append(call)
        self._queue_bytes += call.size_bytes
        self._wake()

    def knows(self, call: Call) -> bool:
        """Whether an earlier copy of a write is in the log already, so that this one is answered without an entry."""
        operation, client_id = call.operation, call.origin.client_id
        if self._resolver is None or operation is None or not operation.resend or not client_id:
            return False
        return self._resolver.knows(client_id, call.origin.session_owner, operation.id)

    # Leadership.

    def begin_leadership(self) -> None:
        """An entry of this term is committed and applied, and nothing above it holds data: resolve from here on."""
        if self._resolver is None:
            self._resolver = self._make_resolver()
            self._resolver_term = self._raft.term

    def lose_leadership(self) -> None:
        """Forget the overlay and hand back what was never proposed; what was proposed is settled by the log."""
        self._resolver = None
        calls = list(self._queue)
        self._queue.clear()
        self._queue_bytes = 0
        if calls:
            self._reroute(calls, False)

    # The way in.

    def flush(self, *, tick: bool = False, holds: bool = False) -> bool:
        """Propose what waits, as one entry; with `tick`, also what has fallen due.

        With `holds` a few writes may be left for more to come (holding.py), and `is_holding` says so. They go when
        what is under way is committed, or when the caller says so.

        Returns:
            True when more waits: the loop is to have its turn before the next entry.
        """
        raft = self._raft
        self.is_holding = False
        if self._resolver is None or raft.transferring or raft.sealed:
            return False
        if not raft.is_leader or raft.term != self._resolver_term:
            return False  # leadership was lost a moment ago; the driver has yet to notice it and take the queue back
        self.is_holding = holds and self._resolver.settled and self._may_hold()
        if self.is_holding:
            return False
        while (self._queue or tick or self._claims.has_claims or not self._resolver.settled) and self._has_room():
            if self._resolver.settled and (self._queue or self._claims.has_claims):
                self._ride()
            waited = len(self._queue)
            proposed = self._propose_batch(self._resolver, tick=tick)
            if self._queue and (proposed or len(self._queue) < waited):
                return True
            if not proposed:
                break
            tick = False
        return False

    def tick(self) -> None:
        """Propose an entry if a key has fallen due or a session may have expired."""
        if self._resolver is None:
            return
        next_expiry = self._due.next_expiry()
        if next_expiry is not None and next_expiry <= self._log_time():
            self.flush(tick=True)

    def _may_hold(self) -> bool:
        return may_hold(len(self._queue), sum([len(pending.waiters) for pending in self._pending.values()]))

    def _has_room(self) -> bool:
        return (
            len(self._pending) < MAX_PENDING_ENTRIES_COUNT and self._pending_bytes < limits.MAX_UNCOMMITTED_BYTES // 2
        )

    def _propose_batch(self, resolver: Resolver, *, tick: bool) -> bool:
        index = self._raft.last_index + 1
        log_time_ms = self._log_time()
        batch = resolver.begin(index, log_time_ms)
        waiters: list[tuple[Call, object]] = []
        negatives: list[tuple[Call, kv_pb2.OperationResult]] = []
        if tick and resolver.settled:
            due = self._due.due(log_time_ms, limits.MAX_EXPIRED_KEYS_PER_TICK_COUNT)
            self._stats.expired_keys += batch.tick(due)
            for late_ms in batch.crons_late_ms:
                self._stats.cron_late_ms.observe(late_ms)
        if self._claims_waited and resolver.settled:
            self._resolve_claims(batch, waiters)
        waiting = islice(self._queue, limits.MAX_BATCH_TRANSACTIONS_COUNT)
        readers_count = len([call for call in waiting if not call.is_blind])
        with self._due.reading() if readers_count >= _TRANSACTION_FROM_COUNT else nullcontext():
            self._resolve_queue(resolver, batch, index, waiters, negatives)
        self._claims.arrived(batch.arrived)
        if resolver.settled:
            self._resolve_claims(batch, waiters)
        self._claims_waited = self._claims.has_claims
        proposed = batch.transactions_count
        if proposed:
            payload = batch.payload()
            self._supersede(index)
            at = self._raft.propose(payload)
            invariant(at == index, f"a batch resolved for index {index} landed at {at}")
            is_late = SYSTEM_DATABASE in [call.database for call, _ in waiters]
            self._pending[index] = PendingEntry(self._raft.term, len(payload), waiters, is_late)
            self._pending_bytes += len(payload)
            self._stats.proposals += proposed
            self._stats.batch_transactions.observe(proposed)
            self._stats.batch_bytes.observe(len(payload))
        # Judged on everything up to the end of this batch: its own earlier transactions count too.
        for call, result in negatives:
            self._barriers.add(call, self._raft.last_index, result)
        return bool(proposed)

    def _resolve_queue(
        self,
        resolver: Resolver,
        batch: Batch,
        index: int,
        waiters: list[tuple[Call, object]],
        negatives: list[tuple[Call, kv_pb2.OperationResult]],
    ) -> None:
        queue = self._queue
        left = limits.MAX_BATCH_TRANSACTIONS_COUNT  # a resend costs time, and adds nothing to the batch
        if not resolver.settled:
            return
        while queue and left and _takes_more(batch):
            left -= 1
            call = queue.popleft()
            self._queue_bytes -= call.size_bytes
            if not call.done:
                self._resolve(batch, index, call, waiters, negatives)

    def _resolve(
        self,
        batch: Batch,
        index: int,
        call: Call,
        waiters: list[tuple[Call, object]],
        negatives: list[tuple[Call, kv_pb2.OperationResult]],
    ) -> None:
        operation = call.operation
        if operation is None:
            try:
                waiters.append((call, batch.open_session(call.origin.session_owner)))
            except KvError as error:
                call.fail(error)
            return
        if call.database > DEFAULT_DATABASE and not self._takes_write(call.database, operation.write):
            # Judged here, where the applied state holds all that this leader inherited, and in the log's order: the
            # first chunk of a purge is resolved later than any write that was let through.
            call.fail(_database_gone(call))
            return
        client_id, lowest, database, own_session = call.origin
        request = None
        if client_id:
            owner = NODES_OWN if own_session else database  # as Origin.session_owner, without the call
            request = _new(RequestId, (client_id, operation.id, lowest, operation.resend, owner))
        verdict = batch.add(operation.write, database, request, is_blind=call.is_blind)
        kind = type(verdict)
        if kind is Accepted:
            waiters.append((call, verdict))
            return
        self._not_accepted(verdict, index, call, waiters, negatives)

    def _resolve_claims(self, batch: Batch, waiters: list[tuple[Call, object]]) -> None:
        while _takes_more(batch) and (call := self._claims.next_claim()) is not None:
            assert call.operation is not None
            write = call.operation.write
            if call.database > DEFAULT_DATABASE and not self._takes_write(call.database, write):
                call.fail(_database_gone(call))
                continue
            result = kv_pb2.OperationResult(id=call.operation.id)
            accepted = batch.claim(write.actions[0], call.database, result.write.results.add())
            self._claims.took(call, 0 if accepted is None else len(accepted.results[0].messages), batch.index)
            if accepted is not None:
                result.write.status = _SUCCESS
                result.write.versionstamp = accepted.versionstamp
                waiters.append((call, result))

    def _not_accepted(
        self,
        verdict: Verdict,
        index: int,
        call: Call,
        waiters: list[tuple[Call, object]],
        negatives: list[tuple[Call, kv_pb2.OperationResult]],
    ) -> None:
        if isinstance(verdict, InFlight):
            self._stats.conflicts_resent += 1
            self._join(verdict, index, call, waiters)
        elif isinstance(verdict, Settled):
            self._stats.conflicts_resent += 1
            self._answers.answer(call, result_of(call, settled_body(verdict)))
        else:
            body: Body
            logged = False
            if isinstance(verdict, CheckFailed):
                self._stats.check_failures += 1
                body = kv_pb2.AtomicWriteResponse(status=_CHECK_FAILED, failed_checks=verdict.failed_checks)
                logged = verdict.logged
            elif isinstance(verdict, Rejected):
                body, logged = error_message(verdict.error), verdict.logged
            elif isinstance(verdict, Refused):
                body = error_message(verdict.error)
            else:
                raise TypeError(f"unknown verdict {verdict!r}")
            if logged:
                waiters.append((call, body))
            else:
                negatives.append((call, result_of(call, body)))

    def _join(self, verdict: InFlight, index: int, call: Call, waiters: list[tuple[Call, object]]) -> None:
        """A resend of something in the overlay: answer it with the first copy."""
        assert call.operation is not None
        answered = self._answered.get(verdict.index)
        pending = answered or self._pending.get(verdict.index)
        target = waiters if verdict.index == index else None if pending is None else pending.waiters
        if target is not None:
            body = self._first_copies.body(verdict.index, target, call)
            if body is not None and answered is not None:
                self._answers.answer(call, result_of(call, body))  # type: ignore[arg-type]
                return
            if body is not None:
                target.append((call, body))
                return
        # The first copy's waiters are not here (they were answered at their deadline, say): once its entry is
        # applied the session's outcomes know it.
        self._reroute([call], True)

    def _supersede(self, index: int) -> None:
        """An entry of an earlier term at this index lost its place: this leader's log does not hold it."""
        old = self._take(index)
        if old is not None:
            self._reroute([call for call, _ in old.waiters], False)

    def _take(self, index: int) -> PendingEntry | None:
        pending = self._pending.pop(index, None)
        if pending is not None:
            self._pending_bytes -= pending.size_bytes
        self._first_copies.forget(index)
        return pending

    # The way out.

    def committed(self, entries: Iterable[Entry], now_ms: float) -> None:
        """Answer those who wait for these entries, unless they wait for the apply."""
        if not self._pending:
            return
        for entry in entries:
            pending = self._pending.get(entry.index)
            if pending is None or pending.term != entry.term:
                continue
            if pending.is_late:
                self._late_index = entry.index
                continue
            del self._pending[entry.index]
            self._pending_bytes -= pending.size_bytes
            self._answered[entry.index] = pending  # a resend that comes before the state knows it finds it here
            self._answer(pending.waiters, now_ms)

    def applied(self, entry: Entry, now_ms: float) -> None:
        """Settle what still waits for this entry. The resolver has been told separately (applied_to)."""
        self._late_applied(entry.index)
        if self._answered.pop(entry.index, None) is not None:
            self._first_copies.forget(entry.index)
            return
        pending = self._take(entry.index)
        if pending is None:
            return
        if pending.term != entry.term:
            self._reroute([call for call, _ in pending.waiters], False)
            return
        self._answer(pending.waiters, now_ms)

    def _late_applied(self, index: int) -> None:
        if index >= self._late_index:
            self._late_index = 0

    def _answer(self, waiters: list[tuple[Call, object]], now_ms: float) -> None:
        observe, answers = self._stats.commit_latency_ms.observe, self._answers
        are_direct = answers.are_direct
        for call, body in waiters:
            if call.operation is None:
                answers.opened(call, body)  # type: ignore[arg-type]
                continue
            observe(now_ms - call.started_ms)
            result = result_of(call, body)  # type: ignore[arg-type]
            if are_direct:
                call.answer(result)
            else:
                answers.answer(call, result)

    def applied_to(self, index: int) -> None:
        """The state shows everything up to `index`: the overlay below may go."""
        if self._resolver is not None:
            self._resolver.applied(index)

    def skipped_to(self, index: int) -> None:
        """A snapshot replaced everything up to `index`: only request ids can tell what became of our entries."""
        self._late_applied(index)
        for at in [at for at in self._answered if at <= index]:
            del self._answered[at]
            self._first_copies.forget(at)
        for at in [at for at in self._pending if at <= index]:
            pending = self._take(at)
            if pending is not None:
                self._reroute([call for call, _ in pending.waiters], True)

    def sweep(self, now_ms: float) -> None:
        """Answer what is past its deadline: not applied while queued, unknown once proposed."""
        if self._queue and any(now_ms >= call.deadline_ms for call in self._queue):
            kept: deque[Call] = deque()
            for call in self._queue:
                if now_ms < call.deadline_ms:
                    kept.append(call)
                    continue
                self._queue_bytes -= call.size_bytes
                call.fail(deadline_error(call))
            self._queue = kept
        for pending in self._pending.values():
            for call, _ in pending.waiters:
                if now_ms >= call.deadline_ms:
                    call.sent = True
                    call.fail(deadline_error(call))


def _takes_more(batch: Batch) -> bool:
    return batch.transactions_count < limits.MAX_BATCH_TRANSACTIONS_COUNT and batch.size_bytes < limits.MAX_BATCH_BYTES


def _database_gone(call: Call) -> KvError:
    error = NotFound("the database was deleted")
    error.not_applied = not call.sent
    return error


def deadline_error(call: Call) -> KvError:
    """What a call past its deadline is told."""
    is_read = call.operation is not None and call.operation.HasField("read")
    if call.sent and not is_read:
        return OutcomeUnknown(
            "the deadline passed before a majority in enough data centers confirmed the write; it may still be "
            "applied: send it again under the same request id to learn its outcome",
            code="DEADLINE_EXCEEDED",
        )
    return KvError(
        "DEADLINE_EXCEEDED",
        "the deadline passed before the leader answered the read; allow more time, or check `kvnode status`"
        if call.sent
        else "the deadline passed while no leader could take the operation; check `kvnode status`, then retry",
        phase="leader",
    )


def result_of(call: Call, body: Body) -> kv_pb2.OperationResult:
    """The result of a call, from what was said about it."""
    if isinstance(body, kv_pb2.OperationResult):
        return body
    assert call.operation is not None
    result = kv_pb2.OperationResult(id=call.operation.id)
    if isinstance(body, Accepted):
        write = result.write
        write.status = _SUCCESS
        write.versionstamp = body.versionstamp
        if body.results:
            write.results.extend(body.results)
    elif isinstance(body, kv_pb2.Error):
        result.error.CopyFrom(body)
    else:
        result.write.CopyFrom(body)
    return result


def settled_body(verdict: Settled) -> Body:
    """The body of an outcome that the session already holds."""
    if verdict.error is not None:
        return error_message(verdict.error)
    if verdict.failed_checks:
        return kv_pb2.AtomicWriteResponse(status=_CHECK_FAILED, failed_checks=verdict.failed_checks)
    response = kv_pb2.AtomicWriteResponse(status=_SUCCESS, versionstamp=verdict.versionstamp)
    if verdict.lost_actions:
        lost = set(verdict.lost_actions)
        response.results.extend(kv_pb2.QueueActionResult(lost=at in lost) for at in range(max(lost) + 1))
    return response
