"""A watch as its reader has it: a wait that is broken off loses nothing, and it may be closed while somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
_Item_co = TypeVar("_Item_co", covariant=True)


class Stream(Protocol[_Item_co]):
    """What a watch reads from; it ends for good when a wait for its next item is cancelled."""

    def __anext__(self) -> Awaitable[_Item_co]:
        """The next item."""

    async def aclose(self) -> None:
        """End it; nobody may be waiting."""


class WatchReader(Generic[Item]):
    """Waits for the items of a stream in a task of its own: `asyncio.wait_for(anext(watch), 1)` may be tried again.

    Those who wait at the same time get one item each, in the order of their coming.

    Args:
        stream: what is read.
    """

    def __init__(self, stream: Stream[Item]) -> None:
        self._stream = stream
        self._coming: asyncio.Future[Item] | None = None  # under way, or there and not taken
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def next(self) -> Item:
        """The next item. Raises what the stream does; StopAsyncIteration when it is over, or was closed."""
        async with self._turn:
            if self._is_closed:
                raise StopAsyncIteration
            if self._coming is None:
                self._coming = asyncio.ensure_future(self._stream.__anext__())
            coming = self._coming
            await asyncio.wait((coming,))
            self._coming = None
            if coming.cancelled():
                raise StopAsyncIteration
            return coming.result()

    async def aclose(self) -> None:
        """End the stream, and the wait of whoever waits. May be called twice."""
        self._is_closed = True
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait((self._coming,))
        await self._stream.aclose()

    def __del__(self) -> None:
        """Of a watch that was dropped after a wait that was broken off: nobody will take what is coming."""
        coming = self._coming
        if coming is not None and not coming.done() and not (loop := coming.get_loop()).is_closed():
            loop.call_soon_threadsafe(_cancel, coming.cancel)


def _cancel(cancel: Callable[[], bool]) -> None:
    cancel()
