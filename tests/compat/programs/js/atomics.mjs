// atomic(): checks, mutations, all or nothing.
import { feature, section } from "./harness.mjs";

section("Atomic operations");

feature("atomic: without any operation", async (t) => {
  const result = await t.kv.atomic().commit();
  t.equal(result.ok, true);
  t.ok(/^[0-9a-f]{20}$/.test(result.versionstamp), result.versionstamp);
});

feature("atomic: set and delete share one versionstamp", async (t) => {
  await t.kv.set(t.key("old"), 1);
  const result = await t.kv.atomic().set(t.key("a"), 1).set(t.key("b"), 2).delete(t.key("old")).commit();
  const [a, b, old] = await t.kv.getMany([t.key("a"), t.key("b"), t.key("old")]);
  t.equal([a.versionstamp, b.versionstamp, old.versionstamp], [result.versionstamp, result.versionstamp, null]);
});

feature("atomic: later mutations see earlier ones", async (t) => {
  const key = t.key("n");
  await t.kv.atomic().set(key, 1).delete(key).sum(key, 5n).sum(key, 2n).max(key, 3n).min(key, 6n).commit();
  t.equal((await t.kv.get(key)).value, new t.KvU64(6n));
});

feature("atomic: mutate with every type of mutation", async (t) => {
  const u64 = (n) => new t.KvU64(n);
  await t.kv.atomic().set(t.key("gone"), 1).set(t.key("max"), u64(3n)).set(t.key("min"), u64(3n)).commit();
  const result = await t.kv.atomic().mutate(
    { type: "set", key: t.key("set"), value: "v" },
    { type: "set", key: t.key("ttl"), value: "v", expireIn: 600_000 },
    { type: "delete", key: t.key("gone") },
    { type: "sum", key: t.key("sum"), value: u64(7n) },
    { type: "max", key: t.key("max"), value: u64(9n) },
    { type: "min", key: t.key("min"), value: u64(2n) },
  ).commit();
  t.equal(result.ok, true);
  const entries = await t.collect(t.kv.list({ prefix: t.prefix }));
  const found = Object.fromEntries(entries.map((entry) => [entry.key.at(-1), entry.value]));
  t.equal(found, { max: u64(9n), min: u64(2n), set: "v", sum: u64(7n), ttl: "v" });
});

feature("atomic: check of a versionstamp", async (t) => {
  const first = await t.kv.set(t.key("a"), 1);
  const check = { key: t.key("a"), versionstamp: first.versionstamp };
  t.equal((await t.kv.atomic().check(check).set(t.key("a"), 2).commit()).ok, true);
  t.equal(await t.kv.atomic().check(check).set(t.key("a"), 3).commit(), { ok: false });
  t.equal((await t.kv.get(t.key("a"))).value, 2);
});

feature("atomic: check of an entry as it was read", async (t) => {
  const missing = await t.kv.get(t.key("a"));
  t.equal((await t.kv.atomic().check(missing).set(t.key("a"), 1).commit()).ok, true);
  t.equal(await t.kv.atomic().check(missing).set(t.key("a"), 2).commit(), { ok: false });
  const entry = await t.kv.get(t.key("a"));
  t.equal((await t.kv.atomic().check(entry).delete(t.key("a")).commit()).ok, true);
});

feature("atomic: several checks, of which one fails", async (t) => {
  const { versionstamp } = await t.kv.set(t.key("a"), 1);
  const checks = [{ key: t.key("a"), versionstamp }, { key: t.key("b"), versionstamp }];
  t.equal(await t.kv.atomic().check(...checks).set(t.key("a"), 2).commit(), { ok: false });
  t.equal(await t.kv.atomic().check(...checks.reverse()).set(t.key("a"), 2).commit(), { ok: false });
  t.equal((await t.kv.get(t.key("a"))).value, 1);
});

feature("atomic: checks alone", async (t) => {
  t.equal((await t.kv.atomic().check({ key: t.key("a"), versionstamp: null }).commit()).ok, true);
  await t.kv.set(t.key("a"), 1);
  t.equal(await t.kv.atomic().check({ key: t.key("a"), versionstamp: null }).commit(), { ok: false });
});

feature("atomic: a check is judged before the mutations", async (t) => {
  const { versionstamp } = await t.kv.set(t.key("a"), 1);
  const operation = t.kv.atomic().set(t.key("a"), 2).check({ key: t.key("a"), versionstamp });
  t.equal((await operation.commit()).ok, true);
});

feature("atomic: a check on a versionstamp that is none", async (t) => {
  const commit = () => t.kv.atomic().check({ key: t.key("a"), versionstamp: "00ff" }).commit();
  await t.refused(commit, { deno: "TypeError: Invalid check", node: "400 Invalid versionstamp." });
});

feature("atomic: of racing writers with the same check, one wins", async (t) => {
  const check = { key: t.key("a"), versionstamp: null };
  const racers = Array.from({ length: 32 }, (_, n) => t.kv.atomic().check(check).set(t.key("a"), n).commit());
  t.equal((await Promise.all(racers)).filter((result) => result.ok).length, 1);
});

feature("atomic: a failing mutation changes nothing", async (t) => {
  await t.kv.set(t.key("text"), "no number");
  const commit = () => t.kv.atomic().set(t.key("x"), 1).sum(t.key("text"), 1n).set(t.key("y"), 1).commit();
  await t.fails(commit, "Failed to perform 'sum' mutation on a non-U64 value in the database");
  const entries = await t.kv.getMany([t.key("x"), t.key("y"), t.key("text")]);
  t.equal(entries.map((entry) => entry.value), [null, null, "no number"]);
});

feature("atomic: 1,000 mutations at once", async (t) => {
  const operation = t.kv.atomic();
  for (let number = 0; number < 1_000; number++) operation.set([...t.prefix, number], number);
  t.equal((await operation.commit()).ok, true);
  t.equal((await t.collect(t.kv.list({ prefix: t.prefix }))).length, 1_000);
});

feature("atomic: an operation committed twice applies twice", async (t) => {
  const operation = t.kv.atomic().sum(t.key("n"), 1n);
  const [first, second] = [await operation.commit(), await operation.commit()];
  t.ok(first.versionstamp < second.versionstamp);
  t.equal((await t.kv.get(t.key("n"))).value, new t.KvU64(2n));
});

feature("atomic: an unknown type of mutation", async (t) => {
  const commit = () => t.kv.atomic().mutate({ type: "append", key: t.key("a"), value: 1 }).commit();
  await t.refused(commit, { deno: "TypeError: Invalid mutation type", node: "400 Invalid mutation kind or arguments." });
});
