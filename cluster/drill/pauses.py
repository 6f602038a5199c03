"""When the drill's own process stood still: a call that it was late to look at took no longer for that.

The clients of all regions share this process, and it shares two cores with a dozen others. What it adds to a wait must
be known before the wait is put down to the database.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.workload import now_ms
from kvnode.base import garbage

INTERVAL_MS = 5.0
STAT = Path("/proc/stat")
_STOLEN_COLUMN = 8  # of its first line, which sums over all processors (man 5 proc)


def stolen_ms(stat: Path = STAT) -> float:
    """Processor time that the host has given to others while this machine wanted it, of all processors since the start.

    0 where the system does not tell. It counts in ticks of 10 ms as a rule.
    """
    try:
        first = stat.read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return int(first[_STOLEN_COLUMN]) * 1_000 / os.sysconf("SC_CLK_TCK") if len(first) > _STOLEN_COLUMN else 0.0


class Pauses:
    """Looks at the loop every INTERVAL_MS. Use as a context manager, on the loop.

    CPython's collector is off meanwhile: it walks through the record, which only grows, for up to 150 ms at a time.
    """

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []  # (when it looked, by how much that was too late)
        self._looking: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        garbage.settle()
        gc.disable()
        self._looking = asyncio.ensure_future(self._look())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._looking is not None
        self._looking.cancel()
        gc.enable()

    def longest_ms(self, since_ms: float, until_ms: float) -> float:
        """The longest that ended between two moments of `now_ms`."""
        return max((late for at, late in self._late if since_ms <= at <= until_ms), default=0.0)

    async def _look(self) -> None:
        last = now_ms()
        while True:
            await asyncio.sleep(INTERVAL_MS / 1_000)
            now = now_ms()
            self._late.append((now, max(0.0, now - last - INTERVAL_MS)))
            last = now
