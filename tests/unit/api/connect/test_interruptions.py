"""A watch that is looked after when something else happens."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from kvnode.api.connect.interruptions import with_interruptions


class Source:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()
        self.closed = False

    async def items(self):
        try:
            while (item := await self.queue.get()) is not None:
                yield item
        finally:
            self.closed = True


async def test_items_and_interruptions_in_order() -> None:
    source, happened = Source(), asyncio.Event()
    items = source.items()
    async with aclosing(with_interruptions(items, happened)) as stream:
        source.queue.put_nowait(1)
        assert await anext(stream) == 1
        happened.set()
        assert await anext(stream) is None
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not waiting.done()
        happened.set()
        assert await waiting is None
        source.queue.put_nowait(2)
        assert await anext(stream) == 2, "an item was lost in an interruption"
        source.queue.put_nowait(None)
        assert [item async for item in stream] == []
    assert source.closed


async def test_left_in_the_middle() -> None:
    source, happened = Source(), asyncio.Event()
    items = source.items()
    async with aclosing(with_interruptions(items, happened)) as stream:
        happened.set()
        assert await anext(stream) is None
    await items.aclose()
    assert source.closed
