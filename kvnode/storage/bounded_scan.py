"""A scan that stops where the rows are large: for who reads on the loop, and may not be held there."""

from __future__ import annotations

from operator import itemgetter

from kvnode.codec.row import Row
from kvnode.storage.state_tables import StateTables

_COLUMNS = ", ".join(Row._fields)
_FORWARD = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_REVERSE = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"
_PAGE_COUNT = 8  # rows fetched before their size is looked at: row by row, a list would cost a tenth more
_VALUE = itemgetter(Row._fields.index("value"))
_ROW = Row._make


def scan_within(
    tables: StateTables, start: bytes, end: bytes, limit: int, *, max_bytes: int, reverse: bool = False
) -> list[Row] | None:
    """As StateTables.scan; None, found out within a few rows, if the values have more than `max_bytes`."""
    bounds = (bytearray(start), bytearray(end), limit)  # why not bytes: see state_tables.py
    found = tables.execute(_REVERSE if reverse else _FORWARD, bounds)
    rows: list[Row] = []
    while page := found.fetchmany(_PAGE_COUNT):
        max_bytes -= sum(map(len, map(_VALUE, page)))
        if max_bytes < 0:
            found.close()  # or it would hold its read transaction
            return None
        rows += map(_ROW, page)
    return rows
