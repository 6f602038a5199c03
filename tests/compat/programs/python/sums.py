"""KvU64, bigint and float sums with their limits, with PyPI denokv."""

from __future__ import annotations

import asyncio

from denokv import KvU64
from harness import Test, absent, feature, section
from v8serialize.jstypes import JSBigInt

section("Numbers: sum, min, max")
MAX = 2**64 - 1


async def value(t: Test, name: str = "n") -> object:
    """The value of one of this feature's keys."""
    return (await t.kv.get(t.key(name)))[1].value


@feature("KvU64: 0, 1 and 2^64-1 are stored and read back")
async def _(t: Test) -> None:
    for number in (0, 1, 2**63, MAX):
        await t.kv.set(t.key("n"), KvU64(number))
        t.equal(await value(t), KvU64(number))


@feature("KvU64: below 0, above 2^64-1, and no bigint")
async def _(t: Test) -> None:
    async def wrap(number: object) -> None:
        KvU64(number)  # type: ignore[arg-type]

    await t.fails(wrap(1.0), "TypeError")
    await t.fails(wrap(MAX + 1), "not in range")
    await t.refused(wrap(-1), "ValueError: value not in range for 64-bit unsigned int")


@feature("sum: a missing key becomes the operand")
async def _(t: Test) -> None:
    await t.kv.sum(t.key("n"), KvU64(7))
    t.equal(await value(t), KvU64(7))


@feature("sum: adds, and wraps at 2^64")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), KvU64(MAX))
    await t.kv.sum(t.key("n"), KvU64(1))
    t.equal(await value(t), KvU64(0))
    await t.kv.atomic().sum(t.key("n"), KvU64(5)).sum(t.key("n"), KvU64(MAX)).write()
    t.equal(await value(t), KvU64(4))


@feature("min and max: of a missing key, and both ways")
async def _(t: Test) -> None:
    for low, high in ((5, 5), (9, 3), (2, 8)):
        await t.kv.atomic().min(t.key("min"), KvU64(low)).max(t.key("max"), KvU64(high)).write()
    t.equal([await value(t, "min"), await value(t, "max")], [KvU64(2), KvU64(8)])


@feature("min and max: unsigned up to 2^64-1")
async def _(t: Test) -> None:
    await t.kv.atomic().set(t.key("min"), KvU64(MAX)).set(t.key("max"), KvU64(1)).write()
    await t.kv.atomic().min(t.key("min"), KvU64(2**63)).max(t.key("max"), KvU64(MAX)).write()
    t.equal([await value(t, "min"), await value(t, "max")], [KvU64(2**63), KvU64(MAX)])


@feature("sum: on a value that is no KvU64")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), "no number")
    await t.refused(t.kv.sum(t.key("n"), KvU64(1)), "Failed to perform 'sum' mutation on a non-U64 value")


@feature("min: on a value that is no KvU64")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), "no number")
    await t.refused(t.kv.min(t.key("n"), KvU64(1)), "Failed to perform 'min' mutation on a non-U64 value")


@feature("max: on a value that is no KvU64")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), "no number")
    await t.refused(t.kv.max(t.key("n"), KvU64(1)), "Failed to perform 'max' mutation on a non-U64 value")


@feature("sum: of a bigint onto a bigint")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), JSBigInt(2**70))
    await t.kv.sum(t.key("n"), JSBigInt(-1))
    t.equal(int(await value(t)), 2**70 - 1)  # type: ignore[call-overload]


@feature("sum: of a number onto a number")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), 1.0)
    await t.kv.sum(t.key("n"), 1.5)
    t.equal(await value(t), 2.5)


@feature("sum: of a bigint onto a KvU64")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), KvU64(1))
    await t.kv.sum(t.key("n"), JSBigInt(2))
    t.equal(await value(t), KvU64(3))


@feature("sum: of a number onto a KvU64")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), KvU64(1))
    await t.refused(t.kv.sum(t.key("n"), 1.0), "Cannot sum KvU64 with Number")


@feature("sum: of a bigint onto a number")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), 1.0)
    await t.refused(t.kv.sum(t.key("n"), JSBigInt(1)), "Cannot sum Number with BigInt")


@feature("sum: of a bigint with min, max and clamp")
async def _(t: Test) -> None:
    await t.kv.sum_bigint(t.key("n"), 5, abort_over=10)
    exceeded = "The result of a Sum operation would exceed its range limit"
    await t.fails(t.kv.sum_bigint(t.key("n"), 6, abort_over=10), exceeded)
    await t.kv.sum_bigint(t.key("n"), 6, clamp_over=10)
    t.equal(int(await value(t)), 10)  # type: ignore[call-overload]
    await t.kv.sum_bigint(t.key("n"), -100, clamp_under=-3)
    t.equal(int(await value(t)), -3)  # type: ignore[call-overload]


@feature("sum: of a number with min, max and clamp")
async def _(t: Test) -> None:
    await t.kv.sum_float(t.key("n"), 0.5, abort_under=0.0, abort_over=1.0)
    exceeded = "The result of a Sum operation would exceed its range limit"
    await t.fails(t.kv.sum_float(t.key("n"), -1.0, abort_under=0.0), exceeded)
    await t.kv.sum_float(t.key("n"), 9.0, clamp_over=1.0)
    t.equal(await value(t), 1.0)


@feature("sum: of a KvU64 with clamp, which the client makes of sum, min and max")
async def _(t: Test) -> None:
    await t.kv.sum_kvu64(t.key("n"), 5, clamp_over=10)
    await t.kv.sum_kvu64(t.key("n"), 9, clamp_over=10)
    t.equal(await value(t), KvU64(10))
    await t.kv.sum_kvu64(t.key("n"), -20, clamp_under=3)
    t.equal(await value(t), KvU64(3))


absent("min: with an operand that is no KvU64", "sends a set for a bigint or float")

section("Concurrent counters")


@feature("counter: 32 tasks with sum")
async def _(t: Test) -> None:
    each = 10 if t.quick else 60

    async def count() -> None:
        for _ in range(each):
            await t.kv.sum(t.key("n"), KvU64(1))

    await asyncio.gather(*(count() for _ in range(32)))
    t.equal(await value(t), KvU64(32 * each))


@feature("counter: 8 tasks that check, and try again")
async def _(t: Test) -> None:
    each = 5 if t.quick else 25

    async def count() -> None:
        for _ in range(each):
            while True:
                _, entry = await t.kv.get(t.key("n"))
                write = t.kv.atomic().check(t.key("n"), entry and entry.versionstamp)
                if (await write.set(t.key("n"), (entry.value if entry else 0.0) + 1.0).write()).ok:
                    break

    await asyncio.gather(*(count() for _ in range(8)))
    t.equal(await value(t), 8.0 * each)


@feature("accounts: concurrent transfers keep the total")
async def _(t: Test) -> None:
    await asyncio.gather(*(t.kv.set(t.key(number), 100.0) for number in range(5)))

    async def transfer(task: int) -> None:
        for turn in range(5 if t.quick else 25):
            source, target = t.key((task + turn) % 5), t.key((task + 2 * turn + 1) % 5)
            while source != target:
                (_, a), (_, b) = await t.kv.get(source, target)
                write = t.kv.atomic().check(a).check(b).set(source, a.value - 1).set(target, b.value + 1)
                if (await write.write()).ok:
                    break

    await asyncio.gather(*(transfer(task) for task in range(8)))
    t.equal(sum([entry.value async for entry in t.kv.list(prefix=t.prefix)]), 500.0)
