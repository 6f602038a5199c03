"""Catching up with the directory, once for all who wait.

Who is about to refuse a token waits for a round that has *not yet begun*: one that is under way may have asked the
leader before the token was made. So at most one round runs and one is queued, however many strangers knock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Learning:
    """Shares rounds.

    Args:
        learn: one round. Raises KvError.
    """

    def __init__(self, learn: Callable[[], Awaitable[None]]) -> None:
        self._learn = learn
        self._running: asyncio.Task[None] | None = None
        self._queued: asyncio.Task[None] | None = None

    async def round(self) -> None:
        """Return after a round that began after this call. Raises KvError: what the round raised."""
        if self._queued is None:
            self._queued = asyncio.get_running_loop().create_task(self._after(self._running))
            self._queued.add_done_callback(_looked_at)
        await asyncio.shield(self._queued)

    async def _after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        self._running, self._queued = self._queued, None
        await self._learn()


def _looked_at(done: asyncio.Task[None]) -> None:
    """Its error is raised in those who wait; when all have gone away meanwhile, nobody misses it."""
    if not done.cancelled():
        done.exception()
