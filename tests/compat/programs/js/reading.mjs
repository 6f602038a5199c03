// get and getMany.
import { feature, section } from "./harness.mjs";

section("Reading keys");

feature("get: a missing key is null", async (t) => {
  t.equal(await t.kv.get(t.key("missing")), { key: t.key("missing"), value: null, versionstamp: null });
});

feature("get: key, value and versionstamp", async (t) => {
  const { versionstamp } = await t.kv.set(t.key("a"), { b: [1, 2] });
  t.ok(/^[0-9a-f]{20}$/.test(versionstamp), versionstamp);
  t.equal(await t.kv.get(t.key("a")), { key: t.key("a"), value: { b: [1, 2] }, versionstamp });
});

feature("get: a missing key before an existing one", async (t) => {
  await t.kv.set(t.key("b"), 1);
  t.equal((await t.kv.get(t.key("a"))).value, null);
});

feature("get: consistency strong", async (t) => {
  await t.kv.set(t.key("a"), 1);
  t.equal((await t.kv.get(t.key("a"), { consistency: "strong" })).value, 1);
});

feature("get: consistency eventual", async (t) => {
  const { versionstamp } = await t.kv.set(t.key("a"), 1);
  const arrived = async () => (await t.kv.get(t.key("a"), { consistency: "eventual" })).versionstamp === versionstamp;
  const ms = await t.until(arrived, 5_000, "the write never arrived");
  if (!t.embedded) t.note(`there after ${Math.ceil(ms)} ms`);
});

feature("get: an unknown consistency", async (t) => {
  const read = async () => await t.kv.get(t.key("a"), { consistency: "weak" });
  await t.refused(read, { deno: "TypeError", node: "Unable to find endpoint" });
}, { absent: { node: "takes it for eventual" } });

feature("get: an empty key", async (t) => {
  await t.refused(() => t.kv.get([]), { deno: "key cannot be empty", node: "Key cannot be empty" });
}, { absent: { deno: "takes it as a key that is missing" } });

feature("getMany: in the order asked, with gaps and repeats", async (t) => {
  const first = await t.kv.set(t.key("a"), 1);
  const second = await t.kv.set(t.key("b"), 2);
  const entries = await t.kv.getMany([t.key("b"), t.key("x"), t.key("a"), t.key("b")]);
  t.equal(entries, [
    { key: t.key("b"), value: 2, versionstamp: second.versionstamp },
    { key: t.key("x"), value: null, versionstamp: null },
    { key: t.key("a"), value: 1, versionstamp: first.versionstamp },
    { key: t.key("b"), value: 2, versionstamp: second.versionstamp },
  ]);
});

feature("getMany: no keys", async (t) => {
  t.equal(await t.kv.getMany([]), []);
});

feature("getMany: one state, while transactions write both keys", async (t) => {
  let running = true;
  const writer = (async () => {
    for (let number = 0; running; number++) {
      await t.kv.atomic().set(t.key("a"), number).set(t.key("b"), number).commit();
    }
  })();
  await t.until(async () => (await t.kv.get(t.key("b"))).value !== null, 5_000, "nothing was written");
  for (let round = 0; round < (t.quick ? 50 : 300); round++) {
    const [a, b] = await t.kv.getMany([t.key("a"), t.key("b")]);
    t.equal([a.value, a.versionstamp], [b.value, b.versionstamp]);
  }
  running = false;
  await writer;
});

feature("getMany: consistency eventual", async (t) => {
  const { versionstamp } = await t.kv.atomic().set(t.key("a"), 1).set(t.key("b"), 2).commit();
  const keys = [t.key("a"), t.key("b")];
  await t.until(async () => {
    const entries = await t.kv.getMany(keys, { consistency: "eventual" });
    t.equal(entries[0].versionstamp, entries[1].versionstamp);
    return entries[0].versionstamp === versionstamp;
  }, 5_000, "the write never arrived");
});

const PARTS = [
  new Uint8Array(), new Uint8Array([0]), new Uint8Array([0, 1, 255]), new Uint8Array([255]),
  "", "\0", "a", "a\0b", "ab", "é", "日本", "\u{1f600}",
  -(2n ** 64n), -(2n ** 64n - 1n), -256n, -255n, -1n, 0n, 1n, 255n, 256n, 2n ** 64n - 1n, 2n ** 64n, 2n ** 200n,
  -Infinity, -Number.MAX_VALUE, -1.5, -1, -Number.MIN_VALUE, 0, Number.MIN_VALUE, 1, 1.5, 2 ** 53, Infinity, NaN,
  false, true,
];

feature("keys: every type of part, in Deno's order", async (t) => {
  const shuffled = PARTS.map((part, index) => [part, index]).sort(([, a], [, b]) => (a * 7) % 37 - (b * 7) % 37);
  await t.fill(shuffled.map(([part, index]) => [t.key(part), index]));
  const listed = await t.collect(t.kv.list({ prefix: t.prefix }));
  t.equal(listed.map((entry) => entry.value), PARTS.map((_, index) => index));
  t.equal(listed.map((entry) => entry.key.at(-1)), PARTS);
  for (const [index, part] of PARTS.entries()) t.equal((await t.kv.get(t.key(part))).value, index);
});

feature("keys: -0 and 0 are different keys", async (t) => {
  await t.kv.set(t.key(-0), "minus");
  await t.kv.set(t.key(0), "plus");
  const listed = await t.collect(t.kv.list({ prefix: t.prefix }));
  t.equal(listed.map((entry) => entry.value), ["minus", "plus"]);
}, { absent: { node: "encodes both as 0" } });

feature("keys: 1n, 1, \"1\" and true are different keys", async (t) => {
  const parts = ["1", 1n, 1, true];
  for (const part of parts) await t.kv.set(t.key(part), typeof part);
  for (const part of parts) t.equal((await t.kv.get(t.key(part))).value, typeof part);
});

feature("keys: an impossible part", async (t) => {
  await t.refused(() => t.kv.get(t.key(null)), { deno: "TypeError", node: "Unsupported keyPart" });
});
