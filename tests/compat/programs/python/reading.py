"""open_kv and get, with PyPI denokv."""

from __future__ import annotations

import asyncio
from urllib.parse import urljoin

from denokv import ConsistencyLevel, KvKey
from harness import Test, absent, feature, section

section("Opening and closing")
EVENTUAL = ConsistencyLevel.EVENTUAL


@feature("openKv: a database by its URL")
async def _(t: Test) -> None:
    await t.kv.set(t.key("a"), 1.0)
    t.equal((await t.kv.get(t.key("a")))[1].value, 1)


@feature("openKv: two connections see each other's writes at once")
async def _(t: Test) -> None:
    async with await t.environment.open_kv() as other:
        for number in range(20):
            await t.kv.set(t.key("a"), float(number))
            t.equal((await other.get(t.key("a")))[1].value, number)


@feature("openKv: the opt-in URL that reads locally takes writes and reads")
async def _(t: Test) -> None:
    async with await t.environment.open_kv(urljoin(t.url, "eventual")) as local:
        stamp = await local.set(t.key("a"), "here")

        async def arrived() -> bool:
            entry = (await local.get(t.key("a")))[1]
            return entry is not None and entry.versionstamp == stamp

        await t.until(arrived, 5, "it never arrived")


@feature("openKv: a database that does not exist")
async def _(t: Test) -> None:
    async with await t.environment.open_kv(urljoin(t.url, "no-such-database")) as kv:
        await t.refused(kv.get(t.key("a")), "404")


@feature("openKv: an unknown path")
async def _(t: Test) -> None:
    async with await t.environment.open_kv(urljoin(t.url, "no/such/path")) as kv:
        await t.refused(kv.get(t.key("a")), "404")


@feature("openKv: a wrong access token")
async def _(t: Test) -> None:
    async with await t.environment.open_kv(access_token="not-the-access-token") as kv:
        await t.refused(kv.get(t.key("a")), "401")


@feature("close: nothing works afterwards")
async def _(t: Test) -> None:
    kv = await t.environment.open_kv()
    await kv.aclose()
    await t.fails(kv.get(t.key("a")), "Session is closed")


absent("openKv: protocol version 1 only", "always offers versions 1, 2 and 3")
absent("openKv: protocol version 2 only", "always offers versions 1, 2 and 3")
absent("openKv: an unknown protocol version only", "always offers versions 1, 2 and 3")
absent("Symbol.dispose closes", "`async with`")
absent("close: ends a watch", "no watch")

section("Reading keys")


@feature("get: a missing key is null")
async def _(t: Test) -> None:
    t.equal(await t.kv.get(t.key("missing")), (t.key("missing"), None))


@feature("get: key, value and versionstamp")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("a"), "value")
    key, entry = await t.kv.get(t.key("a"))
    assert len(stamp) == 10
    t.equal((key, entry.key, entry.value, entry.versionstamp), (t.key("a"), t.key("a"), "value", stamp))


@feature("get: a missing key before an existing one")
async def _(t: Test) -> None:
    await t.kv.set(t.key("b"), 1.0)
    t.equal((await t.kv.get(t.key("a")))[1], None)


@feature("get: consistency strong")
async def _(t: Test) -> None:
    await t.kv.set(t.key("a"), 1.0)
    t.equal((await t.kv.get(t.key("a"), consistency=ConsistencyLevel.STRONG))[1].value, 1)


@feature("get: consistency eventual")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("a"), 1.0)

    async def arrived() -> bool:
        entry = (await t.kv.get(t.key("a"), consistency=EVENTUAL))[1]
        return entry is not None and entry.versionstamp == stamp

    await t.until(arrived, 5, "the write never arrived")


@feature("getMany: in the order asked, with gaps and repeats")
async def _(t: Test) -> None:
    first, second = await t.kv.set(t.key("a"), 1.0), await t.kv.set(t.key("b"), 2.0)
    entries = await t.kv.get(t.key("b"), t.key("x"), t.key("a"), t.key("b"))
    seen = [entry and (entry.value, entry.versionstamp) for _, entry in entries]
    t.equal(seen, [(2, second), None, (1, first), (2, second)])


@feature("getMany: no keys")
async def _(t: Test) -> None:
    t.equal(await t.kv.get(keys=[]), ())


@feature("getMany: one state, while transactions write both keys")
async def _(t: Test) -> None:
    running = True

    async def write() -> None:
        number = 0.0
        while running:
            await t.kv.atomic().set(t.key("a"), number).set(t.key("b"), number).write()
            number += 1

    await t.kv.atomic().set(t.key("a"), -1.0).set(t.key("b"), -1.0).write()
    writer = asyncio.create_task(write())
    for _ in range(50 if t.quick else 300):
        (_, a), (_, b) = await t.kv.get(t.key("a"), t.key("b"))
        t.equal((a.value, a.versionstamp), (b.value, b.versionstamp))
    running = False
    await writer


@feature("getMany: consistency eventual")
async def _(t: Test) -> None:
    stamp = (await t.kv.atomic().set(t.key("a"), 1.0).set(t.key("b"), 2.0).write()).versionstamp

    async def arrived() -> bool:
        stamps = [
            entry and entry.versionstamp for _, entry in await t.kv.get(t.key("a"), t.key("b"), consistency=EVENTUAL)
        ]
        t.equal(stamps[0], stamps[1])
        return stamps[0] == stamp

    await t.until(arrived, 5, "the write never arrived")


@feature("keys: every type of part, in Deno's order")
async def _(t: Test) -> None:
    texts = [b"", b"\x00", b"\x00\x01\xff", b"\xff", "", "\x00", "a", "a\x00b", "ab", "é", "日本", "\U0001f600"]
    bigints = [-(2**64), -(2**64 - 1), -256, -255, -1, 0, 1, 255, 256, 2**64 - 1, 2**64, 2**200]
    numbers = [float("-inf"), -1.5, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1.0, 1.5, 2.0**53, float("inf")]
    parts = [*texts, *bigints, *numbers, False, True]
    for index in sorted(range(len(parts)), key=lambda n: n * 7 % 37):
        await t.kv.set(KvKey(*t.prefix, parts[index]), float(index))
    listed = [entry async for entry in t.kv.list(prefix=t.prefix)]
    t.equal([entry.value for entry in listed], [float(index) for index in range(len(parts))])
    t.equal([entry.key[-1] for entry in listed], parts)


@feature("keys: -0 and 0 are different keys")
async def _(t: Test) -> None:
    await t.kv.set(t.key(-0.0), "minus")
    await t.kv.set(t.key(0.0), "plus")
    t.equal([entry.value async for entry in t.kv.list(prefix=t.prefix)], ["minus", "plus"])


@feature('keys: 1n, 1, "1" and true are different keys')
async def _(t: Test) -> None:
    keys = [t.key("1"), KvKey(*t.prefix, 1), t.key(1), t.key(True)]
    for number, key in enumerate(keys):
        await t.kv.set(key, float(number))
    t.equal([(await t.kv.get(key))[1].value for key in keys], [0.0, 1.0, 2.0, 3.0])


@feature("keys: an impossible part")
async def _(t: Test) -> None:
    await t.refused(t.kv.get(t.key(None)), "key contains types other than")


absent("get: an unknown consistency", "an enum")
absent("get: an empty key", "takes it as a key that is missing")
