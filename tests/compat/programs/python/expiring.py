"""Expiry, with PyPI denokv, which takes a point in time rather than a duration."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from denokv import ConsistencyLevel, KvU64
from denokv._kv_writes import Set
from harness import Test, absent, collect, feature, section

section("Expiry")

# Hidden within 100 ms and one commit: what a commit takes on a machine with two busy cores is the larger part.
PROMPT_S = 0.6


def soon(ms: int) -> datetime:
    """A point in time `ms` milliseconds from now."""
    return datetime.now(UTC) + timedelta(milliseconds=ms)


async def set_short(t: Test, ms: int, value: object = "short") -> None:
    """Set the key "a" for so long."""
    await t.kv.write(Set(t.key("a"), value, expire_at=soon(ms)))


async def gone(t: Test, is_gone: Callable[[], Awaitable[bool]]) -> None:
    """Set with half a second to live, and see when it is gone: never early, and soon after."""
    end = time.time() + 0.5
    await set_short(t, 500)
    seen = begun = time.time()
    while not await is_gone():
        seen = begun
        assert seen < end + 3, "still there"
        await asyncio.sleep(0.005)
        begun = time.time()
    assert time.time() > end - 0.01, f"gone {end - time.time():.3f} s early"
    # How long a read takes on a busy machine is not held against it.
    assert seen - end < PROMPT_S, f"still seen {seen - end:.3f} s late"


@feature("expireIn: hidden from get on time, never early")
async def _(t: Test) -> None:
    async def is_gone() -> bool:
        return (await t.kv.get(t.key("a")))[1] is None

    await gone(t, is_gone)


@feature("expireIn: hidden from getMany on time")
async def _(t: Test) -> None:
    async def is_gone() -> bool:
        return (await t.kv.get(t.key("b"), t.key("a")))[1][1] is None

    await gone(t, is_gone)


@feature("expireIn: hidden from list on time, both ways")
async def _(t: Test) -> None:
    async def is_gone() -> bool:
        backward = await collect(t.kv.list(prefix=t.prefix, reverse=True, limit=1))
        return not await collect(t.kv.list(prefix=t.prefix)) and not backward

    await gone(t, is_gone)


@feature("expireIn: hidden from eventual reads on time")
async def _(t: Test) -> None:
    async def is_gone() -> bool:
        return (await t.kv.get(t.key("a"), consistency=ConsistencyLevel.EVENTUAL))[1] is None

    await set_short(t, 60_000)
    await t.until(lambda: _there(t), 5, "the write never arrived")
    await gone(t, is_gone)


async def _there(t: Test) -> bool:
    return (await t.kv.get(t.key("a"), consistency=ConsistencyLevel.EVENTUAL))[1] is not None


@feature("expireIn: hidden from checks on time")
async def _(t: Test) -> None:
    async def is_gone() -> bool:
        return bool(await t.kv.check(t.key("a")))

    await gone(t, is_gone)


@feature("expireIn: a check on its versionstamp fails once it has expired")
async def _(t: Test) -> None:
    await set_short(t, 300)
    _, entry = await t.kv.get(t.key("a"))
    await asyncio.sleep(0.3 + PROMPT_S)
    assert not (await t.kv.atomic().check(entry).set(t.key("b"), "v").write()).ok


@feature("expireIn: a sum onto an expired counter begins anew")
async def _(t: Test) -> None:
    await set_short(t, 300, KvU64(40))
    await asyncio.sleep(0.3 + PROMPT_S)
    await t.kv.sum(t.key("a"), KvU64(2))
    t.equal((await t.kv.get(t.key("a")))[1].value, KvU64(2))


@feature("expireIn: set again without one, it stays")
async def _(t: Test) -> None:
    await set_short(t, 300)
    await t.kv.set(t.key("a"), "long")
    await asyncio.sleep(0.3 + PROMPT_S)
    t.equal((await t.kv.get(t.key("a")))[1].value, "long")


@feature("expireIn: keys of one commit go together")
async def _(t: Test) -> None:
    end = soon(400)
    await t.kv.write(Set(t.key("a"), "v", expire_at=end), Set(t.key("b"), "v", expire_at=end))

    async def both_gone() -> bool:
        (_, a), (_, b) = await t.kv.get(t.key("a"), t.key("b"))
        assert (a is None) == (b is None), "one of them"
        return a is None

    await t.until(both_gone, 4, "still there")


@feature("expireIn: an hour")
async def _(t: Test) -> None:
    await set_short(t, 3_600_000)
    assert (await t.kv.get(t.key("a")))[1] is not None


absent("expireIn: a watch sees it", "no watch")
absent("expireIn: 0 is gone at once", "takes a point in time")
