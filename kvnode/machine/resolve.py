"""Resolve: what the leader does to a transaction before it enters the log.

Theory of operation. Checks, sums, suffix keys and range deletes are judged once, here, against the state and the
overlay of what was resolved before; what comes out are facts that every replica applies alike. All runs on one thread,
synchronously: `begin` a batch for the log index it will get, `add` the waiting requests to it, take its `payload` and
propose it. If consensus will not take it, `discard` it. When the state shows an index, say so with `applied`.

A Resolver lives as long as a term of leadership: made when the new leader's own no-op is applied (so that the state
shows everything it inherited), thrown away when leadership is lost.

Within a transaction mutations apply in order and later ones see earlier ones. The overlay is written as they go; an
error rolls it back to where the transaction began, so that a transaction with one bad part changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.base.invariant import InvariantViolation, invariant
from kvnode.codec.row import Row
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine import sessions, sums
from kvnode.machine.admission import admit
from kvnode.machine.batch_rows import FACT_OVERHEAD_BYTES, BatchRows
from kvnode.machine.keyspace import SESSION_PREFIX, database_prefix, session_key
from kvnode.machine.overlay import Overlay
from kvnode.machine.passing import mark_passing
from kvnode.machine.queue.arrivals import Arrivals, QueueId
from kvnode.machine.queue.counters import Counters
from kvnode.machine.queue.grace import LeaseGrace
from kvnode.machine.queue.keys import database_of_key, is_event_key
from kvnode.machine.queue.transaction import QueueTransaction
from kvnode.machine.queue.waiting import WaitingRows
from kvnode.machine.session_census import SessionCensus, is_evictable, too_many_sessions
from kvnode.machine.sessions import Outcome, RequestId, SessionWindow
from kvnode.machine.state_reader import StateReader
from kvnode.machine.validate import resolved_too_large
from kvnode.machine.verdict import Accepted, CheckFailed, Rejected, Settled, Verdict
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.proto.kv.v1 import kv_pb2

__all__ = ["Batch", "RequestId", "Resolver"]

# Enum members are plain ints at run time; named once, because a look-up through the module costs on the hot path.
_SET = int(kv_pb2.MUTATION_TYPE_SET)
_DELETE = int(kv_pb2.MUTATION_TYPE_DELETE)
_SUMS = frozenset(map(int, (kv_pb2.MUTATION_TYPE_SUM, kv_pb2.MUTATION_TYPE_MIN, kv_pb2.MUTATION_TYPE_MAX)))
_DELETE_RANGE = int(kv_pb2.MUTATION_TYPE_DELETE_RANGE)
_SET_EXPIRY = int(kv_pb2.MUTATION_TYPE_SET_EXPIRY)
_SET_SUFFIX = int(kv_pb2.MUTATION_TYPE_SET_SUFFIX_VERSIONSTAMPED_KEY)
_FACT_DELETE = log_pb2.FACT_KIND_DELETE
_COMMITTED = int(log_pb2.OUTCOME_KIND_COMMITTED)
_new = tuple.__new__  # a NamedTuple in half the time
_TRANSACTION_OVERHEAD_BYTES = 40
_POSITION_BYTES = 3  # of one queue action, at most


class Resolver:
    """Resolves the batches of one term of leadership.

    Args:
        state: shows exactly the applied index at every call.
        epoch: of the versionstamps to be given.
        last_led_ms: log time until which somebody is known to have led, that of the state at least: leases ran on until
            then (queue/grace.py). None: there are none.
        max_value_bytes: that a database, by its number, takes: for what a sum makes of a value.
    """

    __slots__ = (
        "_epoch",
        "_grace",
        "_last_led_ms",
        "_log_time_ms",
        "_newest",
        "applied_index",
        "arrivals",
        "census",
        "max_value_bytes",
        "overlay",
        "state",
        "windows",
    )

    def __init__(
        self,
        state: StateReader,
        epoch: int,
        last_led_ms: int | None = None,
        max_value_bytes: Callable[[int], int] = lambda database: limits.MAX_VALUE_BYTES,
    ) -> None:
        self.state = state
        self.max_value_bytes = max_value_bytes
        self.overlay = Overlay(state)
        self.arrivals = Arrivals()
        self.windows: dict[bytes, SessionWindow] = {}
        self.applied_index = 0
        self._epoch = epoch
        self._log_time_ms = 0
        self._newest: Batch | None = None
        self._last_led_ms = last_led_ms
        self._grace: LeaseGrace | None = None
        self.census: SessionCensus | None = None  # taken when the first session of the term is opened

    def begin(self, index: int, log_time_ms: int) -> Batch:
        """A batch for the entry at `index`, judged at `log_time_ms`: max(the log time before, the leader's clock).

        The batch before it is closed: it was proposed, or discarded, or stayed empty and was dropped.
        """
        invariant(log_time_ms >= self._log_time_ms, f"log time goes back from {self._log_time_ms} to {log_time_ms}")
        newest = self._newest
        if newest is not None and newest.index == index:
            invariant(not newest.transactions_count, f"entry {index} is resolved twice")
            self.discard(newest)
        elif newest is not None:
            newest.close()  # so that this one finds its counters in their rows
        self._log_time_ms = log_time_ms
        self.overlay.begin(index)
        batch = self._newest = Batch(self, self._epoch, index, log_time_ms)
        if not self.settled:
            if self._grace is None and self._last_led_ms is not None:
                self._grace = LeaseGrace(self.state, self._last_led_ms, max(0, log_time_ms - self._last_led_ms))
            if self._grace is not None:
                batch.extend_leases(self._grace)
        return batch

    @property
    def settled(self) -> bool:
        """Whether the leases that the leader found have been seen to; until then a batch takes nothing else."""
        return self._last_led_ms is None or (self._grace is not None and self._grace.done)

    def discard(self, batch: Batch) -> None:
        """Withdraw the newest batch, which did not enter the log: as if it had never been resolved."""
        invariant(batch is self._newest, f"only the newest batch can be withdrawn, not that of entry {batch.index}")
        self.overlay.discard(batch.index)
        batch.withdraw()
        self._newest = None

    def applied(self, index: int) -> None:
        """The state now shows `index`: free the overlay up to it."""
        self.applied_index = index
        self.overlay.free(index)
        self.arrivals.free(index)

    def window(self, client_id: bytes) -> SessionWindow | None:
        """The session's window, loaded at first sight. None when there is no such session."""
        window = self.windows.get(client_id)
        if window is None:
            # The overlay knows a session that a tick in flight has closed.
            row = self.overlay.get(session_key(client_id))
            window = None if row is None else sessions.load_window(self.state, client_id, row)
            if window is not None and window.expire_at_ms > self._log_time_ms:
                self.windows[client_id] = window
        return window

    def knows(self, client_id: bytes, owner: int, sequence: int) -> bool:
        """Whether that write of that client is in the log already: a resend of it changes nothing more."""
        window = self.window(client_id)
        return window is not None and window.owner in (owner, None) and sequence in window.outcomes


class Batch:
    """One entry in the making. Made by Resolver.begin.

    Attributes:
        index: the log index it is resolved for.
        log_time_ms: what expiry is judged by.
        transactions_count: how many are in it.
        size_bytes: of the payload, never underestimated.
        crons_late_ms: of each tick of a cron that it fires, how late that is.
        arrived: queues to which it brings messages that are due.
        passes: whether messages only pass through, but for those that are left waiting (passing.py).
        overlay, resolver: of the term; counters: of its queues; waiting: rows of messages that it makes.
    """

    __slots__ = (
        "_closed_sessions",
        "_grace",
        "_opened_sessions",
        "_payload",
        "_refreshed_sessions",
        "_rows",
        "_stamp",
        "_transactions",
        "arrived",
        "counters",
        "crons_late_ms",
        "index",
        "log_time_ms",
        "overlay",
        "passes",
        "resolver",
        "size_bytes",
        "transactions_count",
        "waiting",
    )

    def __init__(self, resolver: Resolver, epoch: int, index: int, log_time_ms: int) -> None:
        self.resolver = resolver
        self.overlay = resolver.overlay
        self.counters = Counters(resolver.overlay)
        self.index = index
        self.log_time_ms = log_time_ms
        self._rows = BatchRows(self)
        self._payload = log_pb2.EntryPayload(epoch=epoch, log_time_ms=log_time_ms)
        self._transactions = self._payload.transactions
        self._stamp = versionstamp(epoch, index, 0)[:8]
        self._opened_sessions: list[bytes] = []
        self._closed_sessions: list[SessionWindow] = []
        self._refreshed_sessions: list[tuple[SessionWindow, int]] = []
        self._grace: tuple[LeaseGrace, bytes] | None = None
        self.crons_late_ms: list[int] = []
        self.arrived: dict[QueueId, None] = {}
        self.waiting = WaitingRows(resolver.overlay)
        self.passes = True
        self.size_bytes = 32
        self.transactions_count = 0

    @property
    def judged_index(self) -> int:
        """The last entry that a negative answer of this batch may rest on."""
        return self.index if self.transactions_count else self.index - 1

    def payload(self) -> bytes:
        """The entry's data. Nothing more may be added to it."""
        self.close()
        encoded = self._payload.SerializeToString()
        return mark_passing(encoded) if self.passes else encoded

    def close(self) -> None:
        """The entry is full: write what it writes once."""
        transactions = self._transactions
        for order, row in self.waiting.close():
            self.set_row(transactions[order], row)
            self.passes = False
        for order, row in self.counters.close():
            self.set_row(transactions[order], row)

    def add(
        self, write: kv_pb2.AtomicWriteRequest, database: int, request: RequestId | None, *, is_blind: bool = False
    ) -> Verdict:
        """Judge one transaction, and put it in the batch if it holds.

        Args:
            write: already validated against the limits (validate.py).
            database: the number of the database it is for.
            request: names it, so that a copy of it is not applied again; None for a write that nobody sends again.
            is_blind: validate_write said so: there is nothing but mutations in it.
        """
        window = None
        if request is not None:
            resolver = self.resolver
            known = resolver.windows.get(request.client_id) or resolver.window(request.client_id)
            admitted = admit(known, request, self.log_time_ms, resolver.applied_index)
            if not isinstance(admitted, SessionWindow):
                return admitted
            window = admitted
        prefix = database_prefix(database)
        if not is_blind and write.checks:
            failed = self._failed_checks(write, prefix)
            if failed:
                return self._check_failed(failed, request, window)
        order = self.transactions_count
        stamp = self._stamp + order.to_bytes(2, "big")
        mark, size_bytes = self.overlay.mark(), self.size_bytes
        transaction = self._transactions.add()
        results: tuple[kv_pb2.QueueActionResult, ...] = ()
        try:
            for mutation in write.mutations:
                self.passes = False
                self._mutate(transaction, mutation, database, prefix, stamp)
                if self.size_bytes - size_bytes > limits.MAX_RESOLVED_TRANSACTION_BYTES:
                    raise resolved_too_large()
            if not is_blind and (write.actions or write.enqueues):
                results = self._queues(transaction, write, database, stamp, size_bytes)
        except KvError as error:
            self.overlay.rollback(mark)
            self.size_bytes = size_bytes
            del self._transactions[-1]
            return self._rejected(error, request, window)
        self._count_transaction()
        if request is not None and window is not None:
            lost: tuple[int, ...] = ()
            if results:
                lost = tuple(position for position, result in enumerate(results) if result.lost)
                transaction.lost_actions.extend(lost)
                self.size_bytes += _POSITION_BYTES * len(lost)
            self._remember(transaction, request, window, _new(Settled, (_COMMITTED, stamp, (), None, lost)))
        return _new(Accepted, (stamp, order, results))

    def claim(
        self, action: kv_pb2.QueueAction, database: int, into: kv_pb2.QueueActionResult | None = None
    ) -> Accepted | None:
        """Add a transaction that puts messages of a queue under lease; None, and nothing is added, when none is due.

        Args:
            action: a claim.
            database: of the queue.
            into: an empty result, to be filled in place: what is claimed is copied once less.
        """
        order = self.transactions_count
        stamp = self._stamp + order.to_bytes(2, "big")
        transaction = self._transactions.add()
        queues = QueueTransaction(self._rows.of(transaction), database, stamp)
        result = queues.act(action, into)
        if not result.messages:
            del self._transactions[-1]
            return None
        queues.finish()
        self.passes &= queues.passes
        self._count_transaction()
        return Accepted(stamp, order, (result,))

    def open_session(self, owner: int) -> bytes:
        """Add a transaction that opens a session; the answer is its client id, valid once the entry commits.

        Args:
            owner: who alone may write under it: the number of a database, or sessions.NODES_OWN.

        Raises:
            Unavailable: code TOO_MANY_SESSIONS.
        """
        resolver = self.resolver
        census = resolver.census = resolver.census or SessionCensus(resolver.state, resolver.overlay)
        if len(census) >= limits.MAX_SESSIONS_COUNT:
            self._evict_session(census)
        self.passes = False
        client_id = self._stamp + self.transactions_count.to_bytes(2, "big")
        self._transactions.add(opens_session=True, session_owner=owner)
        self._count_transaction()
        expire_at_ms = self.log_time_ms + sessions.SESSION_LIFE_MS
        resolver.windows[client_id] = SessionWindow(client_id, owner, expire_at_ms)
        census.opened(client_id, expire_at_ms)
        self._opened_sessions.append(client_id)
        return client_id

    def tick(self, due: Sequence[tuple[bytes, int]]) -> int:
        """Add one transaction that removes what has expired, ends leases and fires crons; returns how many of these.

        Args:
            due: (key, expire_at_ms) as the state lists them, sessions among them. What was changed since, or is not
                yet due at this batch's log time, is left alone.
        """
        self.passes = False
        transaction = self._transactions.add()
        count = 0
        queues: dict[int, QueueTransaction] = {}
        for key, expire_at_ms in due:
            if expire_at_ms > self.log_time_ms:
                continue
            if self.size_bytes > limits.MAX_BATCH_BYTES:
                break  # the rest is still due in the next tick
            if key.startswith(SESSION_PREFIX):
                count += self._expire_session(transaction, key, expire_at_ms)
                continue
            row = self.overlay.get(key)
            if row is None or row.expire_at_ms != expire_at_ms:
                continue
            if is_event_key(key):
                self._expire_event(transaction, row, queues)
            else:
                transaction.facts.add(kind=log_pb2.FACT_KIND_EXPIRE, key=key)
                self.overlay.put(key, None)
                self.size_bytes += len(key) + FACT_OVERHEAD_BYTES
            count += 1
        for touched in queues.values():
            touched.finish()
            self.crons_late_ms.extend(touched.crons_late_ms)
        if count:
            self._count_transaction()
        else:
            del self._transactions[-1]
        return count

    def extend_leases(self, grace: LeaseGrace) -> None:
        """Add a transaction that gives leases the time back in which nobody led, as far as one entry goes."""
        place = grace.place
        extended = grace.next(limits.MAX_LEASES_EXTENDED_PER_ENTRY_COUNT)
        if extended:
            self.passes = False
            self._grace = grace, place
            stamp = self._stamp + self.transactions_count.to_bytes(2, "big")
            transaction = self._transactions.add()
            for row in extended:
                self.set_row(transaction, row._replace(versionstamp=stamp))
            self._count_transaction()

    def withdraw(self) -> None:
        """Undo what this batch did beside the overlay (Resolver.discard)."""
        if self._grace is not None:
            grace, place = self._grace
            grace.rewind(place)
        windows, census = self.resolver.windows, self.resolver.census
        for client_id in self._opened_sessions:
            del windows[client_id]
            if census is not None:
                census.closed(client_id)
        for window in self._closed_sessions:
            windows[window.client_id] = window
            if census is not None:
                census.opened(window.client_id, window.expire_at_ms)
        for window, expire_at_ms in reversed(self._refreshed_sessions):
            window.expire_at_ms = expire_at_ms
        # A greatest sequence that is too high costs a look-up and nothing more, so it stays.
        for window in windows.values():
            for sequence in [s for s, outcome in window.outcomes.items() if outcome.index == self.index]:
                del window.outcomes[sequence]

    def live(self, key: bytes) -> Row | None:
        """The newest row of a key, unless it has expired."""
        row = self.overlay.get(key)
        if row is not None and 0 < row.expire_at_ms <= self.log_time_ms:
            return None
        return row

    def _failed_checks(self, write: kv_pb2.AtomicWriteRequest, prefix: bytes) -> list[int]:
        failed = []
        for position, check in enumerate(write.checks):
            row = self.live(prefix + check.key)
            if (b"" if row is None else row.versionstamp) != check.versionstamp:
                failed.append(position)
        return failed

    def _mutate(
        self,
        transaction: log_pb2.Transaction,
        mutation: kv_pb2.Mutation,
        database: int,
        prefix: bytes,
        stamp: bytes,
    ) -> None:
        kind = mutation.type
        key = prefix + mutation.key
        if kind == _SET:
            value = mutation.value
            expire_at_ms = mutation.expire_at_ms
            row = _new(Row, (key, value.data, value.encoding, stamp, expire_at_ms if expire_at_ms > 0 else 0))
            self.set_row(transaction, row)
        elif kind == _DELETE:
            self.delete_row(transaction, key)
        elif kind in _SUMS:
            data, encoding = sums.combine(mutation, self.live(key), self.resolver.max_value_bytes(database))
            self.set_row(transaction, Row(key, data, encoding, stamp))
        elif kind == _SET_SUFFIX:
            key += b"\x02" + stamp.hex().encode() + b"\x00"
            value = mutation.value
            self.set_row(transaction, Row(key, value.data, value.encoding, stamp, max(mutation.expire_at_ms, 0)))
        elif kind == _DELETE_RANGE:
            self._delete_range(transaction, key, prefix + mutation.end_key)
        elif kind == _SET_EXPIRY:
            self._set_expiry(transaction, key, stamp, max(mutation.expire_at_ms, 0))
        else:
            raise InvalidRequest(
                "UNKNOWN_MUTATION",
                f"Invalid mutation kind or arguments. Mutation type {kind} is not known to this node.",
            )

    def set_row(self, transaction: log_pb2.Transaction, row: Row) -> None:
        """A fact: this row."""
        key, value, encoding, _, expire_at_ms = row
        fact = transaction.facts.add()
        fact.key = key
        fact.value = value
        fact.encoding = encoding
        if expire_at_ms:
            fact.expire_at_ms = expire_at_ms
        self.overlay.put(key, row)
        self.size_bytes += len(key) + len(value) + FACT_OVERHEAD_BYTES

    def _set_expiry(self, transaction: log_pb2.Transaction, key: bytes, stamp: bytes, expire_at_ms: int) -> None:
        # The log carries the whole row: a fact never depends on the row before it. What has expired stays gone.
        row = self.live(key)
        if row is not None:
            self.set_row(transaction, row._replace(versionstamp=stamp, expire_at_ms=expire_at_ms))

    def delete_row(self, transaction: log_pb2.Transaction, key: bytes) -> None:
        """A fact: no such row."""
        fact = transaction.facts.add()
        fact.kind = _FACT_DELETE
        fact.key = key
        self.overlay.put(key, None)
        self.size_bytes += len(key) + FACT_OVERHEAD_BYTES

    def _delete_range(self, transaction: log_pb2.Transaction, start: bytes, end: bytes) -> None:
        limit = limits.MAX_DELETE_RANGE_KEYS_COUNT
        if self.overlay.live_keys_count(start, end, limit) > limit:
            raise InvalidRequest(
                "DELETE_RANGE_TOO_LARGE",
                f"The range holds more than {limit} keys; nothing was deleted. Page through it: list keys, and delete "
                "up to each page's last key.",
            )
        transaction.facts.add(kind=log_pb2.FACT_KIND_DELETE_RANGE, key=start, end_key=end)
        self.overlay.delete_range(start, end)
        self.size_bytes += len(start) + len(end) + FACT_OVERHEAD_BYTES

    def _queues(
        self,
        transaction: log_pb2.Transaction,
        write: kv_pb2.AtomicWriteRequest,
        database: int,
        stamp: bytes,
        size_bytes: int,
    ) -> tuple[kv_pb2.QueueActionResult, ...]:
        # Actions first: an ack makes room for the message that its transaction enqueues.
        queues = QueueTransaction(self._rows.of(transaction), database, stamp, len(write.enqueues))
        results = []
        for action in write.actions:
            results.append(queues.act(action))
            if self.size_bytes - size_bytes > limits.MAX_RESOLVED_TRANSACTION_BYTES:
                raise resolved_too_large()
        for position, enqueue in enumerate(write.enqueues):
            queues.enqueue(enqueue, position)
        queues.finish()
        self.passes &= queues.passes
        return tuple(results)

    def _expire_event(self, transaction: log_pb2.Transaction, row: Row, queues: dict[int, QueueTransaction]) -> None:
        database = database_of_key(row.key)
        touched = queues.get(database)
        if touched is None:
            stamp = self._stamp + self.transactions_count.to_bytes(2, "big")
            touched = queues[database] = QueueTransaction(self._rows.of(transaction), database, stamp)
        touched.expired(row)

    def _check_failed(self, failed: list[int], request: RequestId | None, window: SessionWindow | None) -> CheckFailed:
        if request is None or window is None or not request.resend:
            return CheckFailed(tuple(failed), False)
        transaction = self._transactions.add(outcome=log_pb2.OUTCOME_KIND_CHECK_FAILED, failed_checks=failed)
        self._log_negative(transaction, request, window, Settled(transaction.outcome, b"", tuple(failed), None))
        return CheckFailed(tuple(failed), True)

    def _rejected(self, error: KvError, request: RequestId | None, window: SessionWindow | None) -> Rejected:
        if request is None or window is None or not request.resend:
            return Rejected(error, False)
        transaction = self._transactions.add(
            outcome=log_pb2.OUTCOME_KIND_REJECTED, error_code=error.code, error_message=error.message
        )
        self._log_negative(transaction, request, window, Settled(transaction.outcome, b"", (), error))
        return Rejected(error, True)

    def _log_negative(
        self, transaction: log_pb2.Transaction, request: RequestId, window: SessionWindow, settled: Settled
    ) -> None:
        self.size_bytes += transaction.ByteSize()
        self._count_transaction()
        self._remember(transaction, request, window, settled)

    def _remember(
        self, transaction: log_pb2.Transaction, request: RequestId, window: SessionWindow, settled: Settled
    ) -> None:
        """The transaction carries its request id, and the window knows its outcome."""
        sequence = request.sequence
        transaction.client_id = window.client_id
        transaction.sequence = sequence
        transaction.lowest_unanswered = window.lowest_unanswered
        window.outcomes[sequence] = _new(Outcome, (self.index, self.transactions_count - 1, settled))
        window.max_sequence = max(window.max_sequence, sequence)
        expire_at_ms = sessions.refreshed_expiry(window.expire_at_ms, self.log_time_ms)
        if expire_at_ms != window.expire_at_ms:
            self._refreshed_sessions.append((window, window.expire_at_ms))
            window.expire_at_ms = expire_at_ms

    def _count_transaction(self) -> None:
        if self.transactions_count >= limits.MAX_ENTRY_TRANSACTIONS_COUNT:
            raise InvariantViolation("an entry is over its transactions")
        self.transactions_count += 1
        self.size_bytes += _TRANSACTION_OVERHEAD_BYTES

    def _expire_session(self, transaction: log_pb2.Transaction, key: bytes, expire_at_ms: int) -> int:
        window = self.resolver.window(key[len(SESSION_PREFIX) :])
        if window is None or window.expire_at_ms != expire_at_ms:
            return 0
        return self._close_session(transaction, window)

    def _evict_session(self, census: SessionCensus) -> None:
        """Close the session that has been idle longest, or raise TOO_MANY_SESSIONS."""
        client_id = census.idle_longest(self._expiry)
        window = self.resolver.window(client_id)
        if window is None or not is_evictable(window.expire_at_ms, self.log_time_ms):
            raise too_many_sessions()
        self._close_session(self._transactions.add(), window)
        self._count_transaction()

    def _expiry(self, client_id: bytes) -> int:
        window = self.resolver.window(client_id)
        return 0 if window is None else window.expire_at_ms

    def _close_session(self, transaction: log_pb2.Transaction, window: SessionWindow) -> int:
        key = session_key(window.client_id)
        if self.resolver.census is not None:
            self.resolver.census.closed(window.client_id)
        transaction.expired_sessions.append(window.client_id)
        self.overlay.put(key, None)
        self.resolver.windows.pop(window.client_id, None)
        self._closed_sessions.append(window)
        self.size_bytes += FACT_OVERHEAD_BYTES
        return 1
