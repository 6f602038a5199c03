"""The terms of a log's entries, in memory: one pair for each run of equal terms."""

from __future__ import annotations

from bisect import bisect_right


class TermRuns:
    """Terms by index, from the entry before the log's first (the base) to the last.

    Args:
        base_index, base_term: of the entry before the first; 0 and 0 for a log that was never compacted.
    """

    __slots__ = ("_starts", "_terms")

    def __init__(self, base_index: int, base_term: int) -> None:
        self._starts = [base_index]
        self._terms = [base_term]

    def term(self, index: int) -> int | None:
        """The term at `index`; None before the base. The caller knows where the log ends."""
        at = bisect_right(self._starts, index)
        return self._terms[at - 1] if at else None

    def append(self, index: int, term: int) -> None:
        """The entry at `index`, the next one, has `term`."""
        if term != self._terms[-1]:
            self._starts.append(index)
            self._terms.append(term)

    def truncate(self, last_index: int) -> None:
        """Forget what lies behind `last_index`, which is not before the base."""
        at = bisect_right(self._starts, last_index)
        del self._starts[at:], self._terms[at:]

    def compact(self, base_index: int) -> None:
        """Forget what lies before `base_index`, which becomes the base."""
        at = bisect_right(self._starts, base_index) - 1
        del self._starts[:at], self._terms[:at]
        self._starts[0] = base_index
