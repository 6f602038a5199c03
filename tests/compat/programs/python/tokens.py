"""Databases of their own, and what tokens allow, with PyPI denokv."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urljoin

from harness import Test, absent, collect, feature, section

section("Databases and tokens")


async def opened(t: Test, path: str, token: str) -> Any:
    """A connection to a database with a token of its choice."""
    return await t.environment.open_kv(urljoin(t.url, path), access_token=token)


@feature("a database by its name has keys of its own")
async def _(t: Test) -> None:
    async with await opened(t, t.prepared["ordersName"], t.environment.token) as orders:
        await orders.set(t.key("a"), "orders")
        await t.kv.set(t.key("a"), "default")
        t.equal((await orders.get(t.key("a")))[1].value, "orders")
        t.equal((await t.kv.get(t.key("a")))[1].value, "default")


@feature("a database by its uuid is the same as by its name")
async def _(t: Test) -> None:
    path = f"databases/{t.prepared['ordersUuid']}/connect"
    async with (
        await opened(t, t.prepared["ordersName"], t.environment.token) as named,
        await opened(t, path, t.environment.token) as numbered,
    ):
        stamp = await named.set(t.key("a"), 1.0)
        t.equal((await numbered.get(t.key("a")))[1].versionstamp, stamp)


@feature("a token of one database opens it")
async def _(t: Test) -> None:
    async with await opened(t, t.prepared["ordersName"], t.prepared["ordersToken"]) as orders:
        await orders.set(t.key("a"), 1.0)
        t.equal((await orders.get(t.key("a")))[1].value, 1.0)


@feature("a token of one database at another one")
async def _(t: Test) -> None:
    async with await opened(t, "", t.prepared["ordersToken"]) as kv:
        await t.refused(kv.get(t.key("a")), "401")


@feature("a token to read: reads work, a write")
async def _(t: Test) -> None:
    await t.kv.set(t.key("a"), 1.0)
    async with await opened(t, "", t.prepared["readToken"]) as reader:
        t.equal((await reader.get(t.key("a")))[1].value, 1.0)
        t.equal(len(await collect(reader.list(prefix=t.prefix))), 1)
        await t.refused(reader.set(t.key("b"), 1.0), "403")


@feature("an expired token")
async def _(t: Test) -> None:
    async with await opened(t, "", t.prepared["expiredToken"]) as kv:
        await t.refused(kv.get(t.key("a")), "401")


@feature("a token above its requests a second")
async def _(t: Test) -> None:
    async with await opened(t, "", t.prepared["limitedToken"]) as kv:
        text = await t.error_of(_burst(kv, t.key("a")))
        await asyncio.sleep(2.5)
        t.equal((await kv.get(t.key("a")))[1], None)
        await t.refused(_raise(text), "429")


async def _burst(kv: Any, key: Any) -> None:
    """All come to an end before the first refusal is raised."""
    for found in await asyncio.gather(*(kv.get(key) for _ in range(60)), return_exceptions=True):
        if isinstance(found, BaseException):
            raise found


async def _raise(text: str) -> None:
    raise RuntimeError(text)


absent("no token", "open_kv wants one")
absent("a read-only database: reads work, a write", "tries again for ever, without a pause")
absent("a disabled database: a read", "tries again for ever, without a pause")
