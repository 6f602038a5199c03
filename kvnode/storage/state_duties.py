"""What keeps an open state file healthy: when a checkpoint or a durable point is due, and doing it beside apply.

Theory of operation. One duty is under way at a time. The owner of the state asks `due` between two applies and then
awaits `perform`, which does what must exclude apply and starts what need not:

    idle --log grew by STATE_CHECKPOINT_BYTES--> preparing --(perform: copy)--> settling --> idle
    idle --DURABLE_APPLIED_INTERVAL_MS passed--> durable point --> idle

Two bounds on the log: above STATE_WAL_BYTES the checkpoint after a settle is done to its end while apply waits, so
that SQLite can reuse the log; at twice that, apply waits for whatever is under way (a disk that is too slow).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from kvnode.base.clock import Clock
from kvnode.base.limits import DURABLE_APPLIED_INTERVAL_MS, STATE_CHECKPOINT_BYTES, STATE_WAL_BYTES
from kvnode.storage.state_file import StateFile


async def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; if the caller is cancelled, it goes on by itself: what a thread does cannot be called back."""
    await asyncio.shield(asyncio.ensure_future(work))


class Duties:
    """The duties of one open file.

    Args:
        file: the open generation.
        clock: for the interval of durable points.
        exclusive: held while nothing may be applied.
    """

    def __init__(self, file: StateFile, clock: Clock, exclusive: asyncio.Lock) -> None:
        self._file = file
        self._clock = clock
        self._exclusive = exclusive
        self._beside: asyncio.Task[None] | None = None  # what runs beside apply
        self._prepared = False
        self._closing_round = False
        self._durable_at_ms = clock.monotonic_ms()

    @property
    def due(self) -> bool:
        """Whether `perform` has something to do."""
        if self._beside is not None:
            return self._beside.done() or self._file.wal_holds(2 * STATE_WAL_BYTES)
        return self._prepared or self._closing_round or self._checkpoint_due or self._durable_point_due

    @property
    def _checkpoint_due(self) -> bool:
        return self._file.wal_grown_by(STATE_CHECKPOINT_BYTES)

    @property
    def _durable_point_due(self) -> bool:
        waited_ms = self._clock.monotonic_ms() - self._durable_at_ms
        return waited_ms >= DURABLE_APPLIED_INTERVAL_MS and self._file.durable < self._file.tables.meta.applied_index

    async def perform(self) -> None:
        """Do the next part of what is due.

        Raises:
            StorageFailed: of this part or of the one that ran beside apply.
        """
        if self._beside is not None:
            if not self.due:
                return
            await asyncio.shield(self._beside)  # a failure stays, and is raised again by whatever comes next
            self._beside = None
        if self._closing_round:
            self._closing_round = self._prepared = False
            await run_to_end(self._copy(settle=True))
        elif self._prepared:
            self._prepared = False
            await run_to_end(self._copy(settle=False))
            self._beside = asyncio.ensure_future(self._settle())
        elif self._checkpoint_due or self._durable_point_due:
            self._prepared = self._checkpoint_due
            self._durable_at_ms = self._clock.monotonic_ms()
            self._beside = asyncio.ensure_future(self._file.make_durable())

    async def close(self) -> None:
        """Wait for what runs beside apply."""
        if self._beside is not None:
            await asyncio.shield(self._beside)

    async def _copy(self, *, settle: bool) -> None:
        async with self._exclusive:
            await self._file.copy()
            if settle:
                await self._file.settle()

    async def _settle(self) -> None:
        await self._file.settle()
        self._closing_round = self._file.wal_holds(STATE_WAL_BYTES)
