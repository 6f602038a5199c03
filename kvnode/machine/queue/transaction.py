"""What one transaction does to the queues of its database.

Theory of operation. A message is in one of these states, and each arrow is part of some transaction:

                 claim                      ack
    waiting ────────────────► under lease ───────► gone
      ▲  ▲                        │  │
      │  └── nack, release, ──────┘  └── the schedule is exhausted ──► dead letter, and keys_if_undelivered
    enqueue   lease expired                                                │
      └───────────────────────────── requeue ─────────────────────────────┘

A lease is current while its row exists and has not expired by log time; whoever names one that is not gets LEASE_LOST,
and nothing of his transaction happens. So a message has one holder at a time in the order of the log, and what a
handler writes together with its ack happens once.

A claim takes what is due in the order of due times: from what is *applied*, passing over what entries in flight have
taken already, and from what has arrived by entries in flight, its own among them (arrivals.py). So a message can be
enqueued and claimed in one entry. A message that was in flight when it fell due is found a moment later, when that is
applied. Purge and requeue take from what is applied alone. Everything that is looked up by its key (leases, messages,
counters) is seen through the overlay, as checks are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from kvnode.base import limits
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.row import Row
from kvnode.machine.keyspace import database_prefix
from kvnode.machine.queue import errors, keys, schedule
from kvnode.machine.queue.arrivals import QueueId
from kvnode.machine.queue.cron import Crons
from kvnode.machine.queue.push import Pushes
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2

_PASSING = frozenset(("claim", "ack", "extend"))
_V8 = int(kv_pb2.VALUE_ENCODING_V8)
_PLAIN = 0  # the encoding of a row that is no user's value
_NUMBER_BYTES = 2
# Messages are built field by field: the keywords of a constructor cost twice as much. Most have this schedule.
_WITH_DEFAULT_SCHEDULE = rows.MessageRow(backoff_intervals_ms=limits.DEFAULT_BACKOFF_INTERVALS_MS).SerializeToString()


class TransactionRows(Protocol):
    """What a transaction in the making can read and write. Keys carry their 4-byte prefix."""

    @property
    def log_time_ms(self) -> int:
        """What leases and due times are judged by."""

    def live(self, key: bytes) -> Row | None:
        """The newest row, unless it has expired."""

    def newest(self, row: Row) -> Row | None:
        """What became of a row of the applied state in the entries in flight."""

    def scan_applied(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """Rows of the applied state, in key order."""

    def put(self, row: Row) -> None:
        """A fact: this row."""

    def remove(self, key: bytes) -> None:
        """A fact: no such row."""

    def put_counters(self, key: bytes, counters: rows.QueueRow, stamp: bytes) -> None:
        """The row of a queue: a fact of the entry (counters.py). Nobody changes `counters` from here on."""

    def counters(self, row: Row) -> rows.QueueRow:
        """What the row of a queue holds; the caller's own copy."""

    def put_new(self, row: Row) -> None:
        """A fact, unless the same entry removes it: this waiting row, of a message that has just been made."""

    def depart(self, key: bytes) -> None:
        """A fact, unless the same entry has put it as new: no such waiting row."""

    def arrive(self, queue_id: QueueId, key: bytes) -> None:
        """The waiting row of that key, just put, is of a message that is due."""

    def arrived(self, queue_id: QueueId) -> list[Row]:
        """The waiting rows of messages that are due, as far as only entries in flight hold them."""


class QueueTransaction:
    """The queue part of one transaction. `finish` writes the counters that it changed.

    Args:
        access: the transaction.
        database: whose queues.
        stamp: the transaction's versionstamp.
        enqueues_count: numbers below this belong to its enqueues.

    Attributes:
        passes: whether messages only pass through (machine/passing.py), but for new ones that are left waiting.
    """

    __slots__ = (
        "_access",
        "_bytes_left",
        "_database",
        "_leases_count",
        "_messages_count",
        "_queues",
        "_stamp",
        "crons_late_ms",
        "now_ms",
        "passes",
    )

    def __init__(self, access: TransactionRows, database: int, stamp: bytes, enqueues_count: int = 0) -> None:
        self._access = access
        self._database = database
        self._stamp = stamp
        self._queues: dict[str, rows.QueueRow] = {}
        self._messages_count = enqueues_count
        self._leases_count = 0
        self._bytes_left = limits.MAX_QUEUE_ACTION_BYTES
        self.now_ms = access.log_time_ms
        self.passes = True
        self.crons_late_ms: list[int] = []  # of each tick that was fired

    def enqueue(self, request: kv_pb2.Enqueue, position: int) -> None:
        """A message for later, or for now. Raises InvalidRequest: QUEUE_FULL, BAD_DEADLINE, TOO_MANY_QUEUES."""
        due_ms = self._due(request)
        message = self.message_of(request)
        self._make_room(message.queue)
        self._add(message, self._id(position), due_ms)

    def message_of(self, request: kv_pb2.Enqueue) -> rows.MessageRow:
        """What is to be delivered."""
        if request.no_retries or request.backoff_intervals_ms:
            message = rows.MessageRow()
            if not request.no_retries:
                message.backoff_intervals_ms.extend(request.backoff_intervals_ms)
        else:
            message = rows.MessageRow.FromString(_WITH_DEFAULT_SCHEDULE)
        payload = request.payload
        message.payload = payload.data
        message.encoding = payload.encoding
        message.enqueued_at_ms = self.now_ms
        message.queue = request.queue or keys.DEFAULT_QUEUE
        if request.keys_if_undelivered:
            message.keys_if_undelivered.extend(request.keys_if_undelivered)
        return message

    def send(self, message: rows.MessageRow) -> bytes:
        """A message of the machine's own, due now; its id. Raises InvalidRequest: QUEUE_FULL, TOO_MANY_QUEUES."""
        self._make_room(message.queue)
        message_id = self._id(self._messages_count)
        self._messages_count += 1
        self._add(message, message_id, self.now_ms)
        return message_id

    def act(self, action: kv_pb2.QueueAction, into: kv_pb2.QueueActionResult | None = None) -> kv_pb2.QueueActionResult:
        """One action; its result is `into`, or a new one.

        Raises:
            InvalidRequest: LEASE_LOST, QUEUE_FULL, QUEUE_NOT_EMPTY, DEAD_LETTER_NOT_FOUND, TOO_MANY_QUEUES,
                CRON_EXISTS, CRON_NOT_FOUND, TOO_MANY_CRONS, PUSH_NOT_CONFIGURED, PUSH_SECRET_MISSING.
        """
        result = kv_pb2.QueueActionResult() if into is None else into
        kind = action.WhichOneof("action")
        if kind not in _PASSING:
            self.passes = False
        if kind == "claim":
            self._claim(action.claim, result)
        elif kind in _WITH_LEASE:
            named = getattr(action, kind)
            lease = self._access.live(keys.lease_key(self._database, named.lease))
            if lease is not None:
                _WITH_LEASE[kind](self, lease, named)
            elif action.skip_if_lost:
                result.lost = True
            else:
                raise errors.lease_lost(named.lease)
        elif kind == "configure":
            self._configure(action.configure)
        elif kind == "requeue":
            result.count = self._requeue(action.requeue)
        elif kind == "purge":
            result.count = self._purge(action.purge)
        elif kind == "remove":
            self._remove(action.remove.queue)
        elif kind == "cron_set":
            result.next_at_ms = self._crons.set(action.cron_set)
        elif kind == "cron_delete":
            self._crons.delete(action.cron_delete.name)
        elif kind == "push_note":
            self._pushes.note(action.push_note, self.now_ms)
        else:
            raise errors.unknown_action()
        return result

    def expired(self, row: Row) -> None:
        """The time of a lease, or of a cron's tick, has come."""
        if not keys.is_tick_key(row.key):
            self._lose(row)
            return
        late_ms = self._crons.tick(row)
        if late_ms is not None:
            self.crons_late_ms.append(late_ms)

    def finish(self) -> None:
        """Write the counters of the queues that were touched."""
        for name, queue in self._queues.items():
            self._access.put_counters(keys.queue_key(self._database, name), queue, self._stamp)

    @property
    def _crons(self) -> Crons:
        return Crons(self._access, self._database, self._stamp, self)

    # Messages.

    def _due(self, request: kv_pb2.Enqueue) -> int:
        if not request.due_at_ms:
            return self.now_ms + request.delay_ms
        latest_ms = self.now_ms + limits.MAX_QUEUE_DELAY_MS + limits.MAX_CLIENT_CLOCK_OFFSET_MS
        if request.due_at_ms > latest_ms:
            raise errors.bad_deadline(f"{request.due_at_ms} is more than 30 days after {self.now_ms}")
        return max(request.due_at_ms, self.now_ms)

    def _make_room(self, name: str) -> None:
        queue = self._queue(name)
        if not _has_room(queue):
            raise errors.queue_full(name, _bound(queue))

    def _add(self, message: rows.MessageRow, message_id: bytes, due_ms: int) -> None:
        name = message.queue
        key = keys.message_key(self._database, message_id)
        self._access.put(Row(key, message.SerializeToString(), _PLAIN, self._stamp))
        self._wait(name, message_id, due_ms, None)
        queue = self._queue(name)
        queue.waiting_count += 1
        queue.enqueued_total += 1

    def _wait(self, name: str, message_id: bytes, due_ms: int, history: rows.DueRow | None) -> None:
        """Let a message wait; without a history it is a new one."""
        key = keys.due_key(self._database, name, due_ms, message_id)
        is_due = due_ms <= self.now_ms
        if is_due and history is None:
            self._access.put_new(Row(key, b"", _PLAIN, self._stamp))
        else:
            self.passes = False
            value = b"" if history is None else history.SerializeToString()
            self._access.put(Row(key, value, _PLAIN, self._stamp))
        if is_due:
            self._access.arrive((self._database, name), key)

    def _message(self, message_id: bytes) -> rows.MessageRow:
        row = self._access.live(keys.message_key(self._database, message_id))
        if row is None:
            raise InvariantViolation(f"message {message_id.hex()} waits or is leased and does not exist")
        return rows.MessageRow.FromString(row.value)

    # Leases.

    def _claim(self, claim: kv_pb2.QueueClaim, result: kv_pb2.QueueActionResult) -> None:
        name = claim.queue or keys.DEFAULT_QUEUE
        consumer = claim.consumer
        expire_at_ms = self.now_ms + (claim.lease_ms or limits.DEFAULT_QUEUE_LEASE_MS)
        count = again_count = 0
        for waiting in self._due_rows(name, claim.max_count):
            if self._bytes_left <= 0:
                break
            message = result.messages.add()
            self._lease(message, name, waiting, expire_at_ms, consumer)
            count += 1
            again_count += message.attempt > 1
        if count:
            queue = self._queue(name)
            queue.waiting_count -= count
            queue.in_flight_count += count
            queue.claimed_total += count
            queue.reclaimed_total += again_count

    def _due_rows(self, name: str, count: int) -> list[Row]:
        """At most `count` rows of messages that wait and are due, in the order of their times."""
        start = keys.due_prefix(self._database, name)
        end = keys.due_key(self._database, name, self.now_ms + 1, b"")
        shown = list(self._applied(start, end, count))
        arrived = self._access.arrived((self._database, name))
        if not arrived:
            return shown
        # The state may show a row, too, that is put once more.
        found = {row.key: row for row in (*shown, *arrived)}
        return [found[key] for key in sorted(found)[:count]]

    def _lease(self, message: kv_pb2.QueueMessage, name: str, waiting: Row, expire_at_ms: int, consumer: str) -> None:
        """Put a message that waits under lease; `message` becomes what is delivered."""
        due_ms, message_id = keys.due_of_key(waiting.key)
        lease_id = self._stamp + self._leases_count.to_bytes(_NUMBER_BYTES, "big")
        self._leases_count += 1
        lease = rows.LeaseRow()
        lease.queue = name
        lease.message_id = message_id
        history = lease.history
        if waiting.value:
            history.MergeFromString(waiting.value)
        history.deliveries_count += 1
        if consumer:
            lease.consumer = consumer
        self._access.depart(waiting.key)
        self._put_lease(lease_id, lease, expire_at_ms)
        stored = self._message(message_id)
        data = stored.payload
        self._bytes_left -= len(data)
        payload = message.payload
        payload.data = data
        payload.encoding = stored.encoding  # type: ignore[assignment]  # a plain int is what the field holds
        message.id = message_id
        message.queue = name
        message.lease = lease_id
        message.lease_expires_at_ms = expire_at_ms
        message.attempt = history.deliveries_count
        message.enqueued_at_ms = stored.enqueued_at_ms
        message.due_at_ms = due_ms
        if stored.cron:
            message.cron = stored.cron
            message.scheduled_at_ms = stored.scheduled_at_ms

    def _put_lease(self, lease_id: bytes, lease: rows.LeaseRow, expire_at_ms: int) -> None:
        key = keys.lease_key(self._database, lease_id)
        self._access.put(Row(key, lease.SerializeToString(), _PLAIN, self._stamp, expire_at_ms))

    def _end_lease(self, row: Row) -> tuple[rows.LeaseRow, rows.QueueRow]:
        lease = rows.LeaseRow.FromString(row.value)
        self._access.remove(row.key)
        queue = self._queue(lease.queue)
        queue.in_flight_count -= 1
        return lease, queue

    def _ack(self, row: Row, _action: kv_pb2.QueueAck) -> None:
        lease, queue = self._end_lease(row)
        queue.acknowledged_total += 1
        self._access.remove(keys.message_key(self._database, lease.message_id))

    def _nack(self, row: Row, action: kv_pb2.QueueNack) -> None:
        lease, _ = self._end_lease(row)
        message = self._message(lease.message_id)
        delay_ms = action.delay_ms if action.HasField("delay_ms") else None
        self._again(lease, message, schedule.after_failure(lease.history, message.backoff_intervals_ms, delay_ms))

    def _release(self, row: Row, action: kv_pb2.QueueRelease) -> None:
        if not action.unseen:
            self._lose(row)
            return
        lease, _ = self._end_lease(row)
        lease.history.deliveries_count -= 1
        self._again(lease, rows.MessageRow(), 0)

    def _lose(self, row: Row) -> None:
        lease, _ = self._end_lease(row)
        message = self._message(lease.message_id)
        self._again(lease, message, schedule.after_loss(lease.history, message.backoff_intervals_ms))

    def _extend(self, row: Row, action: kv_pb2.QueueExtend) -> None:
        expire_at_ms = self.now_ms + (action.lease_ms or limits.DEFAULT_QUEUE_LEASE_MS)
        if action.never_sooner and expire_at_ms <= row.expire_at_ms:
            return
        self._access.put(row._replace(versionstamp=self._stamp, expire_at_ms=expire_at_ms))

    def _again(self, lease: rows.LeaseRow, message: rows.MessageRow, delay_ms: int | None) -> None:
        if delay_ms is None:
            self._die(lease, message)
            return
        self._queue(lease.queue).waiting_count += 1
        self._wait(lease.queue, lease.message_id, self.now_ms + delay_ms, lease.history)

    # Dead letters.

    def _die(self, lease: rows.LeaseRow, message: rows.MessageRow) -> None:
        access = self._access
        prefix = database_prefix(self._database)
        for key in message.keys_if_undelivered:
            access.put(Row(prefix + key, message.payload, message.encoding, self._stamp))
        access.remove(keys.message_key(self._database, lease.message_id))
        queue = self._queue(lease.queue)
        self._drop_oldest_dead(lease.queue, queue)
        dead = rows.DeadLetterRow(
            message=message,
            message_id=lease.message_id,
            deliveries_count=lease.history.deliveries_count,
            died_at_ms=self.now_ms,
        )
        key = keys.dead_key(self._database, lease.queue, self._id(self._messages_count))
        self._messages_count += 1
        access.put(Row(key, dead.SerializeToString(), _PLAIN, self._stamp))
        queue.dead_count += 1
        queue.dead_total += 1

    def _drop_oldest_dead(self, name: str, queue: rows.QueueRow) -> None:
        """Keep the bound: the oldest makes room, and the queue's row says how many did."""
        if queue.dead_count < limits.MAX_QUEUE_DEAD_LETTERS_COUNT:
            return
        for row in self._dead_letters(name, 1):
            self._access.remove(row.key)
            queue.dead_count -= 1
            queue.dead_dropped_total += 1
            return

    def _dead_letters(self, name: str, count: int) -> Iterator[Row]:
        return self._applied(keys.dead_prefix(self._database, name), keys.dead_end(self._database, name), count)

    def _chosen_dead(self, name: str, dead_id: bytes, count: int) -> Iterator[Row]:
        """The dead letter of that id, or the oldest `count`."""
        if not dead_id:
            yield from self._dead_letters(name, count)
            return
        row = self._access.live(keys.dead_key(self._database, name, dead_id))
        if row is None:
            raise errors.dead_letter_not_found(dead_id, name)
        yield row

    def _requeue(self, action: kv_pb2.QueueRequeue) -> int:
        """As many as fit; QUEUE_FULL when none does, so that nobody takes a full queue for one without dead letters."""
        name = action.queue or keys.DEFAULT_QUEUE
        count = 0
        for row in self._chosen_dead(name, action.dead_letter, action.max_count):
            if self._bytes_left <= 0 or (count and not _has_room(self._queue(name))):
                break
            self._make_room(name)
            message = rows.DeadLetterRow.FromString(row.value).message
            self._bytes_left -= len(message.payload)
            self._access.remove(row.key)
            self._queue(name).dead_count -= 1
            self._add(message, self._id(self._messages_count), self.now_ms)
            self._messages_count += 1
            count += 1
        return count

    def _purge(self, action: kv_pb2.QueuePurge) -> int:
        name = action.queue or keys.DEFAULT_QUEUE
        count = 0
        if action.dead_letters or action.dead_letter:
            for row in self._chosen_dead(name, action.dead_letter, action.max_count):
                self._access.remove(row.key)
                self._queue(name).dead_count -= 1
                count += 1
            return count
        start, end = keys.due_prefix(self._database, name), keys.due_end(self._database, name)
        for row in self._applied(start, end, action.max_count):
            self._access.depart(row.key)
            self._access.remove(keys.message_key(self._database, keys.due_of_key(row.key)[1]))
            self._queue(name).waiting_count -= 1
            count += 1
        return count

    # Queues.

    def _queue(self, name: str) -> rows.QueueRow:
        """The queue's row, to be changed in place; made when there is none."""
        name = name or keys.DEFAULT_QUEUE
        queue = self._queues.get(name)
        if queue is None:
            row = self._access.live(keys.queue_key(self._database, name))
            if row is None:
                self._require_place_for_queue()
            queue = rows.QueueRow() if row is None else self._access.counters(row)
            self._queues[name] = queue
        return queue

    def require_queue(self, name: str) -> None:
        """Make the queue if there is none. Raises InvalidRequest: TOO_MANY_QUEUES."""
        self._queue(name)

    def _require_place_for_queue(self) -> None:
        start, end = keys.queue_bounds(self._database)
        bound = limits.MAX_QUEUES_COUNT
        if len(self._access.scan_applied(start, end, bound)) >= bound:
            raise errors.too_many_queues(bound)

    def _remove(self, name: str) -> None:
        name = name or keys.DEFAULT_QUEUE
        key = keys.queue_key(self._database, name)
        row = self._access.live(key)
        queue = self._queues.pop(name, None) or (rows.QueueRow() if row is None else self._access.counters(row))
        if queue.waiting_count or queue.in_flight_count or queue.dead_count:
            raise errors.queue_not_empty(name, queue)
        if row is not None:
            self._access.remove(key)
        self._pushes.remove(name)

    def _configure(self, action: kv_pb2.QueueConfigure) -> None:
        name = action.queue or keys.DEFAULT_QUEUE
        queue = self._queue(name)
        if not action.keep_max_messages:
            queue.max_messages_count = action.max_messages_count
        if action.no_push:
            self._pushes.remove(name)
        elif action.HasField("push"):
            self._pushes.set(name, action.push)

    @property
    def _pushes(self) -> Pushes:
        return Pushes(self._access, self._database, self._stamp)

    def _id(self, number: int) -> bytes:
        return self._stamp + number.to_bytes(_NUMBER_BYTES, "big")

    def _applied(self, start: bytes, end: bytes, count: int) -> Iterator[Row]:
        """At most `count` rows of the applied state that no entry in flight has taken, as they are now."""
        while count > 0:
            wanted = count + limits.QUEUE_SCAN_MARGIN_COUNT
            page = self._access.scan_applied(start, end, wanted)
            for row in page:
                newest = self._access.newest(row)
                if newest is not None:
                    yield newest
                    count -= 1
                    if not count:
                        return
            if len(page) < wanted:
                return
            start = page[-1].key + b"\x00"


def _bound(queue: rows.QueueRow) -> int:
    """How many undelivered messages a queue may hold."""
    return queue.max_messages_count or limits.MAX_QUEUE_MESSAGES_COUNT


def _has_room(queue: rows.QueueRow) -> bool:
    return queue.waiting_count + queue.in_flight_count < _bound(queue)


_WITH_LEASE: dict[str, Callable[[QueueTransaction, Row, Any], None]] = {
    "ack": QueueTransaction._ack,
    "nack": QueueTransaction._nack,
    "extend": QueueTransaction._extend,
    "release": QueueTransaction._release,
}
