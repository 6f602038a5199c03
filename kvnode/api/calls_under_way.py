"""Which calls a server has under way, so that it can end as soon as everybody has had an answer.

A call is owed an answer, unless it is *lasting*: a stream that ends only when somebody ends it, as a peer's messages
do. When the server stops, the lasting ones go on until nobody is owed anything: an answer may wait for what they carry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager


class CallsUnderWay:
    """The calls of one server."""

    def __init__(self) -> None:
        self._owed_count = 0
        self._nobody_owed = asyncio.Event()
        self._nobody_owed.set()
        self._lasting: set[asyncio.Future[None]] = set()

    @contextmanager
    def owed(self) -> Iterator[None]:
        """Around a call that is owed an answer."""
        self._owed_count += 1
        self._nobody_owed.clear()
        try:
            yield
        finally:
            self._owed_count -= 1
            if not self._owed_count:
                self._nobody_owed.set()

    async def last(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a lasting call; end_lasting() ends it in good order. Raises what `work` does."""
        task = asyncio.ensure_future(_as_coroutine(work))
        self._lasting.add(task)
        try:
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()
        finally:
            self._lasting.discard(task)
            task.cancel()

    async def settled(self) -> None:
        """Wait until nobody is owed an answer."""
        await self._nobody_owed.wait()

    def end_lasting(self) -> None:
        """End the lasting calls."""
        for work in self._lasting:
            work.cancel()


async def _as_coroutine(work: Callable[[], Awaitable[None]]) -> None:
    await work()
