"""A row of the replicated state: what storage keeps and the machine reads and writes."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One row. Keys are ordered by their bytes; the first 4 are the database number, 0 being the system's own."""

    key: bytes
    value: bytes
    encoding: int
    versionstamp: bytes
    expire_at_ms: int = 0  # 0 = never
