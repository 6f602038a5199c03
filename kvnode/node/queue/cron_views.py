"""How crons look: strong reads of their rows (machine/queue/cron.py)."""

from __future__ import annotations

from kvnode.base import limits
from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES
from kvnode.machine.queue import keys
from kvnode.machine.queue.cron import validate_cron_name
from kvnode.node.queue.views import QueueReader
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


async def list_crons(reader: QueueReader) -> list[queue_pb2.CronStatus]:
    """Every cron of the database, by name, without what it sends. Raises KvError."""
    start, end = keys.cron_bounds(reader.database)
    (found,) = await reader.ranges([_range(start, end, limits.MAX_CRONS_COUNT)])
    return [cron_status(keys.cron_of_key(bytes(DATABASE_PREFIX_BYTES) + entry.key), entry.value) for entry in found]


async def show_cron(reader: QueueReader, name: str) -> list[queue_pb2.CronStatus]:
    """The cron of that name with what it sends, if there is one. Raises KvError."""
    validate_cron_name(name)
    wanted = [keys.cron_key(reader.database, name), keys.cron_body_key(reader.database, name)]
    found, body = await reader.ranges([_range(key, key + b"\x00", 1) for key in wanted])
    if not found or not body:
        return []
    status = cron_status(name, found[0].value)
    message = rows.MessageRow.FromString(body[0].value)
    status.message.queue = message.queue
    status.message.payload.data = message.payload
    status.message.payload.encoding = message.encoding  # type: ignore[assignment]
    status.message.keys_if_undelivered.extend(message.keys_if_undelivered)
    status.message.backoff_intervals_ms.extend(message.backoff_intervals_ms)
    status.message.no_retries = not message.backoff_intervals_ms
    return [status]


def cron_status(name: str, value: bytes) -> queue_pb2.CronStatus:
    """A cron's own row."""
    row = rows.CronRow.FromString(value)
    return queue_pb2.CronStatus(
        name=name,
        schedule=row.schedule,
        queue=row.queue,
        allow_overlap=row.allow_overlap,
        next_at_ms=row.next_at_ms,
        last_at_ms=row.last_at_ms,
        fired_at_ms=row.fired_at_ms,
        fired_total=row.fired_total,
        skipped_total=row.skipped_total,
        missed_total=row.missed_total,
        blocked_by=row.blocked_by,
        created_at_ms=row.created_at_ms,
    )


def _range(start: bytes, end: bytes, limit: int) -> kv_pb2.ReadRange:
    return kv_pb2.ReadRange(start=start[DATABASE_PREFIX_BYTES:], end=end[DATABASE_PREFIX_BYTES:], limit=limit)
