"""How fast a stream may send to a node that limits its token.

A node that refuses one request for the limit ends the whole stream, which takes a while to open again. So after a
refusal requests keep a distance, and what there is to say meanwhile gathers in the next one: a listener says as
much with few requests as with many. The distance grows until it is not refused; after a long time a shorter one is
tried.
"""

from __future__ import annotations

import re

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import RateLimited

# An Error has no field for it; this is how a node words it (kvnode/api/auth/rate.py).
_NAMED_PAUSE = re.compile(r"again in (\d+) ms")


class SendPace:
    """The distance between the requests of one listener."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._interval_ms = 0.0
        self._changed_at_ms = 0.0

    def refused(self, error: RateLimited) -> float:
        """A request was one too many: milliseconds until the next one may be tried."""
        named = _NAMED_PAUSE.search(error.message)
        # The time named is what is left until there is room for one request, half of the distance on average.
        needed_ms = max(self._interval_ms, float(named[1]) if named else limits.CLIENT_BACKOFF_MS)
        self._set(min(2 * needed_ms, limits.MAX_CLIENT_LISTEN_PACE_MS))
        return float(named[1]) if named else self._interval_ms

    def interval_ms(self) -> float:
        """Milliseconds to let pass before the next request; 0 = none."""
        if self._interval_ms and self._clock.monotonic_ms() - self._changed_at_ms >= limits.CLIENT_LISTEN_PACE_KEPT_MS:
            shorter_ms = self._interval_ms / 2
            self._set(shorter_ms if shorter_ms >= limits.CLIENT_BACKOFF_MS else 0.0)
        return self._interval_ms

    def _set(self, interval_ms: float) -> None:
        self._interval_ms = interval_ms
        self._changed_at_ms = self._clock.monotonic_ms()
