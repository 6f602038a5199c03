// The same random operations on Deno's own database in one file and on a node, one after the other: what the file gives
// is what the node must give. A seed and a count make the sequence; nothing in it depends on an outcome, so that any
// part of it can be run by itself.
//
//     deno run -A --unstable-kv differential.mjs '{"url": ..., "folder": ..., "start": 0, "seeds": 10}'
//     ... '{..., "start": 17, "seeds": 1, "minimize": true}'       the shortest part of seed 17 that still differs
//
// The database at the URL must be this program's own: it is emptied before each sequence, because lists have no bounds
// here. `folder` takes the files. One JSON line a seed is printed, {seed, operations, counts, differences, texts}; a
// difference is the number of the operation, the call, and what each of the two gave.
//
// Versionstamps differ in value. Each is compared as the number of the operation that committed it, and must be greater
// than all before it in its own database. Errors that the client makes are compared with their text; where the server
// refuses, both must refuse, and the node with 400.
//
// What is known to differ, and why that is right:
//   KEEPS_PART: the file keeps what a failing transaction wrote before it failed; the node changes nothing.
//   SUM_OUTGROWS_A_VALUE: a sum of bigints may leave more than 65,536 bytes in the file; the node refuses such a value,
//   as it refuses to have it set.
//   Expiry: the file shows keys that have expired for up to a minute; only TTLs that outlast the run are drawn.
//   Queues: the client sends no enqueue to a remote database; none is drawn.
// Each is counted by its name. `texts` counts refusals of the node that do not begin with what the file says.
import { join } from "node:path";
import process from "node:process";

const options = { start: 0, seeds: 1, operations: 120, minimize: false, ...JSON.parse(process.argv[2]) };
const { KvU64 } = Deno;
const MAX_U64 = 2n ** 64n - 1n;
const MAX_SHOWN_DIFFERENCES = 10;
const MAX_MINIMIZING_RUNS = 150;
const MAX_TAKEN_ENTRIES = 5_000; // more than a sequence can write: a list that does not end is a difference
const MAX_STAMPED_BASE_BYTES = 2_026; // its key, completed, can just be deleted again by a client
const ABBREVIATED_ABOVE = 120;
const REMOTE_REFUSAL = "KV Connect failed to call";
const KEEPS_PART = "differs: the file keeps part of a failed transaction";
const SUM_OUTGROWS_A_VALUE = "differs: a sum of bigints that outgrows a value";

// ---------------------------------------------------------------------------------------------------- randomness

/** Mulberry32: the same numbers from the same seed, on every machine. */
class Random {
  constructor(seed) {
    this.state = Math.imul(seed + 1, 0x9e3779b1) >>> 0;
  }

  next() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.state ^ (this.state >>> 15), this.state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  below(count) {
    return Math.floor(this.next() * count);
  }

  pick(list) {
    return list[this.below(list.length)];
  }

  chance(probability) {
    return this.next() < probability;
  }

  /** One of [weight, choice]. */
  weighted(table) {
    let left = this.next() * table.reduce((sum, [weight]) => sum + weight, 0);
    for (const [weight, choice] of table) if ((left -= weight) < 0) return choice;
    return table.at(-1)[1];
  }

  some(most, make) {
    return Array.from({ length: this.below(most + 1) }, make);
  }
}

// -------------------------------------------------------------------------------------- what is shown and compared

function digest(text) {
  let hash = 0x811c9dc5;
  for (let at = 0; at < text.length; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193) >>> 0;
  return hash.toString(16);
}

/** Long texts are compared by their length and digest. */
function abbreviated(text) {
  if (text.length <= ABBREVIATED_ABOVE) return text;
  return `${text.slice(0, 40)}…${text.slice(-20)}[${text.length} characters, #${digest(text)}]`;
}

const nothing = new Map();

/** A value as text: two values have the same one only if no program could tell them apart. */
function show(value, stamps = nothing, seen = new Map()) {
  const inner = (part) => show(part, stamps, seen);
  if (typeof value === "string") {
    return stamps.has(value) ? `@${stamps.get(value)}` : abbreviated(JSON.stringify(value));
  }
  if (typeof value === "bigint") {
    return abbreviated(`${value < 0n ? "-" : ""}0x${(value < 0n ? -value : value).toString(16)}n`);
  }
  if (typeof value === "symbol" || typeof value === "function") return String(value);
  if (typeof value !== "object" || value === null) return Object.is(value, -0) ? "-0" : String(value);
  if (seen.has(value)) return `#${seen.get(value)}`;
  seen.set(value, seen.size);
  if (value instanceof Stamp) return `stamp(${value.operation})`;
  if (value === SUFFIX) return "commitVersionstamp()";
  if (value instanceof KvU64) return `KvU64(${value.value})`;
  const name = Object.getPrototypeOf(value)?.constructor?.name ?? "no prototype";
  if (value instanceof Date) return `Date(${value.getTime()})`;
  if (value instanceof RegExp) return `${value} at ${value.lastIndex}`;
  if (value instanceof ArrayBuffer) return `${name}(${abbreviated(new Uint8Array(value).join())})`;
  if (value instanceof DataView) return `${name}(${abbreviated(bytesOf(value).join())})`;
  if (ArrayBuffer.isView(value)) return `${name}(${abbreviated(Array.from(value, (n) => show(n)).join())})`;
  if (value instanceof Map) return `${name}(${Array.from(value, ([k, v]) => `${inner(k)} => ${inner(v)}`).join()})`;
  if (value instanceof Set) return `${name}(${Array.from(value, inner).join()})`;
  if (value instanceof Error) {
    const cause = "cause" in value ? `, cause ${inner(value.cause)}` : "";
    return `${name} ${inner(value.name)} ${inner(value.message)} ${inner(value.stack)}${cause}`;
  }
  if (["Number", "String", "Boolean", "BigInt"].includes(name)) return `${name}(${inner(value.valueOf())})`;
  const members = Object.entries(value).map(([key, part]) => `${show(key)}: ${inner(part)}`);
  if (Array.isArray(value) && members.length === value.length) {
    return `[${Array.from(value.keys(), (n) => members[n].slice(members[n].indexOf(": ") + 2)).join(", ")}]`;
  }
  if (Array.isArray(value)) return `Array(${value.length}) {${members.join(", ")}}`;
  return `${name === "Object" ? "" : name}{${members.join(", ")}}`;
}

/** A key's parts as they are read back: any view as bytes, a lone surrogate as U+FFFD. */
function keyText(key, stamps) {
  const readBack = (part) => {
    if (ArrayBuffer.isView(part)) return bytesOf(part);
    return typeof part === "string" ? part.toWellFormed() : part;
  };
  return `[${key.map((part) => show(readBack(part), stamps)).join(", ")}]`;
}

function bytesOf(view) {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

// ------------------------------------------------------------------------------------------------- the two databases

/** Stands for the versionstamp of the last commit up to an operation, which each database has one of its own for. */
class Stamp {
  constructor(operation) {
    this.operation = operation;
  }
}

/** Stands for kv.commitVersionstamp(). */
const SUFFIX = { suffix: true };

class Store {
  constructor(name, kv) {
    this.name = name;
    this.kv = kv;
    this.begin();
  }

  begin() {
    this.stamps = new Map(); // versionstamp -> the number of the operation
    this.commits = [];
    this.cursors = [];
  }

  /** Notes what a commit gave. */
  committed(result, operation) {
    if (!result.ok) return result;
    const { versionstamp } = result;
    if (!/^[0-9a-f]{20}$/.test(versionstamp)) throw new Error(`no versionstamp: ${versionstamp}`);
    const last = this.commits.at(-1);
    if (last && last.versionstamp >= versionstamp) {
      throw new Error(`versionstamp ${versionstamp} after ${last.versionstamp}`);
    }
    this.commits.push({ operation, versionstamp });
    this.stamps.set(versionstamp, operation);
    return result;
  }

  /** Takes back the note of a commit that the other database has not made. */
  forget(operation) {
    for (const { versionstamp } of this.commits.filter((commit) => commit.operation === operation)) {
      this.stamps.delete(versionstamp);
    }
    this.commits = this.commits.filter((commit) => commit.operation !== operation);
  }

  stamp(operation) {
    return this.commits.findLast((commit) => commit.operation <= operation)?.versionstamp ?? "00000000000000000001";
  }

  /** A key in which the stand-ins are replaced by what they stand for here. */
  key(key) {
    if (!Array.isArray(key)) return key;
    return key.map((part) => {
      if (part instanceof Stamp) return this.stamp(part.operation);
      return part === SUFFIX ? this.kv.commitVersionstamp() : part;
    });
  }

  selector(selector) {
    return Object.fromEntries(Object.entries(selector).map(([name, key]) => [name, this.key(key)]));
  }

  /** Every entry, shown, by its key's text. */
  async everything() {
    const all = new Map();
    for await (const entry of this.kv.list({ prefix: [] }, { batchSize: 1_000 })) {
      all.set(keyText(entry.key, this.stamps), { key: entry.key, text: show(entry, this.stamps) });
    }
    return all;
  }

  /** Removes keys, few enough a transaction for the limit on keys. */
  async remove(keys) {
    for (let at = 0; at < keys.length; at += 35) {
      const atomic = this.kv.atomic();
      for (const key of keys.slice(at, at + 35)) atomic.delete(key);
      await atomic.commit();
    }
  }

  async clear() {
    await this.remove(Array.from((await this.everything()).values(), (entry) => entry.key));
    this.begin();
  }
}

// --------------------------------------------------------------------------------------------------- keys and values

const STRINGS = [
  "", "a", "b", "ab", "a\u0000", "\u0000", "\u0000\u0000", "\u0000ÿ", "ÿ", "é", "日本", "\u{1f600}", "\ud800", "a\udc00",
  "\ufffd", "\uffff", "0", "true", "x".repeat(200),
];
const bytes = (...numbers) => Uint8Array.from(numbers);
const BYTES = [
  bytes(), bytes(0), bytes(0, 0), bytes(0, 255), bytes(255), bytes(255, 0), bytes(255, 255), bytes(1), bytes(2, 97, 0),
  bytes(0x26),
];
const VIEWS = [Uint16Array.from([1, 258]), new DataView(bytes(0, 1, 255).buffer, 1), bytes(1, 2).subarray(0, 0)];
// NaN with its sign set is a key of its own, but the client reads it back as NaN: it could not be removed again, and a
// list backwards would not end.
const NUMBERS = [
  0, -0, 1, -1, 2, 0.5, -0.5, NaN, Infinity, -Infinity, 2 ** 31, -(2 ** 31), 2 ** 53, Number.MIN_VALUE,
  Number.MAX_VALUE, -Number.MAX_VALUE, 1e-310,
];
const BIGINTS = [
  0n, 1n, -1n, 2n, 127n, 128n, 255n, -255n, 256n, -256n, 2n ** 32n, 2n ** 63n, -(2n ** 63n), MAX_U64, -MAX_U64,
  MAX_U64 + 1n,
  -MAX_U64 - 1n, 2n ** 72n - 1n, -(2n ** 72n), 2n ** 2_039n, -(2n ** 2_039n), 2n ** 2_040n - 1n,
];
const BAD_PARTS = [null, undefined, {}, [], ["a"], new Date(0), Symbol("s"), 2n ** 2_040n, -(2n ** 2_040n), () => 1];
const COUNTERS = [0n, 1n, 2n, 7n, 2n ** 63n - 1n, 2n ** 63n, MAX_U64 - 1n, MAX_U64];
const LONG_TTLS_MS = [3_600_000, 86_400_000, 2 ** 31, 2 ** 32 + 1, 2 ** 45, 2 ** 52];

function part(random) {
  return random.weighted([
    [5, () => random.pick(STRINGS)],
    [3, () => random.pick(BYTES)],
    [0.3, () => random.pick(VIEWS)],
    [4, () => random.pick(NUMBERS)],
    [1, () => random.next() * 2 ** random.below(60) * random.pick([1, -1])],
    [4, () => random.pick(BIGINTS)],
    [1, () => random.pick([1n, -1n]) * BigInt(random.below(2 ** 31)) ** BigInt(1 + random.below(12))],
    [2, () => random.chance(0.5)],
  ])();
}

/** Where a sequence reads and writes: few keys, so that operations meet, and keys that begin with others. */
class Keys {
  constructor(random) {
    this.random = random;
    const bases = Array.from({ length: 4 }, () => random.some(2, () => part(random)));
    this.pool = Array.from({ length: 10 }, () => [...random.pick(bases), part(random)]);
    for (let count = 0; count < 5; count++) this.pool.push([...random.pick(this.pool), part(random)]);
    this.pool.push(Array.from({ length: 3 + random.below(12) }, () => part(random)));
    this.counters = new Set(this.pool.slice(6, 12)); // mostly KvU64 there, so that most sums succeed
  }

  one() {
    return this.random.weighted([
      [85, () => this.random.pick(this.pool)],
      [8, () => [...this.random.some(3, () => part(this.random)), part(this.random)]],
      [3, () => this.prefix()],
      [1.2, () => [...this.prefix(), this.random.pick(BAD_PARTS)]],
      [0.5, () => []],
    ])();
  }

  value(key) {
    const { random } = this;
    return this.counters.has(key) && random.chance(0.95) ? new KvU64(random.pick(COUNTERS)) : value(random);
  }

  /** Few of them, so that the mutations of a transaction meet. */
  near(count) {
    const counters = [...this.counters];
    const isCounting = this.random.chance(0.5);
    const one = () => isCounting ? this.random.pick(counters) : this.one();
    const few = Array.from({ length: 1 + this.random.below(3) }, one);
    return Array.from({ length: count }, () => this.random.pick(few));
  }

  prefix() {
    const key = this.random.pick(this.pool);
    return key.slice(0, this.random.below(key.length + 1));
  }

  selector() {
    const { random } = this;
    const inside = (prefix) => [...prefix, ...random.some(2, () => part(random))];
    const under = (prefix) => {
      const those = this.pool.filter((key) => show(key.slice(0, prefix.length)) === show(prefix));
      return random.chance(0.7) && those.length ? random.pick(those) : inside(prefix);
    };
    return random.weighted([
      [4, () => ({ prefix: this.prefix() })],
      [2, () => ({ prefix: [] })],
      [3, () => {
        const prefix = this.prefix();
        return { prefix, start: under(prefix) };
      }],
      [3, () => {
        const prefix = this.prefix();
        return { prefix, end: under(prefix) };
      }],
      [5, () => ({ start: this.one(), end: this.one() })],
      [2, () => ({ start: [], end: this.one() })],
      [2, () => ({ start: this.one(), end: [true, true] })],
      [0.3, () => ({ start: this.one() })],
      [0.3, () => ({ end: this.one() })],
      [0.3, () => ({ prefix: this.prefix(), start: this.one(), end: this.one() })],
      [0.2, () => ({})],
    ])();
  }
}

function cycle() {
  const object = { list: [] };
  object.self = object;
  object.list.push(object, object.list);
  return object;
}

function errorOf(kind, message, more) {
  const error = new kind(message, more);
  error.stack = `${error.name}: ${message}\n    at nowhere`;
  return error;
}

const holes = [1, , 3, , ]; // eslint-disable-line no-sparse-arrays
const SPECIAL_VALUES = [
  undefined, null, true, false, Object(true), Object(-0), Object("boxed"), Object(5n), new Date(0), new Date(-1.5e12),
  new Date(NaN), /a+/, /\u{1f600}/giu, new RegExp("/", "my"), holes, new Array(5),
  Object.assign([1, 2], { extra: true }),
  [[], [[]], {}], new Map(), new Map([["a", 1], [{ k: 1 }, new Map([[NaN, -0]])]]),
  new Set([1, "1", new Set([undefined])]), bytes(1, 2).buffer, new ArrayBuffer(0),
  new DataView(new ArrayBuffer(8), 2, 4),
  Int8Array.from([-1, 1]), Uint8ClampedArray.from([0, 255]), Int16Array.from([-300]), Uint16Array.from([65_535]),
  Int32Array.from([-(2 ** 31)]), Uint32Array.from([2 ** 32 - 1]), Float32Array.from([0.5, NaN]),
  Float64Array.from([-0, 0.1]), BigInt64Array.from([-1n]), BigUint64Array.from([MAX_U64]),
  { inner: bytes(1, 2, 3).subarray(1, 2) }, errorOf(Error, "plain"),
  errorOf(RangeError, "range", { cause: { code: 7 } }),
  errorOf(TypeError, "\ud800", { cause: errorOf(Error, "inner") }), cycle(), { a: undefined, b: [undefined] },
  { 2: "two", b: 2, 1: "one", "": 0, "\ud83d": 1 }, Object.create(null, { a: { value: 1, enumerable: true } }),
  new (class Point { x = 1; })(), [new Date(1), /x/, 1n, new Map([[1n, new Set()]])],
];
const BAD_VALUES = [() => 1, Symbol("s"), new WeakMap(), Promise.resolve(1), { f() {} }, new Map([[1, () => 1]])];

function value(random, depth = 0) {
  return random.weighted([
    [depth ? 0 : 5, () => new KvU64(random.pick(COUNTERS))],
    [2, () => random.pick(BIGINTS)],
    [2, () => random.pick(NUMBERS)],
    [0.5, () => random.below(2 ** 31)],
    [2, () => random.pick(STRINGS)],
    [depth ? 0.3 : 1, () => random.pick(BYTES)],
    [4, () => random.pick(SPECIAL_VALUES)],
    [depth > 2 ? 0 : 1, () => random.some(4, () => value(random, depth + 1))],
    [
      depth > 2 ? 0 : 1,
      () => Object.fromEntries(random.some(4, () => [random.pick(STRINGS), value(random, depth + 1)])),
    ],
    [depth > 2 ? 0 : 0.7, () => new Map(random.some(3, () => [value(random, depth + 1), value(random, depth + 1)]))],
    [depth ? 0 : 0.2, () => random.pick(BAD_VALUES)],
  ])();
}

// -------------------------------------------------------------------------------------------------------- operations
//
// An operation is {kind, text, run}: what it is counted as, the call as text, and what makes it on a store. One that
// may be refused for what a key holds has `mutated`, the keys of its mutations.

function get(random, keys) {
  const key = keys.one();
  const read = readOptions(random);
  return { kind: "get", text: `get(${show(key)}, ${show(read)})`, run: (store) => store.kv.get(store.key(key), read) };
}

function readOptions(random) {
  const consistency = random.weighted([[6, undefined], [2, "strong"], [3, "eventual"], [0.1, "odd"]]);
  return consistency === undefined ? {} : { consistency };
}

function getMany(random, keys) {
  const several = random.some(10, () => keys.one());
  const read = readOptions(random);
  const run = (store) => store.kv.getMany(several.map((key) => store.key(key)), read);
  return { kind: "getMany", text: `getMany(${show(several)}, ${show(read)})`, run };
}

function listOptions(random) {
  const given = random.chance(0.2) ? readOptions(random) : {};
  const number = (usual, large, bad) => random.weighted([[9, usual], [1, random.pick(large)], [0.2, random.pick(bad)]]);
  if (random.chance(0.5)) given.limit = number(1 + random.below(12), [500, 5_000], [0, -1, 1.5, NaN, Infinity]);
  if (random.chance(0.5)) given.reverse = random.chance(0.8);
  if (random.chance(0.5)) given.batchSize = number(1 + random.below(5), [100, 1_000], [0, -1, 1.5, 1_001]);
  return given;
}

/** Takes so many entries of a list, and shows whether it has a cursor then; the cursor is kept. */
async function taken(store, selector, given, count, slot) {
  const iterator = store.kv.list(store.selector(selector), given);
  const entries = [];
  while (entries.length < count) {
    const { value: entry, done } = await iterator.next();
    if (done) break;
    entries.push(entry);
    if (entries.length > MAX_TAKEN_ENTRIES) throw new Error("a list without an end");
  }
  if (!entries.length && count) return { entries };
  const { cursor } = iterator;
  store.cursors[slot] = cursor;
  return { entries, goesOn: cursor !== "" };
}

function list(random, keys) {
  const [selector, given] = [keys.selector(), listOptions(random)];
  const count = random.weighted([[6, Infinity], [3, 1 + random.below(6)], [0.1, 0]]);
  const text = `list(${show(selector)}, ${show(given)}), ${count} taken`;
  return { kind: "list", text, run: (store) => taken(store, selector, given, count, 0) };
}

/** Lists page by page, each with the cursor of the one before. */
function pages(random, keys) {
  const selector = keys.selector();
  const given = { ...listOptions(random), limit: 1 + random.below(4) };
  const run = async (store) => {
    const found = [];
    let more = {};
    while (true) {
      const { entries, goesOn } = await taken(store, selector, { ...given, ...more }, Infinity, 1);
      found.push(entries);
      if (!goesOn || !entries.length || found.length > 300) return found;
      more = { cursor: store.cursors[1] };
    }
  };
  return { kind: "pages", text: `list(${show(selector)}, ${show(given)}), all pages`, run };
}

/** Begins to list, and goes on with the cursor when the database has changed meanwhile. */
function resumed(random, keys) {
  const [selector, first] = [keys.selector(), listOptions(random)];
  const [taking, key, isSet] = [1 + random.below(4), keys.one(), random.chance(0.5)];
  const then = { ...listOptions(random), reverse: first.reverse ?? false };
  const between = `${isSet ? "set" : "delete"}(${show(key)})`;
  const text = `list(${show(selector)}, ${show(first)}), ${taking} taken; ${between}; go on with ${show(then)}`;
  const run = async (store, operation) => {
    const before = await taken(store, selector, first, taking, 2);
    if (isSet) store.committed(await store.kv.set(store.key(key), "between"), operation);
    else await store.kv.delete(store.key(key));
    if (!before.entries.length) return before;
    return [before, await taken(store, selector, { ...then, cursor: store.cursors[2] }, Infinity, 2)];
  };
  return { kind: "resumed", text, run };
}

/** A cursor that this list did not give: of another list, or made up. */
function foreignCursor(random, keys) {
  const [selector, given] = [keys.selector(), listOptions(random)];
  const madeUp = random.pick([null, null, "", "AA", "AGEA", "_w", "____", "AmEA", "!", "A", "Ag"]);
  const text = `list(${show(selector)}, ${show(given)}) with the cursor ${madeUp ?? "of another list"}`;
  const run = (store) => taken(store, selector, { ...given, cursor: madeUp ?? store.cursors[0] }, Infinity, 3);
  return { kind: "foreignCursor", text, run };
}

function ttl(random) {
  if (random.chance(0.75)) return undefined;
  const expireIn = random.weighted([[20, random.pick(LONG_TTLS_MS)], [
    1,
    random.pick([-1, 1.5, NaN, 2 ** 53, 2 ** 60]),
  ]]);
  return { expireIn };
}

function set(random, keys) {
  const key = keys.one();
  const [given, expiry] = [keys.value(key), ttl(random)];
  const run = async (store, operation) => store.committed(await store.kv.set(store.key(key), given, expiry), operation);
  return { kind: expiry ? "setExpiring" : "set", text: `set(${show(key)}, ${show(given)}, ${show(expiry)})`, run };
}

function remove(random, keys) {
  const key = keys.one();
  return { kind: "delete", text: `delete(${show(key)})`, run: (store) => store.kv.delete(store.key(key)) };
}

function stamped(random, keys, number) {
  const prefix = keys.prefix();
  if (random.chance(0.5)) {
    const [key, read] = [[...prefix, new Stamp(number)], readOptions(random)];
    return { kind: "get", text: `get(${show(key)})`, run: (store) => store.kv.get(store.key(key), read) };
  }
  const key = [...prefix, SUFFIX, ...(random.chance(0.05) ? ["more"] : [])];
  const [given, expiry] = [value(random), ttl(random)];
  const run = async (store, operation) => store.committed(await store.kv.set(store.key(key), given, expiry), operation);
  return { kind: "setStamped", text: `set(${show(key)}, ${show(given)}, ${show(expiry)})`, run };
}

/** A check as a stand-in: what it is of the store decides what is sent. */
function check(random, keys, number) {
  const key = keys.one();
  const versionstamp = random.weighted([
    [10, "current"],
    [3, null],
    [3, new Stamp(random.below(number + 1))],
    [0.2, random.pick(["00000000000000000000", "ffffffffffffffffffff", "FFFFFFFFFFFFFFFFFFFF"])],
    [0.1, random.pick(["", "00ff", "zz000000000000000000", 5, undefined])],
  ]);
  return { key, versionstamp };
}

async function resolvedCheck(store, { key, versionstamp }) {
  const own = store.key(key);
  if (versionstamp === "current") return await store.kv.get(own);
  return { key: own, versionstamp: versionstamp instanceof Stamp ? store.stamp(versionstamp.operation) : versionstamp };
}

const U64_OPERANDS = [...COUNTERS, 1n, 1n, 3n];
const MUTATIONS = [
  [5, "set"], [2, "delete"], [6, "sum"], [2.5, "min"], [2.5, "max"], [0.7, "stamped"], [0.1, "append"],
];
const SUMS = ["sum", "min", "max"];
const BAD_OPERANDS = [-1n, MAX_U64 + 1n, 1, "1", null];

/** One mutation: {type, key, value, expireIn}, and whether it comes by a method of its own or by mutate(). */
function mutation(random, keys, key) {
  const drawn = random.weighted(MUTATIONS);
  const type = SUMS.includes(drawn) && !keys.counters.has(key) && random.chance(0.8) ? "set" : drawn;
  if (type === "set") return { type, key, value: keys.value(key), ...ttl(random), byMethod: random.chance(0.5) };
  if (type === "stamped") {
    return { type: "set", key: [...key, SUFFIX], value: value(random), ...ttl(random), byMethod: random.chance(0.5) };
  }
  if (type === "delete") {
    return { type, key, byMethod: random.chance(0.5), ...(random.chance(0.02) ? { value: 1 } : {}) };
  }
  if (random.chance(0.6)) {
    const operand = random.weighted([[60, random.pick(U64_OPERANDS)], [1, random.pick(BAD_OPERANDS)]]);
    return { type, key, value: operand, byMethod: true };
  }
  const operand = random.weighted([
    [12, () => new KvU64(random.pick(U64_OPERANDS))],
    [1, () => random.pick(BIGINTS)],
    [0.5, () => random.pick(NUMBERS)],
    [0.3, () => value(random)],
    [0.1, () => undefined],
  ])();
  return { type, key, value: operand, byMethod: false };
}

function addMutation(store, atomic, { byMethod, ...given }) {
  const own = { ...given, key: store.key(given.key) };
  const { type, key, value: operand, expireIn } = own;
  if (!byMethod || !(type in atomic)) return atomic.mutate(own);
  if (type === "delete") return atomic.delete(key);
  return type === "set"
    ? atomic.set(key, operand, expireIn === undefined ? undefined : { expireIn })
    : atomic[type](key, operand);
}

function transaction(checks, mutations, { twice = false, checksLast = false, together = false } = {}) {
  const text = [
    "atomic()",
    ...checks.map(({ key, versionstamp }) => `.check(${show(key)} ${show(versionstamp)})`),
    ...mutations.map(({ byMethod, type, ...rest }) => {
      const given = Object.values(rest).map((each) => show(each));
      return `.${byMethod ? "" : "mutate "}${type}(${given.join(", ")})`;
    }),
    ...(twice ? [".commit() twice"] : []),
  ].join("");
  const run = async (store, operation) => {
    const atomic = store.kv.atomic();
    const resolved = [];
    for (const each of checks) resolved.push(await resolvedCheck(store, each));
    if (!checksLast) atomic.check(...resolved);
    if (together) {
      atomic.mutate(...mutations.map(({ byMethod: _, ...given }) => ({ ...given, key: store.key(given.key) })));
    } else for (const each of mutations) addMutation(store, atomic, each);
    if (checksLast) atomic.check(...resolved);
    const first = store.committed(await atomic.commit(), operation);
    return twice ? [first, store.committed(await atomic.commit(), operation + 0.5)] : first;
  };
  const mayFail = mutations.some(({ type }) => SUMS.includes(type));
  return {
    kind: "atomic",
    text: abbreviatedCall(text),
    run,
    mutated: mayFail ? mutations.map(({ key }) => key) : undefined,
  };
}

function abbreviatedCall(text) {
  return text.length > 4_000 ? `${text.slice(0, 2_000)} … ${text.slice(-500)}` : text;
}

function atomic(random, keys, number) {
  const checks = random.chance(0.5) ? random.some(3, () => check(random, keys, number)) : [];
  if (checks.length && random.chance(0.2)) checks.push({ ...random.pick(checks) }, check(random, keys, number));
  const mutations = keys.near(random.below(7)).map((key) => mutation(random, keys, key));
  const together = random.chance(0.15) && mutations.every(({ byMethod }) => !byMethod);
  return transaction(checks, mutations, { twice: random.chance(0.04), checksLast: random.chance(0.2), together });
}

/** Sums onto one key whose value is of a certain type: all that may meet, and what each leaves. */
function sums(random, keys) {
  const key = random.pick(keys.pool);
  const counters = COUNTERS.map((n) => new KvU64(n));
  const [kind, operands] = random.pick([[BIGINTS, BIGINTS], [NUMBERS, NUMBERS], [BIGINTS, NUMBERS], [
    counters,
    BIGINTS,
  ]]);
  const starts = random.chance(0.85) ? [{ type: "set", key, value: random.pick(kind), byMethod: true }] : [];
  const many = Array.from(
    { length: 1 + random.below(3) },
    () => ({ type: "sum", key, value: random.pick(operands), byMethod: false }),
  );
  return transaction([], [...starts, ...many]);
}

// Every limit, at it and one beside it.

const textKey = (bytes, first = "k") => [first + "k".repeat(bytes - 2 - first.length)];
const filled = (bytes) => new Uint8Array(bytes).fill(7);
const setOf = (key, given) => ({ type: "set", key, value: given, byMethod: true });

const LIMITS = [
  (random, near) => {
    const key = textKey(near(2_048));
    return random.weighted([
      [3, () => transaction([], [setOf(key, 1)])],
      [1, () => transaction([], [{ type: "delete", key, byMethod: true }])],
      [1, () => transaction([], [{ type: "sum", key, value: 1n, byMethod: true }])],
      [1, () => transaction([{ key, versionstamp: null }], [])],
      [2, () => ({ text: `get(${show(key)})`, run: (store) => store.kv.get(key) })],
      [2, () => ({ text: `getMany(["a"], ${show(key)})`, run: (store) => store.kv.getMany([["a"], key]) })],
    ])();
  },
  (random, near) => {
    const key = textKey(near(2_048));
    const selector = random.pick([{ prefix: key }, { start: key, end: [true] }, { start: ["a"], end: key }, {
      prefix: [],
      start: key,
    }]);
    const given = random.pick([{}, { reverse: true }, { batchSize: 1 }, { limit: 1 }]);
    return {
      text: `list(${show(selector)}, ${show(given)})`,
      run: (store) => taken(store, selector, given, Infinity, 3),
    };
  },
  (random) => {
    const key = [...textKey(MAX_STAMPED_BASE_BYTES - random.below(3), "stamped"), SUFFIX];
    return transaction([], [setOf(key, 1)]);
  },
  (random, near) => transaction([], [setOf(["large", random.below(3)], filled(near(65_536)))]),
  (random, near) => transaction([], [setOf(["large", random.below(3)], "v".repeat(near(65_530)))]),
  (random, near) => transaction([], [setOf(["large", random.below(3)], "日".repeat(near(65_530) >> 1))]),
  (random, near) => {
    const several = Array.from({ length: near(10) }, (_, n) => ["large", n]);
    return { text: `getMany of ${several.length}`, run: (store) => store.kv.getMany(several) };
  },
  (random, near) => {
    const same = random.chance(0.5);
    const checks = Array.from(
      { length: near(100) },
      (_, n) => ({ key: ["missing", same ? 0 : n], versionstamp: null }),
    );
    return transaction(checks, [setOf(["checked"], checks.length)]);
  },
  (random, near) => {
    const type = random.pick(["set", "sum", "max", "delete"]);
    const same = random.chance(0.5);
    const valued = (n) => type === "delete" ? {} : { value: BigInt(n) };
    const one = (n) => ({ type, key: ["many", same ? 0 : n % 60], byMethod: true, ...valued(n) });
    return transaction([], Array.from({ length: near(1_000) }, (_, n) => one(n)));
  },
  (random, near) => {
    // The client counts a key twice when it has a value: 12 values of the greatest size, and a last one that fills up.
    const keys = Array.from({ length: 13 }, (_, n) => ["large", String(n).padStart(2, "0")]);
    const left = near(819_200) - 12 * 65_536 - 13 * 2 * 11;
    const twice = random.chance(0.7) ? 0 : random.below(600);
    return transaction([], keys.map((key, n) => setOf(key, filled(n < 12 ? 65_536 : left - twice))));
  },
  (random, near) => {
    const last = near(81_920) - 39 * 2_048;
    const keys = Array.from({ length: 40 }, (_, n) => textKey(n < 39 ? 2_048 : last, `${n}`));
    return transaction([], keys.map((key) => ({ type: "delete", key, byMethod: true })));
  },
  (random) => {
    // Sums that outgrow a value: the operand fits, the result may not.
    const bytes = random.pick([8_000, 65_520, 65_524, 65_528]);
    const operand = 2n ** BigInt(8 * bytes) - 1n;
    const one = { type: "sum", key: ["large", "bigint"], value: operand, byMethod: false };
    return transaction([], [{ ...one, type: "set" }, ...Array.from({ length: 1 + random.below(3) }, () => one)]);
  },
  (random) => {
    const selector = random.pick([{ prefix: [] }, { prefix: ["many"] }, { prefix: ["large"] }]);
    const [batchSize, reverse] = [random.pick([1, 7, 500, 999, 1_000, 1_001]), random.chance(0.5)];
    const given = { batchSize, reverse, limit: random.pick([1, 50, 999, 1_000, 1_001]) };
    return {
      text: `list(${show(selector)}, ${show(given)})`,
      run: (store) => taken(store, selector, given, Infinity, 3),
    };
  },
];

function limit(random) {
  const near = (bound) => bound + random.pick([-1, 0, 0, 1, 2]);
  return { ...random.pick(LIMITS)(random, near), kind: "limit" };
}

const KINDS = [
  [14, get], [7, getMany], [16, list], [4, pages], [4, resumed], [1.5, foreignCursor], [20, set], [5, remove],
  [6, stamped], [26, atomic], [6, sums], [4, limit],
];

/** The sequence of a seed. All of the database is listed at its end, both ways. */
function sequence(seed, count) {
  const random = new Random(seed);
  const keys = new Keys(random);
  const operations = Array.from(
    { length: count },
    (_, number) => ({ ...random.weighted(KINDS)(random, keys, number), number }),
  );
  for (const reverse of [false, true]) {
    const run = (store) => taken(store, { prefix: [] }, { reverse }, Infinity, 3);
    operations.push({
      kind: "list",
      text: `list({prefix: []}, {reverse: ${reverse}})`,
      run,
      number: operations.length,
    });
  }
  return operations;
}

// --------------------------------------------------------------------------------------------------------- the runner

async function attempt(store, operation) {
  try {
    const result = await operation.run(store, operation.number);
    return { result, text: show(result, store.stamps) };
  } catch (error) {
    const { message } = error;
    return {
      error,
      text: `${error.constructor.name} ${error.name}: ${message}`,
      isRemote: message.includes(REMOTE_REFUSAL),
    };
  }
}

/** Whether the two gave the same. */
function agree(file, node) {
  if (!node.isRemote) return file.text === node.text;
  return file.error !== undefined && node.error.message.includes("(status=400 ");
}

/** What the keys that a transaction is about to change hold; those that cannot be read, it cannot change either. */
async function held(store, operation) {
  const keys = new Map();
  for (const key of operation.mutated) if (!key.includes(SUFFIX)) keys.set(show(key), store.key(key));
  const all = [...keys.values()];
  const texts = [];
  for (let at = 0; at < all.length; at += 10) {
    try {
      texts.push(show(await store.kv.getMany(all.slice(at, at + 10)), store.stamps));
    } catch (error) {
      texts.push(error.message);
    }
  }
  return texts.join("\n");
}

/**
 * The server refused a transaction. The node must hold what it held before, and nothing that no commit has written.
 * KEEPS_PART: the file may differ in the keys of this transaction and in no others; these are removed from both, so
 * that the sequence can go on. So it is where the file has made the whole transaction because it has no bound for a sum
 * (`isOutgrown`).
 */
async function settle([file, node], operation, before, counts, isOutgrown) {
  const after = await held(node, operation);
  const hasCommitted = node.commits.at(-1)?.operation === operation.number; // the first of two times
  if (after !== before && !hasCommitted) return { file: "nothing may change", node: `was ${before}\nis ${after}` };
  const [inFile, inNode] = [await file.everything(), await node.everything()];
  const written = [...inNode.values()].find(({ text }) => text.includes('"versionstamp": "')); // of no known commit
  if (written) return { file: "nothing may be written", node: written.text };
  const names = new Set([...inFile.keys(), ...inNode.keys()]);
  const differing = [...names].filter((name) => inFile.get(name)?.text !== inNode.get(name)?.text);
  if (!differing.length) return null;
  const own = operation.mutated.map((key) =>
    keyText(node.key(key.filter((part) => part !== SUFFIX)), node.stamps).slice(0, -1)
  );
  const others = differing.filter((name) => !own.some((prefix) => name.startsWith(prefix)));
  if (others.length || (operation.mutated.length < 2 && !isOutgrown)) {
    const texts = (all) => differing.map((name) => all.get(name)?.text ?? "missing").join("\n");
    return { file: texts(inFile), node: texts(inNode) };
  }
  add(counts, isOutgrown ? SUM_OUTGROWS_A_VALUE : KEEPS_PART);
  const keysOf = (all) => differing.map((name) => all.get(name)?.key).filter((key) => key !== undefined);
  await file.remove(keysOf(inFile));
  await node.remove(keysOf(inNode));
  return null;
}

function add(counts, name, by = 1) {
  counts[name] = (counts[name] ?? 0) + by;
}

function count(counts, operation, { result, error, isRemote }) {
  add(counts, operation.kind);
  if (isRemote) add(counts, "refusedByServer");
  else if (error) add(counts, "refusedByClient");
  else if (result?.ok === true) add(counts, "committed");
  else if (result?.ok === false) add(counts, "checkFailed");
  else if (result?.entries) add(counts, "listedEntries", result.entries.length);
  else if (operation.kind === "get") add(counts, result.versionstamp ? "found" : "missing");
}

/** One operation on both; null, or what the two gave when that differs. */
async function compareOne([file, node], operation, { counts, texts }) {
  const before = operation.mutated && await held(node, operation);
  const [inFile, atNode] = [await attempt(file, operation), await attempt(node, operation)];
  count(counts, operation, atNode);
  if (agree(inFile, atNode)) {
    if (!atNode.isRemote) return null;
    const said = atNode.error.message.slice(atNode.error.message.indexOf("): ") + 3);
    if (!said.startsWith(inFile.error.message)) add(texts, `${inFile.error.message} | ${said}`);
    return operation.mutated ? await settle([file, node], operation, before, counts, false) : null;
  }
  if (atNode.isRemote && !inFile.error && /A value exceeds the value size limit. The sum has/.test(atNode.error.message)) {
    file.forget(operation.number);
    return await settle([file, node], operation, before, counts, true);
  }
  return { file: inFile.text, node: atNode.text };
}

async function removeFile(path) {
  for (const suffix of ["", "-shm", "-wal"]) await Deno.remove(path + suffix).catch(() => {});
}

/** Runs operations on both, from empty ones. */
async function compare(node, operations, name) {
  const path = join(options.folder, name);
  await removeFile(path); // of a run that was cut off
  const file = new Store("file", await Deno.openKv(path));
  const [differences, counts, texts] = [[], {}, {}];
  try {
    await node.clear();
    for (const operation of operations) {
      const differs = await compareOne([file, node], operation, { counts, texts });
      if (differs) differences.push({ operation: operation.number, call: operation.text, ...differs });
      if (differences.length >= MAX_SHOWN_DIFFERENCES) break;
    }
  } finally {
    file.kv.close();
    await removeFile(path);
  }
  return { differences, counts, texts };
}

/** The shortest part that can be found of what leads to the first difference: pieces are left out while it stays. */
async function minimized(node, operations, last) {
  const final = operations.find(({ number }) => number === last);
  let kept = operations.filter(({ number }) => number < last);
  let found = null;
  let runs = 0;
  const stays = async (part) => {
    const { differences } = await compare(node, [...part, final], `minimizing-${runs++}`);
    if (!differences.some(({ operation }) => operation === last)) return false;
    found = differences;
    return true;
  };
  for (
    let size = Math.ceil(kept.length / 2);
    size >= 1 && runs < MAX_MINIMIZING_RUNS;
    size = size === 1 ? 0 : Math.ceil(size / 2)
  ) {
    for (let at = 0; at < kept.length && runs < MAX_MINIMIZING_RUNS;) {
      const fewer = [...kept.slice(0, at), ...kept.slice(at + size)];
      if (await stays(fewer)) kept = fewer;
      else at += size;
    }
  }
  return { calls: [...kept, final].map(({ text }) => text), differences: found };
}

const node = new Store("node", await Deno.openKv(options.url));
for (let seed = options.start; seed < options.start + options.seeds; seed++) {
  const operations = sequence(seed, options.operations);
  const { differences, counts, texts } = await compare(node, operations, `seed-${seed}`);
  const report = { seed, operations: options.operations, counts, differences, texts };
  if (options.minimize && differences.length) {
    report.minimized = await minimized(node, operations, differences[0].operation);
  }
  console.log(JSON.stringify(report));
}
node.kv.close();
