"""Whether a few operations wait for more while many others are under way: Nagle's algorithm (RFC 896), for batches.

Who answers 64 callers at once has one of them back before the others. Its entry, or its round, would cost the nodes
about as much as that of the 63. So while a batch is under way, fewer than are in it wait for more, until it is through,
or until BATCH_HOLD_MS (driver.py) is over: then what is under way waits for something else than a busy processor.
"""

from __future__ import annotations

_FROM_COUNT = 4  # under way; with fewer, nobody is kept waiting for anybody
_ENOUGH_COUNT = 64  # from here on a batch's own cost is nothing beside that of what is in it


def may_hold(waiting_count: int, under_way_count: int) -> bool:
    """Whether so many may wait, while so many are under way."""
    return 0 < waiting_count < _ENOUGH_COUNT and waiting_count < under_way_count >= _FROM_COUNT
