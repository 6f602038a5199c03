// set and delete.
import { feature, section } from "./harness.mjs";

section("Writing keys");

feature("set: ok and a versionstamp", async (t) => {
  const result = await t.kv.set(t.key("a"), 1);
  t.equal(Object.keys(result).sort(), ["ok", "versionstamp"]);
  t.equal(result.ok, true);
  t.ok(/^[0-9a-f]{20}$/.test(result.versionstamp), result.versionstamp);
});

feature("set: replaces; versionstamps increase", async (t) => {
  let last = "";
  for (const value of ["one", 2, { three: 3 }]) {
    const { versionstamp } = await t.kv.set(t.key("a"), value);
    t.ok(versionstamp > last, `${versionstamp} after ${last}`);
    last = versionstamp;
    t.equal((await t.kv.get(t.key("a"))).value, value);
  }
});

feature("set: versionstamps increase over concurrent writes", async (t) => {
  const results = await Promise.all(Array.from({ length: 64 }, (_, number) => t.kv.set(t.key(number), number)));
  t.equal(new Set(results.map((result) => result.versionstamp)).size, 64);
  const after = await t.kv.set(t.key("after"), 1);
  t.ok(results.every((result) => result.versionstamp < after.versionstamp));
});

feature("set: an empty key", async (t) => {
  await t.refused(() => t.kv.set([], 1), { deno: "key cannot be empty", node: "Key cannot be empty" });
});

feature("set: a value that cannot be cloned", async (t) => {
  await t.refused(() => t.kv.set(t.key("a"), () => 1), { deno: "could not be cloned", node: "could not be cloned" });
});

feature("delete: the key is gone", async (t) => {
  await t.kv.set(t.key("a"), 1);
  t.equal(await t.kv.delete(t.key("a")), undefined);
  t.equal(await t.kv.get(t.key("a")), { key: t.key("a"), value: null, versionstamp: null });
});

feature("delete: a missing key is no error", async (t) => {
  t.equal(await t.kv.delete(t.key("missing")), undefined);
});

feature("delete: an empty key", async (t) => {
  await t.refused(() => t.kv.delete([]), { deno: "key cannot be empty", node: "Key cannot be empty" });
});

feature("commitVersionstamp: set with a stamped key", async (t) => {
  const { versionstamp } = await t.kv.set(t.key("log", t.kv.commitVersionstamp()), "first");
  t.equal((await t.kv.get(t.key("log", versionstamp))).value, "first");
}, { absent: { node: "no commitVersionstamp" } });

feature("commitVersionstamp: a log is read back in commit order", async (t) => {
  const wanted = [];
  for (let number = 0; number < 20; number++) {
    const { versionstamp } = await t.kv.atomic().set(t.key("log", t.kv.commitVersionstamp()), number).commit();
    wanted.push([t.key("log", versionstamp), number]);
  }
  const listed = await t.collect(t.kv.list({ prefix: t.key("log") }));
  t.equal(listed.map((entry) => [entry.key, entry.value]), wanted);
  t.ok(listed.every((entry) => entry.key.at(-1) === entry.versionstamp));
}, { absent: { node: "no commitVersionstamp" } });

feature("commitVersionstamp: only as the last part", async (t) => {
  const key = t.key(t.kv.commitVersionstamp(), "tail");
  await t.refused(() => t.kv.set(key, 1), { deno: "TypeError" });
}, { absent: { node: "no commitVersionstamp" } });
