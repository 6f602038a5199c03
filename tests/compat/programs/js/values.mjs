// Values of every type that V8 serializes: read back equal, and stored byte for byte as the client wrote them.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { feature, section } from "./harness.mjs";
import { BYTES, LE64, openRaw, V8 } from "./wire.mjs";

section("Values");

function cycle() {
  const object = { name: "cycle", list: [] };
  object.self = object;
  object.list.push(object, object.list);
  return object;
}

function shared() {
  const part = { n: 1 };
  return { first: part, second: part };
}

function errorOf(kind, message, cause) {
  const error = cause === undefined ? new kind(message) : new kind(message, { cause });
  error.stack = `${error.name}: ${message}\n    at nowhere`;
  return error;
}

const holes = [1, , 3]; // eslint-disable-line no-sparse-arrays
const extras = Object.assign([1, 2], { extra: true });
const deep = Array.from({ length: 200 }).reduce((inner, _, depth) => ({ depth, inner }), null);
const buffer = Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8]).buffer;

const CASES = {
  "undefined, null, true and false": [undefined, null, true, false],
  "whole numbers": [0, 1, -1, 2 ** 30, -(2 ** 30), 2 ** 31, 2 ** 32, Number.MAX_SAFE_INTEGER],
  "-0, NaN, infinities and fractions": [-0, NaN, Infinity, -Infinity, 0.1, 5e-324, Number.MAX_VALUE],
  "bigints": [0n, 1n, -1n, 2n ** 64n, -(2n ** 64n), 2n ** 1_000n, -(7n ** 300n)],
  "strings: empty, Latin-1, UTF-16, NUL, emoji": ["", "abc", "é", "日本語", "a\0b", "\u{1f600}", "x".repeat(10_000)],
  "lone surrogates": ["\ud800", "\udc00", "a\ud83dz"],
  "boxed primitives": [Object(true), Object(1.5), Object("boxed"), Object(5n)],
  "dates": [new Date(0), new Date(1_700_000_000_123), new Date(-1), new Date(NaN)],
  "regular expressions": [/a+/, /\u{1f600}/giu, new RegExp("/", "my")],
  "plain objects": [{}, { a: 1, b: { c: [1, "2", null] } }, { 1: "one", b: 2, 0: "zero" }, { "": 1, "é": 2 }],
  "undefined as a member": [{ a: undefined }, [undefined]],
  "arrays: dense, with holes, with members, empty": [[1, 2, 3], holes, extras, [], new Array(5)],
  "Map": [new Map(), new Map([["a", 1], [{ k: 1 }, new Map([[1, 2]])], [NaN, -0]])],
  "Set": [new Set(), new Set([1, "1", new Set([undefined])])],
  "ArrayBuffer and DataView": [buffer.slice(0), new DataView(buffer.slice(0), 2, 4)],
  "typed arrays inside of an object": [{
    i8: Int8Array.from([-1, 1]), u8c: Uint8ClampedArray.from([0, 255]), u8: Uint8Array.from([0, 1, 255]),
    i16: Int16Array.from([-300]), u16: Uint16Array.from([65_535]), i32: Int32Array.from([-(2 ** 31)]),
    u32: Uint32Array.from([2 ** 32 - 1]), f32: Float32Array.from([0.5]), f64: Float64Array.from([0.1, NaN]),
    i64: BigInt64Array.from([-1n]), u64: BigUint64Array.from([2n ** 64n - 1n]),
  }],
  "typed arrays by themselves": [Int32Array.from([1, -1]), Float64Array.from([-0]), BigUint64Array.from([1n])],
  "errors": [errorOf(Error, "plain"), errorOf(RangeError, "range"), errorOf(TypeError, "with cause", { code: 7 })],
  "cycles": [cycle()],
  "the same object twice": [shared()],
  "nested 200 deep": [deep],
  "900 mixed objects": [
    Array.from({ length: 900 }, (_, n) => ({ n, text: `t${n}`, half: n / 2 })),
  ],
};

/** Equal, the messages, causes and stacks of errors too. */
function sameValue(t, actual, expected) {
  if (expected instanceof Error) {
    t.equal([actual.name, actual.message, actual.stack], [expected.name, expected.message, expected.stack]);
    t.equal(actual.cause, expected.cause);
    t.ok(actual instanceof expected.constructor);
  } else if (expected instanceof Date) {
    t.ok(actual instanceof Date); // Node 20 takes no invalid date for equal to another
    t.equal(actual.getTime(), expected.getTime());
  } else t.equal(actual, expected);
}

/** What the client's own serializer makes of values: Deno's is only to be seen in its own file. */
async function serialized(t, values) {
  if (t.client === "node") {
    const { serialize } = await import("node:v8");
    return values.map((value) => Uint8Array.from(serialize(value)));
  }
  const { DatabaseSync } = await import("node:sqlite");
  const folder = mkdtempSync(join(tmpdir(), "compat-"));
  try {
    const file = join(folder, "own.db");
    const kv = await t.openAt(file);
    for (const [number, value] of values.entries()) await kv.set([number], value);
    kv.close();
    const database = new DatabaseSync(file);
    const rows = database.prepare("select v from kv order by k").all();
    database.close();
    return rows.map((row) => Uint8Array.from(row.v));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

for (const [name, values] of Object.entries(CASES)) {
  feature(`value: ${name}`, async (t) => {
    // First of all: V8 chooses between two forms of an array by what has been done to it before.
    const wanted = t.embedded ? [] : await serialized(t, values);
    for (const [number, value] of values.entries()) await t.kv.set(t.key(number), value);
    for (const [number, value] of values.entries()) sameValue(t, (await t.kv.get(t.key(number))).value, value);
    const listed = await t.collect(t.kv.list({ prefix: t.prefix }));
    values.forEach((value, number) => sameValue(t, listed[number].value, value));
    if (t.embedded) return;
    const raw = await openRaw(t.url, t.token);
    for (const number of values.keys()) {
      t.equal(await raw.get(t.key(number)), { data: wanted[number], encoding: V8 });
      await raw.set(t.key("copy", number), wanted[number], V8);
      sameValue(t, (await t.kv.get(t.key("copy", number))).value, values[number]);
    }
  });
}

feature("value: a Uint8Array is stored as it is", async (t) => {
  const values = [new Uint8Array(), Uint8Array.from([0]), Uint8Array.from({ length: 256 }, (_, byte) => byte)];
  for (const [number, value] of values.entries()) {
    await t.kv.set(t.key(number), value);
    const entry = await t.kv.get(t.key(number));
    t.equal(Uint8Array.from(entry.value), value);
    if (t.embedded) continue;
    t.equal(await (await openRaw(t.url, t.token)).get(t.key(number)), { data: value, encoding: BYTES });
  }
});

feature("value: a KvU64 is stored as 8 bytes", async (t) => {
  await t.kv.set(t.key("n"), new t.KvU64(258n));
  const data = Uint8Array.from([2, 1, 0, 0, 0, 0, 0, 0]);
  t.equal(await (await openRaw(t.url, t.token)).get(t.key("n")), { data, encoding: LE64 });
}, { remote: true });

feature("value: functions, symbols, WeakMap and Promise", async (t) => {
  for (const value of [() => 1, Symbol("s"), new WeakMap(), { f() {} }]) {
    await t.fails(() => t.kv.set(t.key("a"), value), { deno: "", node: "" });
  }
  await t.refused(() => t.kv.set(t.key("a"), Promise.resolve(1)), { deno: "could not be cloned", node: "could not be cloned" });
});

feature("value: what Deno 2.9 writes (V8's format 16)", async (t) => {
  await (await openRaw(t.url, t.token)).set(t.key("a"), Uint8Array.from([0xff, 16, 0x49, 2]), V8);
  if (t.client === "deno") return t.equal((await t.kv.get(t.key("a"))).value, 1);
  await t.refused(() => t.kv.get(t.key("a")), { node: "Unable to deserialize cloned data" });
}, { remote: true });

feature("value: what Node 20 writes (V8's format 15)", async (t) => {
  await (await openRaw(t.url, t.token)).set(t.key("a"), Uint8Array.from([0xff, 15, 0x49, 2]), V8);
  t.equal((await t.kv.get(t.key("a"))).value, 1);
}, { remote: true });

feature("value: every format of V8, future ones too, is given back untouched", async (t) => {
  const raw = await openRaw(t.url, t.token);
  for (const version of [13, 14, 15, 16, 99]) {
    const data = Uint8Array.from([0xff, version, 0x49, 0x02]);
    await raw.set(t.key(version), data, V8);
    t.equal(await raw.get(t.key(version)), { data, encoding: V8 });
  }
}, { remote: true });
