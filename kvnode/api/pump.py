"""A stream of operations is read and answered at the same time; this runs both halves and ends them together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvnode.api.outbox import Outbox


class Pump:
    """The two halves of one stream.

    Args:
        outbox: the answering half.
        stopping: done when the node is about to stop; the stream is then read no further.
    """

    def __init__(self, outbox: Outbox, stopping: asyncio.Future[None]) -> None:
        self._outbox = outbox
        self._stopping = stopping

    async def run(self, read: Callable[[], Awaitable[None]]) -> bool:
        """Serve until the client has sent its last message, then until everything is answered.

        Args:
            read: takes in messages until the client ends its half; what it raises ends the stream.

        Returns:
            True when the node's stopping, not the client, ended the stream.
        """
        loop = asyncio.get_running_loop()
        reader = loop.create_task(_as_coroutine(read))
        writer = loop.create_task(self._outbox.run())
        drain: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({reader, writer, self._stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopped = self._stopping.done() and not reader.done()
            if reader.done():
                reader.result()
            if not writer.done():
                drain = loop.create_task(self._outbox.drained())
                await asyncio.wait({drain, writer}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
            return stopped
        finally:
            tasks = [task for task in (reader, writer, drain) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _as_coroutine(read: Callable[[], Awaitable[None]]) -> None:
    await read()
