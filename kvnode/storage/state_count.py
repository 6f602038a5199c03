"""Counting a range off the loop, in read transactions of bounded length."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from kvnode.base.clock import Clock
from kvnode.base.limits import MAX_READ_TRANSACTION_MS
from kvnode.storage.state_tables import StateTables

_PAGE_ROWS_COUNT = 16_384  # some milliseconds
_COUNT = """SELECT count(*), max(key), count(*) FILTER (WHERE expire_at_ms = 0 OR expire_at_ms > ?)
    FROM (SELECT key, expire_at_ms FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?)"""


class _Part(NamedTuple):
    alive_count: int
    next_start: bytes | None  # None: the range is done


async def count_rows(
    read: Callable[[Callable[[StateTables], _Part]], Awaitable[_Part]],
    clock: Clock,
    start: bytes,
    end: bytes,
    log_time_ms: int,
) -> int:
    """The number of rows with start <= key < end that have not expired at `log_time_ms`.

    Args:
        read: runs a function in one read transaction off the loop.
        clock: ends a transaction that lasts.
        start: first key.
        end: key after the last.
        log_time_ms: a row with an expiry at or before this is not counted.
    """
    total, at = 0, start
    while True:
        part = await read(lambda tables, at=at: _count_for_a_while(tables, clock, at, end, log_time_ms))  # type: ignore[misc]
        total += part.alive_count
        if part.next_start is None:
            return total
        at = part.next_start


def _count_for_a_while(tables: StateTables, clock: Clock, start: bytes, end: bytes, log_time_ms: int) -> _Part:
    """Count page by page in the caller's read transaction until the range or half of its time is used up."""
    until_ms = clock.monotonic_ms() + MAX_READ_TRANSACTION_MS / 2
    total, at = 0, start
    while True:
        seen, last, alive = tables.connection.execute(_COUNT, (log_time_ms, at, end, _PAGE_ROWS_COUNT)).fetchone()
        total += alive
        if seen < _PAGE_ROWS_COUNT:
            return _Part(total, None)
        at = last + b"\0"
        if clock.monotonic_ms() >= until_ms:
            return _Part(total, at)
