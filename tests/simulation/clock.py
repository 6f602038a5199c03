"""A simulated node's two clocks."""

from __future__ import annotations

from tests.simulation.loop import SimulatedLoop

EPOCH_MS = 1_800_000_000_000  # when every simulation begins


class SimulatedClock:
    """Implements base.clock.Clock over virtual time.

    Args:
        offset_ms: how far the wall clock is off true time.
        drift: by which fraction it runs too fast.
        uptime_ms: what the monotonic clock shows at the beginning; other machines show another number.
    """

    def __init__(
        self, loop: SimulatedLoop, *, offset_ms: float = 0.0, drift: float = 0.0, uptime_ms: float = 0.0
    ) -> None:
        self.rate = 1.0  # of the monotonic clock
        self.offset_ms = offset_ms
        self.drift = drift
        self._uptime_ms = uptime_ms
        self._loop = loop

    def now_ms(self) -> int:
        """See base.clock.Clock."""
        return int(EPOCH_MS + self.offset_ms + self._loop.time() * 1000 * (1 + self.drift))

    def monotonic_ms(self) -> float:
        """See base.clock.Clock."""
        return self._uptime_ms + self._loop.time() * 1000 * self.rate

    def step(self, by_ms: float) -> None:
        """Set the wall clock forward or back."""
        self.offset_ms += by_ms
