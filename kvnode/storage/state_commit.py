"""When the state's open transaction is committed.

Theory of operation. What is applied is in the log, on this node's disk as on others', so that a commit of the state
makes nothing safer than it is: after a crash the log is applied again from the last commit on. What a commit does is
to write each page that has changed, 4 KiB and 5 us, to the write-ahead log, and soon again to the database. So many
applies share one transaction: a page that changes often is written once, a row that lives shorter (a message of a
queue) never. Reads of the loop come through the same connection and see what is applied; whatever reads or copies
the file otherwise has it committed first (state.py).

A commit holds the loop, and for how long depends on how many pages the rows share: 1,000 rows at random in a large
state are 1,000 pages, 1,000 of a counter are one. So the number of rows follows what the last commits took.
"""

from __future__ import annotations

from kvnode.base.clock import Clock
from kvnode.base.limits import (
    MAX_LOOP_HOLD_MS,
    MAX_STATE_COMMIT_BYTES,
    MAX_STATE_COMMIT_ROWS_COUNT,
    MIN_STATE_COMMIT_ROWS_COUNT,
    STATE_COMMIT_INTERVAL_MS,
)

_GROWTH = 1.25
_SHRINKAGE = 0.7


class CommitPace:
    """Counts what is applied and not committed. Of one connection.

    Args:
        clock: monotonic time.

    Attributes:
        max_rows: so many rows may wait now.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.max_rows = float(MIN_STATE_COMMIT_ROWS_COUNT)
        self._rows_count = 0
        self._size_bytes = 0
        self._since_ms = 0.0

    def applied(self, rows_count: int, size_bytes: int) -> bool:
        """Rows were written, with values of that size; returns whether it is time to commit."""
        now_ms = self._clock.monotonic_ms()
        if not self._since_ms:
            self._since_ms = now_ms
        self._rows_count += rows_count
        self._size_bytes += size_bytes
        return (
            self._rows_count >= self.max_rows
            or self._size_bytes >= MAX_STATE_COMMIT_BYTES
            or now_ms - self._since_ms >= STATE_COMMIT_INTERVAL_MS
        )

    def committed(self, took_ms: float) -> None:
        """Nothing waits any more."""
        if took_ms > MAX_LOOP_HOLD_MS:
            self.max_rows = max(self.max_rows * _SHRINKAGE, MIN_STATE_COMMIT_ROWS_COUNT)
        elif took_ms * _GROWTH <= MAX_LOOP_HOLD_MS and self._rows_count >= self.max_rows:
            self.max_rows = min(self.max_rows * _GROWTH, MAX_STATE_COMMIT_ROWS_COUNT)
        self._rows_count = self._size_bytes = 0
        self._since_ms = 0.0
