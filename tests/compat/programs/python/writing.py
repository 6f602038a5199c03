"""set, delete and atomic operations, with PyPI denokv."""

from __future__ import annotations

import asyncio

from denokv import KvU64
from harness import Test, absent, collect, feature, section

section("Writing keys")


@feature("set: ok and a versionstamp")
async def _(t: Test) -> None:
    assert len(await t.kv.set(t.key("a"), 1.0)) == 10


@feature("set: replaces; versionstamps increase")
async def _(t: Test) -> None:
    last = b""
    for value in ("one", 2.0, None):
        stamp = await t.kv.set(t.key("a"), value)
        assert stamp > last
        last = stamp
        t.equal((await t.kv.get(t.key("a")))[1].value, value)


@feature("set: versionstamps increase over concurrent writes")
async def _(t: Test) -> None:
    stamps = await asyncio.gather(*(t.kv.set(t.key(number), 1.0) for number in range(64)))
    assert len(set(stamps)) == 64
    assert max(stamps) < await t.kv.set(t.key("after"), 1.0)


@feature("set: an empty key")
async def _(t: Test) -> None:
    await t.refused(t.kv.set((), 1.0), "status=400")


@feature("set: a value that cannot be cloned")
async def _(t: Test) -> None:
    await t.refused(t.kv.set(t.key("a"), lambda: 1), "UnhandledValueEncodeV8SerializeError")


@feature("delete: the key is gone")
async def _(t: Test) -> None:
    await t.kv.set(t.key("a"), 1.0)
    await t.kv.delete(t.key("a"))
    t.equal((await t.kv.get(t.key("a")))[1], None)


@feature("delete: a missing key is no error")
async def _(t: Test) -> None:
    await t.kv.delete(t.key("missing"))


@feature("delete: an empty key")
async def _(t: Test) -> None:
    await t.refused(t.kv.delete(()), "status=400")


@feature("commitVersionstamp: set with a stamped key")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("log"), "first", versioned=True)
    t.equal((await t.kv.get(t.key("log", str(stamp))))[1].value, "first")


@feature("commitVersionstamp: a log is read back in commit order")
async def _(t: Test) -> None:
    wanted = []
    for number in range(20):
        result = await t.kv.atomic().set(t.key("log"), float(number), versioned=True).write()
        wanted.append((str(result.versionstamp), float(number)))
    listed = await collect(t.kv.list(prefix=t.key("log")))
    t.equal([(entry.key[-1], entry.value) for entry in listed], wanted)
    assert all(entry.key[-1] == str(entry.versionstamp) for entry in listed)


absent("commitVersionstamp: only as the last part", "`versioned=True` adds it as the last part")

section("Atomic operations")


@feature("atomic: without any operation")
async def _(t: Test) -> None:
    result = await t.kv.write()
    assert result.ok and len(result.versionstamp) == 10


@feature("atomic: set and delete share one versionstamp")
async def _(t: Test) -> None:
    await t.kv.set(t.key("old"), 1.0)
    result = await t.kv.atomic().set(t.key("a"), 1.0).set(t.key("b"), 2.0).delete(t.key("old")).write()
    (_, a), (_, b), (_, old) = await t.kv.get(t.key("a"), t.key("b"), t.key("old"))
    t.equal([a.versionstamp, b.versionstamp, old], [result.versionstamp, result.versionstamp, None])


@feature("atomic: later mutations see earlier ones")
async def _(t: Test) -> None:
    key = t.key("n")
    write = t.kv.atomic().set(key, 1.0).delete(key).sum(key, KvU64(5)).sum(key, KvU64(2))
    await write.max(key, KvU64(3)).min(key, KvU64(6)).write()
    t.equal((await t.kv.get(key))[1].value, KvU64(6))


@feature("atomic: check of a versionstamp")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("a"), 1.0)
    assert (await t.kv.atomic().check(t.key("a"), stamp).set(t.key("a"), 2.0).write()).ok
    assert not (await t.kv.atomic().check(t.key("a"), stamp).set(t.key("a"), 3.0).write()).ok
    t.equal((await t.kv.get(t.key("a")))[1].value, 2.0)


@feature("atomic: check of an entry as it was read")
async def _(t: Test) -> None:
    assert (await t.kv.atomic().check_key_not_set(t.key("a")).set(t.key("a"), 1.0).write()).ok
    assert not (await t.kv.atomic().check_key_not_set(t.key("a")).set(t.key("a"), 2.0).write()).ok
    _, entry = await t.kv.get(t.key("a"))
    assert (await t.kv.atomic().check(entry).delete(t.key("a")).write()).ok


@feature("atomic: several checks, of which one fails")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("a"), 1.0)
    write = t.kv.atomic().check(t.key("a"), stamp).check(t.key("b"), stamp).set(t.key("a"), 2.0)
    assert not (await write.write()).ok
    t.equal((await t.kv.get(t.key("a")))[1].value, 1.0)


@feature("atomic: the client says which check failed")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("a"), 1.0)
    write = t.kv.atomic().check(t.key("a"), stamp).check(t.key("b"), stamp).check(t.key("c")).check(t.key("d"), stamp)
    result = await write.write()
    t.equal((result.failed_checks, result.has_unknown_conflicts), ((1, 3), False))
    t.equal(set(result.conflicts), {t.key("b"), t.key("d")})


@feature("atomic: checks alone")
async def _(t: Test) -> None:
    t.equal(await t.kv.check(t.key("a")), True)
    await t.kv.set(t.key("a"), 1.0)
    t.equal(await t.kv.check(t.key("a")), False)


@feature("atomic: a check is judged before the mutations")
async def _(t: Test) -> None:
    stamp = await t.kv.set(t.key("a"), 1.0)
    assert (await t.kv.atomic().set(t.key("a"), 2.0).check(t.key("a"), stamp).write()).ok


@feature("atomic: of racing writers with the same check, one wins")
async def _(t: Test) -> None:
    writes = (t.kv.atomic().check(t.key("a")).set(t.key("a"), float(n)).write() for n in range(32))
    results = await asyncio.gather(*writes)
    t.equal(sum(result.ok for result in results), 1)


@feature("atomic: a failing mutation changes nothing")
async def _(t: Test) -> None:
    await t.kv.set(t.key("text"), "no number")
    write = t.kv.atomic().set(t.key("x"), 1.0).sum(t.key("text"), KvU64(1)).set(t.key("y"), 1.0).write()
    await t.fails(write, "Failed to perform 'sum' mutation on a non-U64 value in the database")
    t.equal([entry for _, entry in await t.kv.get(t.key("x"), t.key("y"))], [None, None])


@feature("atomic: 1,000 mutations at once")
async def _(t: Test) -> None:
    write = t.kv.atomic()
    for number in range(1_000):
        write.set(t.key(number), float(number))
    assert (await write.write()).ok
    t.equal(len(await collect(t.kv.list(prefix=t.prefix))), 1_000)


@feature("atomic: an operation committed twice applies twice")
async def _(t: Test) -> None:
    write = t.kv.atomic().sum(t.key("n"), KvU64(1))
    assert (await write.write()).versionstamp < (await write.write()).versionstamp
    t.equal((await t.kv.get(t.key("n")))[1].value, KvU64(2))


absent("atomic: mutate with every type of mutation", "see the rows of each")
absent("atomic: a check on a versionstamp that is none", "VersionStamp takes 10 bytes only")
absent("atomic: an unknown type of mutation", "no such call")

section("Queues")


@feature("enqueue")
async def _(t: Test) -> None:
    await t.kv.enqueue("message")


@feature("atomic: enqueue beside a set")
async def _(t: Test) -> None:
    await t.kv.atomic().set(t.key("a"), 1.0).enqueue("message").write()
    t.equal((await t.kv.get(t.key("a")))[1].value, 1.0)


absent("listenQueue", "no listenQueue")
absent("enqueue: a delay above 30 days", "takes any delay")
absent("enqueue: a back-off schedule of 6", "takes any schedule")
