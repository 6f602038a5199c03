"""What becomes true once an index is reached."""

from __future__ import annotations

from typing import Generic, TypeVar

Value = TypeVar("Value")


class Marks(Generic[Value]):
    """Values that wait for their index, in its order; of those that are reached only the newest counts.

    A bounded number waits, spread evenly: whenever they become too many, every second one is dropped, and from then on
    only every second one is kept of those that come, besides the newest. What is left says less, and nothing wrong.

    Args:
        max_count: that wait at a time.
    """

    def __init__(self, max_count: int) -> None:
        self._max_count = max_count
        self._waiting: list[tuple[int, Value]] = []
        self._stride = 1  # of so many that come one stays
        self._last_count = 0  # that have come in the place of the last one

    def add(self, index: int, value: Value) -> None:
        """`value` holds once `index` is reached; indexes and values never go back."""
        if not self._waiting:
            self._stride, self._last_count = 1, 0
        elif self._last_count < self._stride:
            self._waiting.pop()
        else:
            self._last_count = 0
        self._waiting.append((index, value))
        self._last_count += 1
        if len(self._waiting) > self._max_count:
            self._waiting = self._waiting[::2]
            self._stride *= 2
            self._last_count = self._stride

    def reached(self, index: int) -> Value | None:
        """The newest value that `index` has reached since the last time, and forget those up to it."""
        count = 0
        for wanted, _ in self._waiting:
            if wanted > index:
                break
            count += 1
        if not count:
            return None
        newest = self._waiting[count - 1][1]
        del self._waiting[:count]
        return newest
