"""Waits that are broken off, several who wait, and closing while somebody does."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator

import pytest

from kvnode.client.watch_reader import WatchReader


class Numbers:
    """A stream as a watch has it: an asynchronous generator, which a cancelled wait ends."""

    def __init__(self) -> None:
        self.come: asyncio.Queue[int] = asyncio.Queue()
        self.has_ended = False
        self._items = self._generate()

    async def _generate(self) -> AsyncGenerator[int, None]:
        try:
            while True:
                number = await self.come.get()
                if number < 0:
                    raise ValueError(number)
                yield number
        finally:
            self.has_ended = True

    async def __anext__(self) -> int:
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()


async def test_a_wait_that_was_broken_off_loses_nothing_and_ends_nothing() -> None:
    numbers = Numbers()
    reader = WatchReader(numbers)
    for number in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.next(), 0.001)
        numbers.come.put_nowait(number)
        await asyncio.sleep(0.01)  # it comes while nobody waits
        assert await reader.next() == number
    await reader.aclose()
    assert numbers.has_ended


async def test_those_who_wait_together_get_one_each() -> None:
    numbers = Numbers()
    reader = WatchReader(numbers)
    waiting = [asyncio.ensure_future(reader.next()) for _ in range(3)]
    for number in range(3):
        numbers.come.put_nowait(number)
    assert await asyncio.gather(*waiting) == [0, 1, 2]
    await reader.aclose()


async def test_it_is_closed_while_somebody_waits() -> None:
    numbers = Numbers()
    reader = WatchReader(numbers)
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0.01)
    await reader.aclose()
    await reader.aclose()
    for wait in (waiting, reader.next()):
        with pytest.raises(StopAsyncIteration):
            await wait
    assert numbers.has_ended


async def test_an_error_is_told_once_and_is_the_end() -> None:
    numbers = Numbers()
    reader = WatchReader(numbers)
    numbers.come.put_nowait(-1)
    with pytest.raises(ValueError, match="-1"):
        await reader.next()
    with pytest.raises(StopAsyncIteration):
        await reader.next()


async def test_one_that_is_dropped_ends_its_stream() -> None:
    numbers = Numbers()
    reader = WatchReader(numbers)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.next(), 0.001)
    assert not numbers.has_ended
    del reader
    gc.collect()
    await asyncio.sleep(0.01)
    assert numbers.has_ended
