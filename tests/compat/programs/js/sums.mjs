// KvU64, sum, min and max.
import { feature, section } from "./harness.mjs";

section("Numbers: sum, min, max");

const MAX = 2n ** 64n - 1n;

feature("KvU64: 0, 1 and 2^64-1 are stored and read back", async (t) => {
  for (const n of [0n, 1n, 2n ** 63n, MAX]) {
    await t.kv.set(t.key("n"), new t.KvU64(n));
    const { value } = await t.kv.get(t.key("n"));
    t.ok(value instanceof t.KvU64);
    t.equal(value.value, n);
  }
});

feature("KvU64: below 0, above 2^64-1, and no bigint", async (t) => {
  const wrap = (value) => async () => new t.KvU64(value);
  await t.fails(wrap(-1n), { deno: "RangeError: Value must be a positive bigint", node: "value must be a positive bigint" });
  await t.fails(wrap(MAX + 1n), { deno: "must fit in a 64-bit unsigned integer", node: "must fit in a 64-bit unsigned integer" });
  await t.refused(wrap(1), { deno: "TypeError: Value must be a bigint", node: "TypeError: value must be a bigint" });
});

feature("sum: a missing key becomes the operand", async (t) => {
  await t.kv.atomic().sum(t.key("n"), 7n).commit();
  t.equal((await t.kv.get(t.key("n"))).value, new t.KvU64(7n));
});

feature("sum: adds, and wraps at 2^64", async (t) => {
  await t.kv.set(t.key("n"), new t.KvU64(MAX));
  await t.kv.atomic().sum(t.key("n"), 1n).commit();
  t.equal((await t.kv.get(t.key("n"))).value, new t.KvU64(0n));
  await t.kv.atomic().sum(t.key("n"), 5n).sum(t.key("n"), MAX).commit();
  t.equal((await t.kv.get(t.key("n"))).value, new t.KvU64(4n));
});

feature("min and max: of a missing key, and both ways", async (t) => {
  await t.kv.atomic().min(t.key("min"), 5n).max(t.key("max"), 5n).commit();
  await t.kv.atomic().min(t.key("min"), 9n).max(t.key("max"), 3n).commit();
  await t.kv.atomic().min(t.key("min"), 2n).max(t.key("max"), 8n).commit();
  const [min, max] = await t.kv.getMany([t.key("min"), t.key("max")]);
  t.equal([min.value, max.value], [new t.KvU64(2n), new t.KvU64(8n)]);
});

feature("min and max: unsigned up to 2^64-1", async (t) => {
  await t.kv.atomic().set(t.key("min"), new t.KvU64(MAX)).set(t.key("max"), new t.KvU64(1n)).commit();
  await t.kv.atomic().min(t.key("min"), 2n ** 63n).max(t.key("max"), MAX).commit();
  const [min, max] = await t.kv.getMany([t.key("min"), t.key("max")]);
  t.equal([min.value.value, max.value.value], [2n ** 63n, MAX]);
});

for (const type of ["sum", "min", "max"]) {
  const onText = `Failed to perform '${type}' mutation on a non-U64 value in the database`;
  feature(`${type}: on a value that is no KvU64`, async (t) => {
    await t.kv.set(t.key("text"), "no number");
    await t.refused(() => t.kv.atomic()[type](t.key("text"), 1n).commit(), onText);
  });
}

feature("sum: of a bigint onto a bigint", async (t) => {
  await t.kv.set(t.key("n"), 2n ** 70n);
  await t.kv.atomic().mutate({ type: "sum", key: t.key("n"), value: -1n }).commit();
  t.equal((await t.kv.get(t.key("n"))).value, 2n ** 70n - 1n);
});

feature("sum: of a number onto a number", async (t) => {
  await t.kv.set(t.key("n"), 1);
  await t.kv.atomic().mutate({ type: "sum", key: t.key("n"), value: 1.5 }).commit();
  t.equal((await t.kv.get(t.key("n"))).value, 2.5);
});

feature("sum: of a bigint onto a KvU64", async (t) => {
  await t.kv.set(t.key("n"), new t.KvU64(1n));
  await t.kv.atomic().mutate({ type: "sum", key: t.key("n"), value: 2n }).commit();
  t.equal((await t.kv.get(t.key("n"))).value, new t.KvU64(3n));
});

feature("sum: of a number onto a KvU64", async (t) => {
  await t.kv.set(t.key("n"), new t.KvU64(1n));
  const commit = () => t.kv.atomic().mutate({ type: "sum", key: t.key("n"), value: 1 }).commit();
  await t.refused(commit, "Cannot sum KvU64 with Number");
});

feature("sum: of a bigint onto a number", async (t) => {
  await t.kv.set(t.key("n"), 1);
  const commit = () => t.kv.atomic().mutate({ type: "sum", key: t.key("n"), value: 1n }).commit();
  await t.refused(commit, "Cannot sum Number with BigInt");
});

const NO_BOUNDS = { absent: { deno: "sends no bounds", node: "sends no bounds" } };
const nothing = () => {};

feature("sum: of a bigint with min, max and clamp", nothing, NO_BOUNDS);
feature("sum: of a number with min, max and clamp", nothing, NO_BOUNDS);

feature("min: with an operand that is no KvU64", async (t) => {
  const commit = () => t.kv.atomic().mutate({ type: "min", key: t.key("n"), value: 1n }).commit();
  await t.refused(commit, "Failed to perform 'min' mutation on a non-U64 operand");
});

feature("a sum's result has no TTL", async (t) => {
  await t.kv.set(t.key("n"), new t.KvU64(1n), { expireIn: 700 });
  await t.kv.atomic().sum(t.key("n"), 1n).commit();
  await t.sleep(1_200);
  t.equal((await t.kv.get(t.key("n"))).value, new t.KvU64(2n));
});

section("Concurrent counters");

feature("counter: 32 tasks with sum", async (t) => {
  const each = t.quick ? 10 : 60;
  await Promise.all(Array.from({ length: 32 }, async () => {
    for (let number = 0; number < each; number++) await t.kv.atomic().sum(t.key("n"), 1n).commit();
  }));
  t.equal((await t.kv.get(t.key("n"))).value, new t.KvU64(BigInt(32 * each)));
});

feature("counter: 8 tasks that check, and try again", async (t) => {
  const each = t.quick ? 5 : 25;
  let conflicts = 0;
  await Promise.all(Array.from({ length: 8 }, async () => {
    for (let number = 0; number < each; number++) {
      while (true) {
        const entry = await t.kv.get(t.key("n"));
        const next = (entry.value ?? 0) + 1;
        const result = await t.kv.atomic().check(entry).set(t.key("n"), next).commit();
        if (result.ok) break;
        conflicts += 1;
      }
    }
  }));
  t.equal((await t.kv.get(t.key("n"))).value, 8 * each);
});

feature("accounts: concurrent transfers keep the total", async (t) => {
  const accounts = 5;
  await t.fill(Array.from({ length: accounts }, (_, number) => [t.key(number), 100]));
  await Promise.all(Array.from({ length: 8 }, async (_, task) => {
    for (let round = 0; round < (t.quick ? 5 : 25); round++) {
      const [from, to] = [(task + round) % accounts, (task + 2 * round + 1) % accounts];
      if (from === to) continue;
      while (true) {
        const [a, b] = await t.kv.getMany([t.key(from), t.key(to)]);
        const moved = t.kv.atomic().check(a, b).set(a.key, a.value - 1).set(b.key, b.value + 1);
        if ((await moved.commit()).ok) break;
      }
    }
  }));
  const all = await t.collect(t.kv.list({ prefix: t.prefix }));
  t.equal(all.reduce((sum, entry) => sum + entry.value, 0), 100 * accounts);
});
