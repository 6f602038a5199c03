// Every limit, at it and one above. Deno checks most of them before a request leaves; @deno/kv checks none.
import { feature, section } from "./harness.mjs";

section("Limits");

const refusedByServer = (text) => `Unexpected response status: 400 ${text}`;

/** A key that takes exactly `bytes` bytes: every part is at most the rest. */
function keyOf(t, bytes) {
  const own = 2 + new TextEncoder().encode("compat").length + 2 + t.run.length + 9;
  return [...t.prefix, "k".repeat(bytes - own - 2)];
}

/** A Uint8Array is stored as it is. */
const valueOf = (bytes) => new Uint8Array(bytes).fill(1);

feature("limit: a key of 2,048 bytes is written, read and listed", async (t) => {
  const key = keyOf(t, 2_048);
  await t.kv.set(key, 1);
  t.equal((await t.kv.get(key)).value, 1);
  t.equal((await t.collect(t.kv.list({ prefix: t.prefix }))).map((entry) => entry.key), [key]);
});

feature("limit: a key of 2,049 bytes to write", async (t) => {
  await t.refused(() => t.kv.set(keyOf(t, 2_049), 1), {
    deno: "TypeError: Key too large for write (max 2048 bytes)",
    node: refusedByServer("A key exceeds the key size limit."),
  });
});

feature("limit: a key of 2,050 bytes to read", async (t) => {
  await t.refused(() => t.kv.get(keyOf(t, 2_050)), {
    deno: "TypeError: Key too large for read (max 2049 bytes)",
    node: refusedByServer("A key exceeds the key size limit."),
  });
});

feature("limit: a key of 2,049 bytes to check", async (t) => {
  await t.refused(() => t.kv.atomic().check({ key: keyOf(t, 2_049), versionstamp: null }).commit(), {
    deno: "TypeError: Key too large for write (max 2048 bytes)",
    node: refusedByServer("A key exceeds the key size limit."),
  });
});

feature("limit: a value of 65,536 bytes", async (t) => {
  await t.kv.set(t.key("a"), valueOf(65_536));
  t.equal((await t.kv.get(t.key("a"))).value, valueOf(65_536));
});

feature("limit: a value of 65,537 bytes", async (t) => {
  await t.refused(() => t.kv.set(t.key("a"), valueOf(65_537)), {
    deno: "TypeError: Value too large (max 65536 bytes)",
    node: refusedByServer("A value exceeds the value size limit."),
  });
});

feature("limit: 10 keys in a getMany", async (t) => {
  const keys = Array.from({ length: 10 }, (_, number) => t.key(number));
  t.equal((await t.kv.getMany(keys)).length, 10);
});

feature("limit: 11 keys in a getMany", async (t) => {
  const keys = Array.from({ length: 11 }, (_, number) => t.key(number));
  await t.refused(() => t.kv.getMany(keys), {
    deno: "TypeError: Too many ranges (max 10)",
    node: refusedByServer("Too many read ranges requested in one read request."),
  });
});

feature("limit: 100 checks", async (t) => {
  const checks = Array.from({ length: 100 }, (_, number) => ({ key: t.key(number), versionstamp: null }));
  t.equal((await t.kv.atomic().check(...checks).set(t.key("a"), 1).commit()).ok, true);
});

feature("limit: 101 checks", async (t) => {
  const checks = Array.from({ length: 101 }, (_, number) => ({ key: t.key(number), versionstamp: null }));
  await t.refused(() => t.kv.atomic().check(...checks).commit(), {
    deno: "TypeError: Too many checks (max 100)",
    node: refusedByServer("Too many checks included in atomic write."),
  });
});

feature("limit: 1,001 mutations", async (t) => {
  const operation = t.kv.atomic();
  for (let number = 0; number < 1_001; number++) operation.delete(t.key(number));
  await t.refused(() => operation.commit(), {
    deno: "TypeError: Too many mutations (max 1000)",
    node: refusedByServer("Too many mutations / enqueues included in atomic write."),
  });
});

feature("limit: a transaction of just under 819,200 bytes", async (t) => {
  const operation = t.kv.atomic();
  for (let number = 0; number < 12; number++) operation.set(t.key(number), valueOf(65_536));
  operation.set(t.key("rest"), valueOf(819_200 - 12 * 65_536 - 4_000));
  t.equal((await operation.commit()).ok, true);
  t.equal((await t.collect(t.kv.list({ prefix: t.prefix }))).length, 13);
});

feature("limit: a transaction of more than 819,200 bytes", async (t) => {
  const operation = t.kv.atomic();
  for (let number = 0; number < 13; number++) operation.set(t.key(number), valueOf(65_536));
  await t.refused(() => operation.commit(), {
    deno: "TypeError: Total mutation size too large (max 819200 bytes)",
    node: refusedByServer("The total size of the atomic write is too large."),
  });
});

feature("limit: keys of more than 81,920 bytes in a transaction", async (t) => {
  const operation = t.kv.atomic();
  for (let number = 0; number < 45; number++) operation.set([...keyOf(t, 2_000), number], 1);
  await t.refused(() => operation.commit(), {
    deno: "TypeError: Total key size too large (max 81920 bytes)",
    node: refusedByServer("The total size of the keys in the atomic write is too large."),
  });
});

feature("limit: 10 keys in a watch", async (t) => {
  const keys = Array.from({ length: 10 }, (_, number) => t.key(number));
  await t.kv.set(t.key(9), "last");
  const reader = await t.watch(keys);
  t.equal((await reader.read()).value.map((entry) => entry.value), [...Array(9).fill(null), "last"]);
  await reader.cancel();
});

feature("limit: 11 keys in a watch", async (t) => {
  const keys = Array.from({ length: 11 }, (_, number) => t.key(number));
  const watch = async () => await t.kv.watch(keys).getReader().read();
  await t.refused(watch, { deno: "TypeError: Too many keys (max 10)" });
}, { absent: { node: "ends the process with the server's refusal, which no program can catch" } });

feature("limit: expireIn below 0, and no integer", async (t) => {
  const texts = { deno: "expireIn must be a non-negative integer", node: "Bad 'expireIn', expected optional positive" };
  await t.fails(() => t.kv.set(t.key("a"), 1, { expireIn: 1.5 }), texts);
  await t.refused(() => t.kv.set(t.key("a"), 1, { expireIn: -1 }), texts);
});
