"""The log's tail in memory: what followers, apply and watchers ask for is nearly always here."""

from __future__ import annotations

from kvnode.codec.entry import Entry, EntryKind

_NOTHING = Entry(0, 0, EntryKind.NOOP, b"")
_ENTRY_OVERHEAD_BYTES = 150  # the tuple, its integers and the bytes object; measured with sys.getsizeof


class RecentEntries:
    """A run of entries that ends with the log's last, bounded by bytes; the oldest go first.

    Args:
        max_bytes: the bound; the newest entry stays whatever its size.
    """

    __slots__ = ("_bytes", "_entries", "_max_bytes", "_skipped")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[Entry] = []
        self._skipped = 0  # dropped from the front, removed from the list in large steps
        self._bytes = 0

    def first_index(self) -> int | None:
        """The first index held, or None when there is none."""
        return self._entries[self._skipped].index if self._skipped < len(self._entries) else None

    def append(self, entry: Entry) -> None:
        """Take the log's new last entry."""
        entries = self._entries
        entries.append(entry)
        self._bytes += len(entry.data) + _ENTRY_OVERHEAD_BYTES
        while self._bytes > self._max_bytes and self._skipped < len(entries) - 1:
            self._bytes -= len(entries[self._skipped].data) + _ENTRY_OVERHEAD_BYTES
            entries[self._skipped] = _NOTHING
            self._skipped += 1
        if self._skipped > 1_024 and self._skipped * 2 > len(entries):
            del entries[: self._skipped]
            self._skipped = 0

    def truncate(self, last_index: int) -> None:
        """Forget what lies behind `last_index`."""
        entries = self._entries
        while len(entries) > self._skipped and entries[-1].index > last_index:
            self._bytes -= len(entries.pop().data) + _ENTRY_OVERHEAD_BYTES

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._skipped = self._bytes = 0

    def slice(self, low: int, high: int) -> list[Entry]:
        """Entries low <= index < high; `low` is not before first_index()."""
        first = self.first_index()
        if first is None:
            return []
        shift = self._skipped - first
        return self._entries[low + shift : high + shift]
