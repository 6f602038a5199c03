"""Reads: ranges of one database, from one state, with expired rows left out."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Protocol

from kvnode.base import limits
from kvnode.codec.row import Row
from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES, database_prefix
from kvnode.machine.state_reader import BoundedStateReader, StateReader
from kvnode.proto.kv.v1 import kv_pb2

_RANGE_BYTES = limits.READ_RANGE_BYTES
_ENTRY_BYTES = limits.READ_ENTRY_BYTES
_VALUE = attrgetter("value")
_COUNTED_COUNT = 64  # entries, at a time


class _Scan(Protocol):
    """At most `limit` rows of a range; None = they are larger than may be read."""

    def __call__(self, start: bytes, end: bytes, limit: int, *, reverse: bool) -> list[Row] | None: ...


def read_ranges(
    state: StateReader, request: kv_pb2.ReadRequest, database: int, log_time_ms: int, response: kv_pb2.ReadResponse
) -> None:
    """Answer every range of a validated request; the caller fills in versionstamp, consistency and age.

    Args:
        state: shows one applied index for as long as this runs.
        database: number of the database.
        log_time_ms: of that state; what expires at or before it is absent.
        response: empty; gets the ranges.
    """
    prefix = database_prefix(database)
    for wanted in request.ranges:
        result = response.ranges.add()
        start, end = wanted.start, wanted.end
        if wanted.count_only:
            result.count = count_live(state, prefix + start, prefix + end, log_time_ms)
        elif len(end) == len(start) + 1 and end[-1] == 0 and end.startswith(start):
            row = state.get(prefix + start)
            if row is not None and not 0 < row.expire_at_ms <= log_time_ms and wanted.limit > 0:
                _add(result, row, wanted.keys_only)
        else:
            rows = scan_live(state.scan, prefix + start, prefix + end, wanted.limit, wanted.reverse, log_time_ms)
            for row in rows or ():  # `scan` stops at nothing
                _add(result, row, wanted.keys_only)


def read_within(
    state: BoundedStateReader,
    request: kv_pb2.ReadRequest,
    database: int,
    log_time_ms: int,
    response: kv_pb2.ReadResponse,
    max_bytes: int,
) -> int | None:
    """As read_ranges, for a request without counts, and stop where it takes too long.

    Returns:
        What it took, as bytes of values that are read in the same time: those of the values themselves,
        READ_RANGE_BYTES a range and READ_ENTRY_BYTES an entry. None: above `max_bytes`, and the response is unfinished.
    """
    prefix = database_prefix(database)
    took_bytes = 0
    for wanted in request.ranges:
        result = response.ranges.add()
        start, end = wanted.start, wanted.end
        took_bytes += _RANGE_BYTES
        if len(end) == len(start) + 1 and end[-1] == 0 and end.startswith(start):  # most reads are of one key
            row = state.get(prefix + start)
            if row is not None:
                took_bytes += _ENTRY_BYTES + len(row.value)
                if not 0 < row.expire_at_ms <= log_time_ms and wanted.limit > 0:
                    _add(result, row, wanted.keys_only)
        else:
            scan = partial(state.scan_within, max_bytes=max_bytes - took_bytes)
            rows = scan_live(scan, prefix + start, prefix + end, wanted.limit, wanted.reverse, log_time_ms)
            if rows is None:
                return None
            took_bytes += len(rows) * _ENTRY_BYTES + sum(map(len, map(_VALUE, rows)))
            for row in rows:
                _add(result, row, wanted.keys_only)
        if took_bytes > max_bytes:
            return None
    return took_bytes


def values_bytes(response: kv_pb2.ReadResponse, enough_bytes: int) -> int:
    """What the values of an answer come to; those behind the first `enough_bytes` may be left out.

    Asking for a value copies it, but serializing all of a large answer costs ten times as much, in one piece.
    """
    size_bytes = 0
    for result in response.ranges:
        entries = result.entries
        for at in range(0, len(entries), _COUNTED_COUNT):
            size_bytes += sum(map(len, map(_VALUE, entries[at : at + _COUNTED_COUNT])))
            if size_bytes > enough_bytes:
                return size_bytes
    return size_bytes


def scan_live(scan: _Scan, start: bytes, end: bytes, limit: int, reverse: bool, log_time_ms: int) -> list[Row] | None:
    """At most `limit` unexpired rows of the range, in the order asked for; None if a scan finds too much.

    Keys carry their database's prefix.
    """
    found: list[Row] = []
    while start < end and len(found) < limit:
        wanted = limit - len(found)
        page = scan(start, end, wanted, reverse=reverse)
        if page is None:
            return None
        found.extend(row for row in page if not 0 < row.expire_at_ms <= log_time_ms)
        if len(page) < wanted:
            break
        if reverse:
            end = page[-1].key
        else:
            start = page[-1].key + b"\x00"
    return found


def count_live(state: StateReader, start: bytes, end: bytes, log_time_ms: int) -> int:
    """How many unexpired rows the range holds. For small ranges: a large one is counted off the loop."""
    count = 0
    while start < end:
        page = state.scan(start, end, limits.SCAN_PAGE_COUNT)
        count += sum(1 for row in page if not 0 < row.expire_at_ms <= log_time_ms)
        if len(page) < limits.SCAN_PAGE_COUNT:
            break
        start = page[-1].key + b"\x00"
    return count


def _add(result: kv_pb2.ReadRangeResult, row: Row, keys_only: bool) -> None:
    entry = result.entries.add()
    entry.key = row.key[DATABASE_PREFIX_BYTES:]
    if not keys_only:
        entry.value = row.value
        entry.encoding = row.encoding  # type: ignore[assignment]  # a plain int on the wire
    entry.versionstamp = row.versionstamp
    if row.expire_at_ms:
        entry.expire_at_ms = row.expire_at_ms
