"""Every limit, at it and one above, with PyPI denokv, which checks none: the server does."""

from __future__ import annotations

from denokv import VersionStamp
from harness import Test, absent, collect, feature, section

section("Limits")
STAMP = VersionStamp(1)


def key_of(t: Test, size_bytes: int) -> tuple[object, ...]:
    """A key that takes exactly so many bytes."""
    own = len("compat") + 2 + len(t.environment.run) + 2 + 9
    return t.key("k" * (size_bytes - own - 2))


@feature("limit: a key of 2,048 bytes is written, read and listed")
async def _(t: Test) -> None:
    await t.kv.set(key_of(t, 2_048), "v")
    t.equal((await t.kv.get(key_of(t, 2_048)))[1].value, "v")
    t.equal([entry.key[-1] for entry in await collect(t.kv.list(prefix=t.prefix))], [key_of(t, 2_048)[-1]])


@feature("limit: a key of 2,049 bytes to write")
async def _(t: Test) -> None:
    await t.refused(t.kv.set(key_of(t, 2_049), "v"), "A key exceeds the key size limit.")


@feature("limit: a key of 2,050 bytes to read")
async def _(t: Test) -> None:
    await t.refused(t.kv.get(key_of(t, 2_050)), "A key exceeds the key size limit.")


@feature("limit: a key of 2,049 bytes to check")
async def _(t: Test) -> None:
    await t.refused(t.kv.check(key_of(t, 2_049)), "A key exceeds the key size limit.")


@feature("limit: a value of 65,536 bytes")
async def _(t: Test) -> None:
    await t.kv.set(t.key("a"), b"\x01" * 65_536)
    t.equal(bytes((await t.kv.get(t.key("a")))[1].value), b"\x01" * 65_536)


@feature("limit: a value of 65,537 bytes")
async def _(t: Test) -> None:
    await t.refused(t.kv.set(t.key("a"), b"\x01" * 65_537), "A value exceeds the value size limit.")


@feature("limit: 10 keys in a getMany")
async def _(t: Test) -> None:
    t.equal(len(await t.kv.get(*(t.key(number) for number in range(10)))), 10)


@feature("limit: 11 keys in a getMany")
async def _(t: Test) -> None:
    read = t.kv.get(*(t.key(number) for number in range(11)))
    await t.refused(read, "Too many read ranges requested in one read request.")


@feature("limit: 100 checks")
async def _(t: Test) -> None:
    write = t.kv.atomic()
    for number in range(100):
        write.check(t.key(number))
    assert (await write.set(t.key("a"), "v").write()).ok


@feature("limit: 101 checks")
async def _(t: Test) -> None:
    write = t.kv.atomic()
    for number in range(101):
        write.check(t.key(number))
    await t.refused(write.write(), "Too many checks included in atomic write.")


@feature("limit: 1,001 mutations")
async def _(t: Test) -> None:
    write = t.kv.atomic()
    for number in range(1_001):
        write.delete(t.key(number))
    await t.refused(write.write(), "Too many mutations / enqueues included in atomic write.")


@feature("limit: a transaction of just under 819,200 bytes")
async def _(t: Test) -> None:
    write = t.kv.atomic()
    for number in range(12):
        write.set(t.key(number), b"\x01" * 65_536)
    write.set(t.key("rest"), b"\x01" * (819_200 - 12 * 65_536 - 4_000))
    assert (await write.write()).ok


@feature("limit: a transaction of more than 819,200 bytes")
async def _(t: Test) -> None:
    write = t.kv.atomic()
    for number in range(13):
        write.set(t.key(number), b"\x01" * 65_536)
    await t.refused(write.write(), "The total size of the atomic write is too large.")


@feature("limit: keys of more than 81,920 bytes in a transaction")
async def _(t: Test) -> None:
    write = t.kv.atomic()
    for number in range(45):
        write.set((*key_of(t, 2_000), float(number)), "v")
    await t.refused(write.write(), "The total size of the keys in the atomic write is too large.")


absent("limit: 10 keys in a watch", "no watch")
absent("limit: 11 keys in a watch", "no watch")
absent("limit: expireIn below 0, and no integer", "takes a point in time")
