"""How queues look: strong reads of the key space that they live in (machine/queue/keys.py).

They are ordinary reads, so that any node answers them and what is shown was true at one moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES
from kvnode.machine.queue import keys
from kvnode.machine.queue.validate import validate_queue_name
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

_RANGES_COUNT = limits.MAX_READ_RANGES_COUNT


class Read(Protocol):
    """Node.read."""

    async def __call__(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0, *, database: int) -> kv_pb2.ReadResponse:
        """One read."""


class QueueReader(NamedTuple):
    """Reads the rows of one database's queues."""

    read: Read
    database: int
    timeout_ms: int

    async def ranges(self, wanted: Sequence[kv_pb2.ReadRange]) -> list[list[kv_pb2.Entry]]:
        """The entries of each range; their keys lack the 4 bytes of the space."""
        request = kv_pb2.ReadRequest(ranges=wanted, consistency=kv_pb2.CONSISTENCY_STRONG)
        response = await self.read(request, self.timeout_ms, database=keys.queue_space(self.database))
        return [list(found.entries) for found in response.ranges]


async def list_queues(reader: QueueReader, queue: str = "") -> list[queue_pb2.QueueStatus]:
    """How every queue of the database stands, or the one that is named. Raises KvError."""
    validate_queue_name(queue)
    start, end = keys.queue_bounds(reader.database)
    if queue:
        start = keys.queue_key(reader.database, queue)
        end = start + b"\x00"
    push_start, push_end = keys.push_bounds(reader.database)
    if queue:
        push_start = keys.push_key(reader.database, queue)
        push_end = push_start + b"\x00"
    (found,) = await reader.ranges([_range(start, end, limits.MAX_QUEUES_COUNT)])
    (pushes,) = await reader.ranges([_range(push_start, push_end, limits.MAX_QUEUES_COUNT)])
    statuses = [_status(entry) for entry in found]
    _add_pushes(statuses, pushes)
    for first in range(0, len(statuses), _RANGES_COUNT):
        some = statuses[first : first + _RANGES_COUNT]
        wanted = [_range(*_waiting_bounds(reader.database, status.queue), 1, keys_only=True) for status in some]
        for status, waiting in zip(some, await reader.ranges(wanted), strict=True):
            if waiting:
                status.next_due_ms = keys.due_of_key(waiting[0].key)[0]
    return statuses


async def peek(reader: QueueReader, queue: str, count: int) -> list[queue_pb2.WaitingMessage]:
    """The messages that wait, in the order of their time. Raises KvError."""
    _check(queue, count)
    name = queue or keys.DEFAULT_QUEUE
    (waiting,) = await reader.ranges([_range(*_waiting_bounds(reader.database, name), count)])
    shown = []
    for first in range(0, len(waiting), _RANGES_COUNT):
        some = waiting[first : first + _RANGES_COUNT]
        ids = [keys.due_of_key(entry.key) for entry in some]
        wanted = [_point(keys.message_key(reader.database, message_id)) for _, message_id in ids]
        for (due_ms, message_id), entry, found in zip(ids, some, await reader.ranges(wanted), strict=True):
            if found:  # otherwise it was handled between the two reads
                message = rows.MessageRow.FromString(found[0].value)
                shown.append(
                    queue_pb2.WaitingMessage(
                        id=message_id,
                        payload=_payload(message),
                        enqueued_at_ms=message.enqueued_at_ms,
                        due_at_ms=due_ms,
                        deliveries_count=rows.DueRow.FromString(entry.value).deliveries_count,
                        keys_if_undelivered=message.keys_if_undelivered,
                        cron=message.cron,
                        scheduled_at_ms=message.scheduled_at_ms,
                    )
                )
    return shown


async def dead_letters(reader: QueueReader, queue: str, count: int, after: bytes = b"") -> list[queue_pb2.DeadLetter]:
    """What was given up, the oldest first, behind the one with the id `after`. Raises KvError."""
    _check(queue, count)
    name = queue or keys.DEFAULT_QUEUE
    start = keys.dead_key(reader.database, name, after) + b"\x00" if after else keys.dead_prefix(reader.database, name)
    (found,) = await reader.ranges([_range(start, keys.dead_end(reader.database, name), count)])
    return [_dead_letter(entry) for entry in found]


def _dead_letter(entry: kv_pb2.Entry) -> queue_pb2.DeadLetter:
    dead = rows.DeadLetterRow.FromString(entry.value)
    return queue_pb2.DeadLetter(
        id=keys.dead_of_key(entry.key),
        message_id=dead.message_id,
        payload=_payload(dead.message),
        enqueued_at_ms=dead.message.enqueued_at_ms,
        died_at_ms=dead.died_at_ms,
        deliveries_count=dead.deliveries_count,
        keys_if_undelivered=dead.message.keys_if_undelivered,
        cron=dead.message.cron,
        scheduled_at_ms=dead.message.scheduled_at_ms,
    )


def status_of(name: str, value: bytes) -> queue_pb2.QueueStatus:
    """A queue's own row, without when its next message falls due."""
    row = rows.QueueRow.FromString(value)
    return queue_pb2.QueueStatus(
        queue=name,
        waiting_count=row.waiting_count,
        in_flight_count=row.in_flight_count,
        dead_count=row.dead_count,
        enqueued_total=row.enqueued_total,
        delivered_total=row.claimed_total,
        redelivered_total=row.reclaimed_total,
        acknowledged_total=row.acknowledged_total,
        dead_total=row.dead_total,
        dead_dropped_total=row.dead_dropped_total,
        max_messages_count=row.max_messages_count or limits.MAX_QUEUE_MESSAGES_COUNT,
    )


def _status(entry: kv_pb2.Entry) -> queue_pb2.QueueStatus:
    return status_of(_name(entry), entry.value)


def _add_pushes(statuses: list[queue_pb2.QueueStatus], pushes: list[kv_pb2.Entry]) -> None:
    """Where queues are pushed, from the rows that say so; the key of the signatures stays where it is."""
    found = {_name(entry): rows.PushRow.FromString(entry.value) for entry in pushes}
    for status in statuses:
        push = found.get(status.queue)
        if push is not None:
            status.push_url = push.url
            status.push_concurrency = push.concurrency or limits.DEFAULT_PUSH_CONCURRENCY_COUNT
            status.push_timeout_ms = push.timeout_ms or limits.DEFAULT_PUSH_TIMEOUT_MS
            status.push_error = push.error
            status.push_failing_since_ms = push.failing_since_ms


def _name(entry: kv_pb2.Entry) -> str:
    return keys.queue_of_key(bytes(DATABASE_PREFIX_BYTES) + entry.key)


def _payload(message: rows.MessageRow) -> kv_pb2.Value:
    return kv_pb2.Value(data=message.payload, encoding=message.encoding)  # type: ignore[arg-type]


def _waiting_bounds(database: int, queue: str) -> tuple[bytes, bytes]:
    return keys.due_prefix(database, queue), keys.due_end(database, queue)


def _range(start: bytes, end: bytes, limit: int, *, keys_only: bool = False) -> kv_pb2.ReadRange:
    start, end = start[DATABASE_PREFIX_BYTES:], end[DATABASE_PREFIX_BYTES:]
    return kv_pb2.ReadRange(start=start, end=end, limit=limit, keys_only=keys_only)


def _point(key: bytes) -> kv_pb2.ReadRange:
    return _range(key, key + b"\x00", 1)


def _check(queue: str, count: int) -> None:
    validate_queue_name(queue)
    if not 0 < count <= limits.MAX_PEEK_COUNT:
        raise InvalidRequest("BAD_COUNT", f"{count} messages are asked for: give 1 to {limits.MAX_PEEK_COUNT}.")
