// Databases of their own, and what tokens allow. What these features need (databases, tokens) was made beforehand.
import { feature, section } from "./harness.mjs";

section("Databases and tokens");

/** A connection to a database with a token of its choice. */
function open(t, path, token) {
  return t.withToken(token, () => t.openAt(new URL(path, t.url).href, { accessToken: token }));
}

feature("a database by its name has keys of its own", async (t) => {
  const orders = await open(t, t.prepared.ordersName, t.token);
  await orders.set(t.key("a"), "orders");
  await t.kv.set(t.key("a"), "default");
  t.equal((await orders.get(t.key("a"))).value, "orders");
  t.equal((await t.kv.get(t.key("a"))).value, "default");
  orders.close();
}, { remote: true });

feature("a database by its uuid is the same as by its name", async (t) => {
  const named = await open(t, t.prepared.ordersName, t.token);
  const { versionstamp } = await named.set(t.key("a"), 1);
  const numbered = await open(t, `databases/${t.prepared.ordersUuid}/connect`, t.token);
  t.equal((await numbered.get(t.key("a"))).versionstamp, versionstamp);
  for (const kv of [named, numbered]) kv.close();
}, { remote: true });

feature("a token of one database opens it", async (t) => {
  const orders = await open(t, t.prepared.ordersName, t.prepared.ordersToken);
  await orders.set(t.key("a"), 1);
  t.equal((await orders.get(t.key("a"))).value, 1);
  orders.close();
}, { remote: true });

feature("a token of one database at another one", async (t) => {
  await t.refused(() => open(t, "", t.prepared.ordersToken), {
    deno: "status 401 Unauthorized",
    node: "Unexpected response status: 401",
  });
}, { remote: true });

feature("no token", async (t) => {
  await t.refused(() => t.withToken(undefined, () => t.openAt(t.url, { accessToken: "" })), {
    deno: "DENO_KV_ACCESS_TOKEN",
    node: "DENO_KV_ACCESS_TOKEN",
  });
}, { remote: true });

feature("a token to read: reads work, a write", async (t) => {
  await t.kv.set(t.key("a"), 1);
  const reader = await open(t, "", t.prepared.readToken);
  t.equal((await reader.get(t.key("a"))).value, 1);
  t.equal((await t.collect(reader.list({ prefix: t.prefix }))).length, 1);
  const text = await t.errorOf(() => reader.set(t.key("b"), 1));
  reader.close();
  await t.refused(() => Promise.reject(new Error(text)), { deno: "403", node: "403" });
}, { remote: true });

feature("an expired token", async (t) => {
  await t.refused(() => open(t, "", t.prepared.expiredToken), {
    deno: "status 401 Unauthorized",
    node: "Unexpected response status: 401",
  });
}, { remote: true });

feature("a token above its requests a second", async (t) => {
  const kv = await open(t, "", t.prepared.limitedToken);
  const burst = async () => { // all come to an end: Deno goes on trying those that were refused
    const settled = await Promise.allSettled(Array.from({ length: 60 }, () => kv.get(t.key("a"))));
    for (const one of settled) if (one.status === "rejected") throw one.reason;
  };
  const text = await t.errorOf(burst);
  await t.sleep(2_500);
  t.equal((await kv.get(t.key("a"))).value, null);
  kv.close();
  await t.refused(() => Promise.reject(new Error(text)), { deno: "429", node: "429" });
}, { remote: true });

feature("a read-only database: reads work, a write", async (t) => {
  const kv = await open(t, t.prepared.readOnlyName, t.token);
  t.equal((await kv.get(["written", "before"])).value, null);
  const text = await t.errorOf(() => kv.set(t.key("b"), 1));
  kv.close();
  await t.refused(() => Promise.reject(new Error(text)), {
    deno: "Writes are disabled for this database",
    node: "commit failed with status: AW_WRITE_DISABLED",
  });
}, { remote: true });

feature("a disabled database: a read", async (t) => {
  const kv = await open(t, t.prepared.disabledName, t.token);
  const text = await t.errorOf(() => kv.get(t.key("a")));
  kv.close();
  await t.refused(() => Promise.reject(new Error(text)), {
    deno: "Reads are disabled for this database",
    node: "response checks failed after retry",
  });
}, { remote: true });
