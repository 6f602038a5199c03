"""How long before its caller's deadline a node gives up, so that the caller hears why.

Whoever waits at a node has a timer for the same deadline, and it ran out first: all that it could say was that nobody
had answered. So a node that waits for something of its own answers a little earlier. A caller that gets such an answer
does not ask again: no time would be left to wait.
"""

from __future__ import annotations

from kvnode.base import limits

_MARGIN_PARTS = 8


def answer_margin_ms(timeout_ms: float) -> float:
    """So much before the deadline the answer is sent, milliseconds.

    Args:
        timeout_ms: what the caller has allowed in all.
    """
    return min(limits.MAX_ANSWER_MARGIN_MS, timeout_ms / _MARGIN_PARTS)
