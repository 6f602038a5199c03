"""Counting a range off the loop, in read transactions of bounded length."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from kvnode.base.clock import Clock
from kvnode.base.limits import MAX_READ_TRANSACTION_MS
from kvnode.storage.state_tables import StateMeta, StateTables

_PAGE_ROWS_COUNT = 16_384  # some milliseconds
_COUNT = """SELECT count(*), max(key), count(*) FILTER (WHERE expire_at_ms = 0 OR expire_at_ms > ?)
    FROM (SELECT key, expire_at_ms FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?)"""


class RangeCount(NamedTuple):
    """A count of rows, and the meta row of the state in which it began."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    meta: StateMeta


class _Part(NamedTuple):
    alive_count: int
    next_start: bytes | None  # None: the range is done
    meta: StateMeta


async def count_rows(
    read: Callable[[Callable[[StateTables], _Part]], Awaitable[_Part]],
    clock: Clock,
    start: bytes,
    end: bytes,
    log_time_ms: int | None,
) -> RangeCount:
    """The number of rows with start <= key < end that have not expired at `log_time_ms`.

    Args:
        read: runs a function in one read transaction off the loop.
        clock: ends a transaction that lasts.
        start: first key.
        end: key after the last.
        log_time_ms: a row with an expiry at or before this is not counted; None: the log time of the state itself.
    """
    total, at = 0, start
    first: StateMeta | None = None
    while True:
        part = await read(partial(_count_for_a_while, clock=clock, start=at, end=end, log_time_ms=log_time_ms))
        total += part.alive_count
        if first is None:
            first = part.meta
            log_time_ms = first.log_time_ms if log_time_ms is None else log_time_ms
        if part.next_start is None:
            return RangeCount(total, first)
        at = part.next_start


def _count_for_a_while(tables: StateTables, clock: Clock, start: bytes, end: bytes, log_time_ms: int | None) -> _Part:
    """Count page by page in the caller's read transaction until the range or half of its time is used up."""
    until_ms = clock.monotonic_ms() + MAX_READ_TRANSACTION_MS / 2
    meta = tables.load_meta()
    judged_at_ms = meta.log_time_ms if log_time_ms is None else log_time_ms
    total, at = 0, start
    while True:
        seen, last, alive = tables.execute(_COUNT, (judged_at_ms, at, end, _PAGE_ROWS_COUNT)).fetchone()
        total += alive
        if seen < _PAGE_ROWS_COUNT:
            return _Part(total, None, meta)
        at = last + b"\0"
        if clock.monotonic_ms() >= until_ms:
            return _Part(total, at, meta)
