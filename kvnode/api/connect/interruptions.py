"""A stream that is also looked after when something else happens: a watch whose token may have been revoked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

Item = TypeVar("Item")


async def with_interruptions(
    items: AsyncGenerator[Item, None], happened: asyncio.Event
) -> AsyncGenerator[Item | None, None]:
    """The items, and None whenever `happened` is set, which clears it. The caller closes `items`."""
    coming: asyncio.Task[Item] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(items))
            happening = asyncio.ensure_future(happened.wait())
            try:
                await asyncio.wait((coming, happening), return_when=asyncio.FIRST_COMPLETED)
            finally:
                happening.cancel()
            if happened.is_set():
                happened.clear()
                yield None
            if coming.done():
                done, coming = coming, None
                try:
                    item = done.result()
                except StopAsyncIteration:
                    return
                yield item
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
