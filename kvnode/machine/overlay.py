"""The overlay: the effects of entries that were resolved but are not yet applied.

Theory of operation. The state shows exactly the applied index A. The leader resolves entry after entry ahead of it,
and each must see all before it. So what a resolved entry changes is kept here: for every touched key its newest row,
or None for a deleted one, with the index that made it; and for a range delete its bounds, because keys that only the
state knows are not listed. A read asks the points first, then the ranges, then the state. A key written after a range
delete is a point and so wins; a point that was there before the range is turned into a deleted point by it.

Every change is journaled with what it replaced. Undoing a journal's tail is how a transaction that fails half way
leaves no trace, and how a batch that consensus would not take is withdrawn. When the state shows index i, what was made
at or below i is freed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, TypeAlias

from kvnode.base import limits
from kvnode.base.invariant import invariant
from kvnode.codec.row import Row
from kvnode.machine.state_reader import StateReader

_Point: TypeAlias = tuple[int, Row | None]


class _Range(NamedTuple):
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    start: bytes
    end: bytes


class Overlay:
    """The state as it will be when all resolved entries are applied."""

    __slots__ = ("_applied", "_index", "_journal", "_journals", "_points", "_ranges", "_state")

    def __init__(self, state: StateReader) -> None:
        self._state = state
        self._points: dict[bytes, _Point] = {}
        self._ranges: list[_Range] = []
        self._journals: deque[tuple[int, list[tuple[bytes, _Point | None]]]] = deque()
        self._journal: list[tuple[bytes, _Point | None]] = []
        self._index = 0
        self._applied = 0

    def __len__(self) -> int:
        return len(self._points) + len(self._ranges)

    def begin(self, index: int) -> None:
        """What follows belongs to the entry at `index`."""
        invariant(index > self._index, f"entry {index} is resolved after entry {self._index}")
        self._index = index
        self._journal = []
        self._journals.append((index, self._journal))

    def get(self, key: bytes) -> Row | None:
        """The newest row of `key`, expired or not; None if there is none."""
        point = self._points.get(key)
        if point is not None:
            return point[1]
        if self._ranges and self._covered(key):
            return None
        return self._state.get(key)

    def newest(self, row: Row) -> Row | None:
        """What became of a row that the state shows: the row itself, a newer one, or None if it is deleted."""
        point = self._points.get(row.key)
        if point is not None:
            return point[1]
        return None if self._ranges and self._covered(row.key) else row

    def in_flight(self, key: bytes) -> Row | None:
        """The row that entries in flight give `key`; None if they delete it or leave it as it is."""
        point = self._points.get(key)
        return None if point is None else point[1]

    def put(self, key: bytes, row: Row | None) -> None:
        """`key` becomes `row`, or is deleted when it is None."""
        points = self._points
        self._journal.append((key, points.get(key)))
        points[key] = (self._index, row)

    def live_keys_count(self, start: bytes, end: bytes, limit: int) -> int:
        """How many keys exist in the range, expired ones included; counting stops above `limit`."""
        count = sum(1 for key, (_, row) in self._points.items() if row is not None and start <= key < end)
        while count <= limit and start < end:
            page = self._state.scan_keys(start, end, limits.SCAN_PAGE_COUNT)
            count += sum(1 for key in page if key not in self._points and not self._covered(key))
            if len(page) < limits.SCAN_PAGE_COUNT:
                break
            start = page[-1] + b"\x00"
        return count

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Everything in start <= key < end is deleted."""
        for key in [key for key, (_, row) in self._points.items() if row is not None and start <= key < end]:
            self.put(key, None)
        # An empty key is no key: it marks the range in the journal.
        self._journal.append((b"", None))
        self._ranges.append(_Range(self._index, start, end))

    def mark(self) -> int:
        """A point in the current entry's journal, for rollback."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undo everything since `mark`."""
        journal = self._journal
        while len(journal) > mark:
            key, previous = journal.pop()
            if not key:
                self._ranges.pop()
            elif previous is None or previous[0] <= self._applied:
                del self._points[key]
            else:
                self._points[key] = previous

    def discard(self, index: int) -> None:
        """Withdraw the newest entry, which must be `index`: it did not enter the log."""
        newest = self._journals[-1][0] if self._journals else 0
        invariant(newest == index, f"entry {index} is not the newest resolved one")
        self.rollback(0)
        self._journals.pop()
        self._index, self._journal = self._journals[-1] if self._journals else (index - 1, [])

    def free(self, applied: int) -> None:
        """The state shows `applied`; forget what it shows."""
        self._applied = applied
        points, journals = self._points, self._journals
        while journals and journals[0][0] <= applied:
            for key, _ in journals.popleft()[1]:
                if key in points and points[key][0] <= applied:
                    del points[key]
        if self._ranges:
            self._ranges = [kept for kept in self._ranges if kept.index > applied]

    def _covered(self, key: bytes) -> bool:
        return any(deleted.start <= key < deleted.end for deleted in self._ranges)
