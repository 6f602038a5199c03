"""When a message is tried again, and when it is given up.

A *failure* is a handler that said so (nack). The schedule belongs to failures: failure number i is followed by interval
i, and when there is none left the message is given up. A *loss* is a lease that ended without a word: its consumer died
or hung, or gave the message back. That says little about the message, so it is due again at once and no interval is
used up; a dead letter is one whose handler failed. Yet a message that kills whoever takes it must end somewhere: losses
above MAX_QUEUE_LOSSES_COUNT count as failures.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.base import limits
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows


def after_failure(history: rows.DueRow, schedule: Sequence[int], delay_ms: int | None) -> int | None:
    """Count a failure; returns the ms until the next attempt, or None when it was the last.

    Args:
        history: changed in place.
        schedule: intervals in ms.
        delay_ms: instead of the interval, if the handler named one.
    """
    history.failures_count += 1
    if history.failures_count > len(schedule):
        return None
    return schedule[history.failures_count - 1] if delay_ms is None else delay_ms


def after_loss(history: rows.DueRow, schedule: Sequence[int]) -> int | None:
    """Count a lease that ended without a word; as after_failure."""
    history.losses_count += 1
    if history.losses_count > limits.MAX_QUEUE_LOSSES_COUNT:
        return after_failure(history, schedule, None)
    return 0
