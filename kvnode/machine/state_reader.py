"""What the machine needs of the state: synchronous reads that always show exactly the applied index."""

from __future__ import annotations

from typing import Protocol

from kvnode.codec.row import Row


class StateReader(Protocol):
    """The read part of kvnode.storage's State. Keys carry their database's prefix; expired rows are included."""

    def get(self, key: bytes) -> Row | None:
        """The row of `key`, or None."""

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        """At most `limit` rows with start <= key < end, in key order, or from the end when `reverse`."""

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """The keys alone of `scan`."""


class BoundedStateReader(StateReader, Protocol):
    """One that can stop where rows are large."""

    def scan_within(
        self, start: bytes, end: bytes, limit: int, *, max_bytes: int, reverse: bool = False
    ) -> list[Row] | None:
        """As `scan`; None, found out within a few rows, if the values have more than `max_bytes`."""
