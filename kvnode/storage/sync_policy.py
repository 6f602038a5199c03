"""Where the log's fsync waits: on the loop or on a thread; and the figures of past syncs.

Measured by bench/log_append.py, on uvloop, two cores, ext4; microseconds of a durable append, p50 / p99:

                        4 KiB           16 KiB          64 KiB
    quiet     inline      119 /    229    137 /    256    167 /    389
              thread      214 /    754    192 /    855    239 /  3,032
    crowded   inline    1,240 / 22,588  1,037 / 15,729  1,541 / 16,276    (ten runnable processes on the cores)
              thread      341 /  6,348    428 /  8,405    527 / 10,828

On a quiet machine the hop costs more than it frees; on a crowded one, or a slow disk, the loop has better to do
than to wait. So neither is right for good, and the recent past decides.
"""

from __future__ import annotations

from collections import deque

from kvnode.base.limits import MAX_INLINE_SYNC_P99_MS, SYNC_WINDOW_COUNT


class SyncPolicy:
    """Inline while the moving p99 of syncs is under a bound, otherwise on the thread.

    The p99 is over the last SYNC_WINDOW_COUNT syncs: it is over the bound when more than one in a hundred of
    them is. A slow device is noticed at its second slow sync, and trusted again when the window has passed.

    Args:
        max_inline_p99_ms: the bound; 0 = always on the thread, infinity = always inline.

    Attributes:
        inline: what the next sync does.
        count, total_seconds, max_seconds: of all syncs since the start.
    """

    def __init__(self, max_inline_p99_ms: float = MAX_INLINE_SYNC_P99_MS) -> None:
        self._bound_seconds = max_inline_p99_ms / 1_000
        self._slow: deque[bool] = deque(maxlen=SYNC_WINDOW_COUNT)
        self._slow_count = 0
        self.inline = max_inline_p99_ms > 0
        self.count = 0
        self.total_seconds = 0.0
        self.max_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """A sync took this long, the hop not counted."""
        self.count += 1
        self.total_seconds += seconds
        self.max_seconds = max(self.max_seconds, seconds)
        slow = self._slow
        if len(slow) == SYNC_WINDOW_COUNT and slow[0]:
            self._slow_count -= 1
        is_slow = seconds > self._bound_seconds
        slow.append(is_slow)
        self._slow_count += is_slow
        self.inline = self._slow_count * 100 <= SYNC_WINDOW_COUNT
