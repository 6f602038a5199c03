"""Time comes in from outside, so that everything above can be simulated."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A node's two clocks."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the epoch. May step."""

    def monotonic_ms(self) -> float:
        """Milliseconds on a clock that never steps and runs on while the process is frozen."""


class SystemClock:
    """The machine's clocks. CLOCK_BOOTTIME runs on through a suspend; CLOCK_MONOTONIC does not."""

    def now_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> float:
        """See Clock."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e6
