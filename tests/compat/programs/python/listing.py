"""list, with PyPI denokv."""

from __future__ import annotations

from denokv import ConsistencyLevel
from harness import Test, absent, collect, feature, section

section("Listing")
LETTERS = "abcdefg"
LONG_COUNT = 10_050


async def fill(t: Test, entries: list[tuple[tuple[object, ...], object]]) -> None:
    """Set many keys, 500 a transaction."""
    for at in range(0, len(entries), 500):
        write = t.kv.atomic()
        for key, value in entries[at : at + 500]:
            write.set(key, value)
        assert (await write.write()).ok


async def letters(t: Test) -> None:
    """One key for each letter."""
    await fill(t, [(t.key(letter), letter) for letter in LETTERS])


async def values_of(t: Test, **options: object) -> str:
    """The values of a list, joined."""
    return "".join(entry.value for entry in await collect(t.kv.list(**options)))


@feature("list: entries have key, value and versionstamp")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("a"), "v")
    (entry,) = await collect(t.kv.list(prefix=t.prefix))
    t.equal((tuple(entry.key), entry.value, entry.versionstamp), (t.key("a"), "v", stamp))


@feature("list: nothing there")
async def _(t: Test) -> None:
    t.equal(await collect(t.kv.list(prefix=t.prefix)), [])


@feature("list: prefix, without the key that equals it and without half parts")
async def _(t: Test) -> None:
    keys = [(t.key(), "x"), (t.key("a"), "x"), (t.key("a", 1), "1"), (t.key("a", 2), "2"), (t.key("ab", 3), "x")]
    await fill(t, keys)
    # This client lists the key that equals the prefix too.
    t.equal(await values_of(t, prefix=t.key("a")), "x12")


@feature("list: prefix and start")
async def _(t: Test) -> None:
    await letters(t)
    t.equal(await values_of(t, prefix=t.prefix, start=t.key("c")), "cdefg")
    t.equal(await values_of(t, prefix=t.prefix, start=t.key("bb")), "cdefg")


@feature("list: prefix and end")
async def _(t: Test) -> None:
    await letters(t)
    t.equal(await values_of(t, prefix=t.prefix, end=t.key("c")), "ab")


@feature("list: start and end")
async def _(t: Test) -> None:
    await letters(t)
    t.equal(await values_of(t, start=t.key("b"), end=t.key("e")), "bcd")
    t.equal(await values_of(t, start=t.key("b"), end=t.key("b")), "")


@feature("list: limit")
async def _(t: Test) -> None:
    await letters(t)
    for limit, wanted in ((1, "a"), (3, "abc"), (100, LETTERS)):
        t.equal(await values_of(t, prefix=t.prefix, limit=limit), wanted)


@feature("list: reverse, with every selector")
async def _(t: Test) -> None:
    await letters(t)
    t.equal(await values_of(t, prefix=t.prefix, reverse=True), "gfedcba")
    t.equal(await values_of(t, prefix=t.prefix, start=t.key("c"), reverse=True), "gfedc")
    t.equal(await values_of(t, prefix=t.prefix, end=t.key("c"), reverse=True), "ba")
    t.equal(await values_of(t, start=t.key("b"), end=t.key("e"), reverse=True), "dcb")
    t.equal(await values_of(t, prefix=t.prefix, reverse=True, limit=2), "gf")


@feature("list: batchSize from 1 up, both ways")
async def _(t: Test) -> None:
    await letters(t)
    for batch_size in (1, 2, 3, 7, 8, 500):
        t.equal(await values_of(t, prefix=t.prefix, batch_size=batch_size), LETTERS)
        t.equal(await values_of(t, prefix=t.prefix, batch_size=batch_size, reverse=True), LETTERS[::-1])
        t.equal(await values_of(t, prefix=t.prefix, batch_size=batch_size, limit=5), "abcde")


@feature("list: consistency eventual")
async def _(t: Test) -> None:
    await letters(t)

    async def arrived() -> bool:
        return await values_of(t, prefix=t.prefix, consistency=ConsistencyLevel.EVENTUAL) == LETTERS

    await t.until(arrived, 5, "the writes never arrived")


@feature("list: cursor goes on where a list ended, both ways")
async def _(t: Test) -> None:
    await letters(t)
    for reverse in (False, True):
        seen, cursor = "", None
        while page := await collect(t.kv.list(prefix=t.prefix, limit=2, reverse=reverse, cursor=cursor)):
            seen += "".join(entry.value for entry in page)
            cursor = page[-1].cursor
        t.equal(seen, LETTERS[::-1] if reverse else LETTERS)


@feature("list: cursor with every selector")
async def _(t: Test) -> None:
    await letters(t)
    for selector, wanted in (
        ({"prefix": t.prefix, "start": t.key("b")}, "bcdefg"),
        ({"prefix": t.prefix, "end": t.key("g")}, "abcdef"),
        ({"start": t.key("b"), "end": t.key("f")}, "bcde"),
    ):
        first = await collect(t.kv.list(**selector, limit=2))
        rest = await values_of(t, **selector, cursor=first[-1].cursor)
        t.equal("".join(entry.value for entry in first) + rest, wanted)


@feature("list: cursor survives a change of the entry it stands on")
async def _(t: Test) -> None:
    await letters(t)
    page = await collect(t.kv.list(prefix=t.prefix, limit=3))
    await t.kv.delete(t.key("c"))
    await t.kv.set(t.key("cc"), "C")
    t.equal(await values_of(t, prefix=t.prefix, cursor=page[-1].cursor), "Cdefg")


@feature("list: a cursor that is none")
async def _(t: Test) -> None:
    await t.refused(collect(t.kv.list(prefix=t.prefix, cursor="a")), "InvalidCursor")


@feature("list: values of 64 KiB, several in one answer")
async def _(t: Test) -> None:
    for number in range(20):
        await t.kv.set(t.key(number), b"\x07" * 65_000)
    t.equal([bytes(entry.value) for entry in await collect(t.kv.list(prefix=t.prefix))], [b"\x07" * 65_000] * 20)


@feature("list: 10,050 entries, both ways, in batches of 100, 500 and 1,000", slow=True)
async def _(t: Test) -> None:
    await fill(t, [(t.key(number), float(number)) for number in range(LONG_COUNT)])
    numbers = [float(number) for number in range(LONG_COUNT)]
    for batch_size in (None, 500, 1_000):  # This client asks for at most 500 at a time.
        forward = await collect(t.kv.list(prefix=t.prefix, batch_size=batch_size))
        assert [entry.value for entry in forward] == numbers
        backward = await collect(t.kv.list(prefix=t.prefix, batch_size=batch_size, reverse=True))
        assert [entry.value for entry in backward] == numbers[::-1]


@feature("list: 10,050 entries page by page with cursors, with every selector, both ways", slow=True)
async def _(t: Test) -> None:
    await fill(t, [(t.key(number), float(number)) for number in range(LONG_COUNT)])
    for selector, first, end in (
        ({"prefix": t.prefix}, 0, LONG_COUNT),
        ({"prefix": t.prefix, "start": t.key(25)}, 25, LONG_COUNT),
        ({"prefix": t.prefix, "end": t.key(10_010)}, 0, 10_010),
        ({"start": t.key(7), "end": t.key(10_020)}, 7, 10_020),
    ):
        for reverse in (False, True):
            seen, cursor = [], None
            while page := await collect(
                t.kv.list(**selector, limit=730, batch_size=365, reverse=reverse, cursor=cursor)
            ):
                seen += [entry.value for entry in page]
                cursor = page[-1].cursor
            wanted = [float(number) for number in range(first, end)]
            assert seen == (wanted[::-1] if reverse else wanted)


absent("list: start alone", "lists to the end of the database")
absent("list: prefix, start and end together", "the prefix is then ignored")
absent("list: a start after the end", "lists nothing")
absent("list: a start outside of the prefix", "start takes precedence")
absent("list: a limit of 0", "lists nothing")
absent("list: batchSize of 1,000", "asks for at most 500 at a time")
absent("list: batchSize of 1,001", "asks for at most 500 at a time")
absent("list: cursor, before the first entry", "each entry has its cursor")
