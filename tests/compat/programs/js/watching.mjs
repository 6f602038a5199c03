// watch: consistent frames, the last state always.
import { feature, section } from "./harness.mjs";

section("Watching");

/** Reads one frame, or fails. */
async function frame(t, reader, patienceMs = 8_000) {
  const late = t.sleep(patienceMs).then(() => t.assert.fail(`no frame within ${patienceMs} ms`));
  const { value, done } = await Promise.race([reader.read(), late]);
  t.ok(!done, "the watch ended");
  return value;
}

/** Reads until a frame satisfies `wanted`; returns all frames. */
async function framesUntil(t, reader, wanted) {
  const frames = [];
  do frames.push(await frame(t, reader));
  while (!wanted(frames.at(-1)));
  return frames;
}

feature("watch: the state at the start, then changes", async (t) => {
  const first = await t.kv.set(t.key("a"), 1);
  const reader = await t.watch([t.key("a"), t.key("b")]);
  t.equal(await frame(t, reader), [
    { key: t.key("a"), value: 1, versionstamp: first.versionstamp },
    { key: t.key("b"), value: null, versionstamp: null },
  ]);
  const second = await t.kv.set(t.key("b"), 2);
  t.equal(await frame(t, reader), [
    { key: t.key("a"), value: 1, versionstamp: first.versionstamp },
    { key: t.key("b"), value: 2, versionstamp: second.versionstamp },
  ]);
  await reader.cancel();
});

feature("watch: keys that do not exist yet", async (t) => {
  const reader = await t.watch([t.key("a")], { raw: true });
  t.equal(await frame(t, reader), [{ key: t.key("a"), value: null, versionstamp: null }]);
  await t.kv.set(t.key("a"), "now");
  t.equal((await frame(t, reader))[0].value, "now");
  await reader.cancel();
});

feature("watch: a delete", async (t) => {
  await t.kv.set(t.key("a"), 1);
  const reader = await t.watch([t.key("a")]);
  t.equal((await frame(t, reader))[0].value, 1);
  await t.kv.delete(t.key("a"));
  t.equal(await frame(t, reader), [{ key: t.key("a"), value: null, versionstamp: null }]);
  await reader.cancel();
});

feature("watch: sum, min and max", async (t) => {
  await t.kv.set(t.key("n"), new t.KvU64(5n));
  const reader = await t.watch([t.key("n")]);
  t.equal((await frame(t, reader))[0].value, new t.KvU64(5n));
  await t.kv.atomic().sum(t.key("n"), 2n).commit();
  t.equal((await frame(t, reader))[0].value, new t.KvU64(7n));
  await t.kv.atomic().min(t.key("n"), 1n).commit();
  t.equal((await frame(t, reader))[0].value, new t.KvU64(1n));
  await reader.cancel();
});

feature("watch: a key that a stamped key completes", async (t) => {
  await t.kv.set(t.key("log"), "prefix");
  const { versionstamp } = await t.kv.set(t.key("log", t.kv.commitVersionstamp()), 1);
  const reader = await t.watch([t.key("log"), t.key("log", versionstamp)]);
  const entries = await frame(t, reader);
  t.equal(entries.map((entry) => entry.value), ["prefix", 1]);
  await t.kv.set(t.key("log", versionstamp), 2);
  t.equal((await frame(t, reader)).map((entry) => entry.value), ["prefix", 2]);
  await reader.cancel();
}, { absent: { node: "no commitVersionstamp" } });

feature("watch: the same key twice", async (t) => {
  await t.kv.set(t.key("a"), 1);
  const reader = await t.watch([t.key("a"), t.key("a")]);
  t.equal((await frame(t, reader)).map((entry) => entry.value), [1, 1]);
  await t.kv.set(t.key("a"), 2);
  t.equal((await framesUntil(t, reader, ([a]) => a.value === 2)).at(-1).map((entry) => entry.value), [2, 2]);
  await reader.cancel();
});

feature("watch: under a stream of writes every frame is one state, and the last one comes", async (t) => {
  const count = t.quick ? 200 : 2_000;
  await t.kv.atomic().set(t.key("a"), 0).set(t.key("b"), 0).commit();
  const reader = await t.watch([t.key("a"), t.key("b")]);
  const writer = (async () => {
    for (let number = 1; number <= count; number++) {
      await t.kv.atomic().set(t.key("a"), number).set(t.key("b"), number).commit();
    }
  })();
  const frames = await framesUntil(t, reader, ([a]) => a.value === count);
  await writer;
  t.ok(frames.every(([a, b]) => a.value === b.value && a.versionstamp === b.versionstamp), "a torn frame");
  const stamps = frames.map(([a]) => a.versionstamp);
  t.ok(stamps.every((stamp, at) => at === 0 || stamps[at - 1] < stamp), "frames out of order");
  await reader.cancel();
});

feature("watch: raw frames are whole states too, and end with the last one", async (t) => {
  const count = t.quick ? 50 : 500;
  const reader = await t.watch([t.key("a"), t.key("b")], { raw: true });
  t.equal((await frame(t, reader)).map((entry) => entry.value), [null, null]);
  const writer = (async () => {
    for (let n = 1; n <= count; n++) await t.kv.atomic().set(t.key("a"), n).set(t.key("b"), n).commit();
  })();
  const frames = await framesUntil(t, reader, ([a]) => a.value === count);
  await writer;
  t.ok(frames.every(([a, b]) => a.value === b.value && a.versionstamp === b.versionstamp), "a torn frame");
  await reader.cancel();
});

feature("watch: a reader that pauses gets the last state", async (t) => {
  await t.kv.set(t.key("a"), "first");
  const reader = await t.watch([t.key("a")]);
  t.equal((await frame(t, reader))[0].value, "first");
  for (let number = 0; number < 100; number++) await t.kv.set(t.key("a"), number);
  await t.sleep(200);
  await framesUntil(t, reader, ([a]) => a.value === 99);
  await t.kv.set(t.key("a"), "last");
  await framesUntil(t, reader, ([a]) => a.value === "last");
  await reader.cancel();
});

feature("watch: values of 64 KiB on 10 keys", async (t) => {
  const keys = Array.from({ length: 10 }, (_, number) => t.key(number));
  for (const key of keys) await t.kv.set(key, new Uint8Array(65_536).fill(1));
  const reader = await t.watch(keys);
  const entries = await frame(t, reader);
  t.ok(entries.every((entry) => entry.value.length === 65_536));
  await reader.cancel();
});

feature("watch: quiet for 12 seconds, then a change", async (t) => {
  await t.kv.set(t.key("a"), 1);
  const reader = await t.watch([t.key("a")]);
  t.equal((await frame(t, reader))[0].value, 1);
  await t.sleep(12_000);
  await t.kv.set(t.key("a"), 2);
  t.equal((await frame(t, reader))[0].value, 2);
  await reader.cancel();
}, { slow: true });

feature("watch: 50 at a time", async (t) => {
  await t.kv.set(t.key("a"), 0);
  const readers = await Promise.all(Array.from({ length: 50 }, () => t.watch([t.key("a")])));
  for (const reader of readers) t.equal((await frame(t, reader))[0].value, 0);
  await t.kv.set(t.key("a"), 1);
  for (const reader of readers) t.equal((await frame(t, reader))[0].value, 1);
  for (const reader of readers) await reader.cancel();
});

feature("watch: no keys", async (t) => {
  await t.refused(async () => await t.kv.watch([]).getReader().read(), { node: "Provide at least one key to watch" });
}, { absent: { deno: "waits for ever" } });
