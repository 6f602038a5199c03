"""When which write was acknowledged, and thus how far behind a state is that ends at some versionstamp."""

from __future__ import annotations

from bisect import bisect_right, insort
from operator import itemgetter

_OUT_OF_ORDER_COUNT = 512  # answers of one batch and their neighbours may overtake one another


class AckTimeline:
    """Writes by versionstamp. Times are milliseconds of the caller's one clock."""

    def __init__(self) -> None:
        self._acks: list[tuple[bytes, float]] = []  # by versionstamp; they arrive nearly in that order

    def acknowledged(self, versionstamp: bytes, at_ms: float) -> None:
        """A client had its answer."""
        insort(self._acks, (versionstamp, at_ms))

    def count_up_to(self, versionstamp: bytes) -> int:
        """How many of the writes a state holds that ends at `versionstamp`."""
        return bisect_right(self._acks, versionstamp, key=itemgetter(0))

    def behind_ms(self, versionstamp: bytes, now_ms: float) -> float:
        """How long such a state has lacked the oldest write that it lacks; 0 if it lacks none."""
        first = self.count_up_to(versionstamp)
        if first == len(self._acks):
            return 0.0
        return max(0.0, now_ms - min(at_ms for _, at_ms in self._acks[first : first + _OUT_OF_ORDER_COUNT]))
