"""How often the node of a watch says that it lives, and how long its client believes that it does."""

from __future__ import annotations

from kvnode.base import limits

SILENCE_PINGS_COUNT = limits.CLIENT_WATCH_SILENCE_MS // limits.WATCH_PING_INTERVAL_MS  # that must be missing


def ping_interval_ms(max_staleness_ms: int) -> int:
    """After so long without a change the node sends a ping.

    A node that is frozen or cut off cannot say that its state has grown old, so a watch with a bound is pinged as often
    as the bound asks, within limits.

    Args:
        max_staleness_ms: how old the states of the watch may be; 0 = there is no bound.
    """
    if not max_staleness_ms:
        return limits.WATCH_PING_INTERVAL_MS
    return min(limits.WATCH_PING_INTERVAL_MS, max(max_staleness_ms, limits.MIN_WATCH_PING_INTERVAL_MS))


def silence_ms(max_staleness_ms: int) -> int:
    """When nothing, not even a ping, has come for so long, the client goes to another node. Argument as above."""
    return min(limits.CLIENT_WATCH_SILENCE_MS, SILENCE_PINGS_COUNT * ping_interval_ms(max_staleness_ms))
