"""A scan that stops where the rows are large: for who reads on the loop, and may not be held there."""

from __future__ import annotations

from kvnode.codec.row import Row
from kvnode.storage.state_tables import StateTables

_COLUMNS = ", ".join(Row._fields)
_FORWARD = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_REVERSE = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"


def scan_within(
    tables: StateTables, start: bytes, end: bytes, limit: int, *, max_bytes: int, reverse: bool = False
) -> list[Row] | None:
    """As StateTables.scan; None, found out with the first row above it, if the values have more than `max_bytes`."""
    bounds = (bytearray(start), bytearray(end), limit)  # why not bytes: see state_tables.py
    found = tables.connection.execute(_REVERSE if reverse else _FORWARD, bounds)
    rows = []
    for columns in found:
        row = Row._make(columns)
        max_bytes -= len(row.value)
        if max_bytes < 0:
            found.close()  # or it would hold its read transaction
            return None
        rows.append(row)
    return rows
