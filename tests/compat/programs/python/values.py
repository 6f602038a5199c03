"""Values, with PyPI denokv, whose serializer knows most of V8's types."""

from __future__ import annotations

import datetime
from typing import Any

import v8serialize
from denokv import KvU64
from harness import Test, absent, collect, feature, section
from v8serialize.jstypes import JSArray, JSBigInt, JSMap, JSObject, JSSet, JSUndefined
from wire_client import open_wire, packed, pb, set_

section("Values")

CASES: dict[str, list[Any]] = {
    "undefined, null, true and false": [JSUndefined, None, True, False],
    "whole numbers": [0.0, 1.0, -1.0, 2.0**30, 2.0**31, 2.0**53 - 1],
    "-0, NaN, infinities and fractions": [-0.0, float("nan"), float("inf"), float("-inf"), 0.1, 5e-324],
    "bigints": [JSBigInt(0), JSBigInt(1), JSBigInt(-1), JSBigInt(2**64), JSBigInt(-(2**64)), JSBigInt(2**1000)],
    "strings: empty, Latin-1, UTF-16, NUL, emoji": ["", "abc", "é", "日本語", "a\0b", "\U0001f600", "x" * 10_000],
    "dates": [datetime.datetime(2030, 1, 2, 3, 4, 5, 678_000, tzinfo=None)],
    "plain objects": [JSObject(), JSObject(a=1.0, b=JSObject(c=JSArray([1.0, "2", None])))],
    "arrays: dense, with holes, with members, empty": [JSArray([1.0, 2.0]), JSArray()],
    "Map": [JSMap(), JSMap([("a", 1.0), ("b", JSMap([(1.0, 2.0)]))])],
    "Set": [JSSet(), JSSet([1.0, "1"])],
}


def _register(name: str, cases: list[Any]) -> None:
    @feature(f"value: {name}")
    async def _(t: Test) -> None:
        wire = await open_wire(t.url, t.environment.token)
        try:
            for number, value in enumerate(cases):
                await t.kv.set(t.key(number), value)
                t.equal((await t.kv.get(t.key(number)))[1].value, value)
                entry = await wire.get(packed(*t.key(number)))
                t.equal((entry.value, entry.encoding), (bytes(v8serialize.dumps(value)), pb.VE_V8))
        finally:
            await wire.aclose()
        t.equal([entry.value for entry in await collect(t.kv.list(prefix=t.prefix))], cases)


for _name, _cases in CASES.items():
    _register(_name, _cases)


@feature("value: a Uint8Array is stored as it is")
async def _(t: Test) -> None:
    wire = await open_wire(t.url, t.environment.token)
    for number, data in enumerate((b"", b"\x00", bytes(range(256)))):
        await t.kv.set(t.key(number), data)
        t.equal(bytes((await t.kv.get(t.key(number)))[1].value), data)
        entry = await wire.get(packed(*t.key(number)))
        t.equal((entry.value, entry.encoding), (data, pb.VE_BYTES))
    await wire.aclose()


@feature("value: a KvU64 is stored as 8 bytes")
async def _(t: Test) -> None:
    await t.kv.set(t.key("n"), KvU64(258))
    wire = await open_wire(t.url, t.environment.token)
    entry = await wire.get(packed(*t.key("n")))
    await wire.aclose()
    t.equal((entry.value, entry.encoding), (b"\x02\x01" + bytes(6), pb.VE_LE64))


@feature("value: what Deno 2.9 writes (V8's format 16)")
async def _(t: Test) -> None:
    wire = await open_wire(t.url, t.environment.token)
    await wire.write(set_(packed(*t.key("a")), b"\xff\x10\x49\x02", pb.VE_V8))
    await wire.aclose()
    await t.refused(t.kv.get(t.key("a")), "Unsupported version 16")


@feature("value: what Node 20 writes (V8's format 15)")
async def _(t: Test) -> None:
    wire = await open_wire(t.url, t.environment.token)
    await wire.write(set_(packed(*t.key("a")), b"\xff\x0f\x49\x02", pb.VE_V8))
    await wire.aclose()
    t.equal((await t.kv.get(t.key("a")))[1].value, 1)


absent("value: lone surrogates", "a Python string has none")
