// Opening and closing a database.
import { feature, section } from "./harness.mjs";

section("Opening and closing");

feature("openKv: a database by its URL", async (t) => {
  await t.kv.set(t.key("a"), 1);
  t.equal((await t.kv.get(t.key("a"))).value, 1);
});

feature("openKv: two connections see each other's writes at once", async (t) => {
  const other = await t.openKv();
  for (let number = 0; number < 20; number++) {
    await t.kv.set(t.key("a"), number);
    t.equal((await other.get(t.key("a"))).value, number);
  }
  other.close();
});

feature("openKv: the opt-in URL that reads locally takes writes and reads", async (t) => {
  const local = await t.openAt(new URL("eventual", t.url).href);
  const { versionstamp } = await local.set(t.key("a"), "here");
  await t.until(async () => (await local.get(t.key("a"))).versionstamp === versionstamp, 5_000, "it never arrived");
  local.close();
}, { remote: true });

feature("openKv: a database that does not exist", async (t) => {
  await t.refused(() => t.openAt(new URL("no-such-database", t.url).href), {
    deno: "status 404 Not Found",
    node: "Unexpected response status: 404",
  });
}, { remote: true });

feature("openKv: an unknown path", async (t) => {
  await t.refused(() => t.openAt(new URL("no/such/path", t.url).href), {
    deno: "status 404 Not Found",
    node: "Unexpected response status: 404",
  });
}, { remote: true });

feature("openKv: a wrong access token", async (t) => {
  const open = () => t.withToken("not-the-access-token", () => t.openAt(t.url, { accessToken: "not-the-access-token" }));
  await t.refused(open, { deno: "status 401 Unauthorized", node: "Unexpected response status: 401" });
}, { remote: true });

feature("openKv: protocol version 1 only", (t) => worksAtVersion(t, 1), {
  remote: true,
  absent: { deno: "always offers versions 1, 2 and 3" },
});

feature("openKv: protocol version 2 only", (t) => worksAtVersion(t, 2), {
  remote: true,
  absent: { deno: "always offers versions 1, 2 and 3" },
});

async function worksAtVersion(t, version) {
  const kv = await t.openKv({ supportedVersions: [version] });
  const { versionstamp } = await kv.set(t.key("a"), version);
  t.equal(await kv.get(t.key("a")), { key: t.key("a"), value: version, versionstamp });
  kv.close();
}

feature("openKv: an unknown protocol version only", async (t) => {
  await t.refused(() => t.openKv({ supportedVersions: [4] }), { node: "Unexpected response status: 400" });
}, { remote: true, absent: { deno: "always offers versions 1, 2 and 3" } });

feature("close: nothing works afterwards", async (t) => {
  const kv = await t.openKv();
  kv.close();
  await t.fails(() => kv.get(t.key("a")), { deno: "BadResource: Bad resource ID", node: "after '.close' is called" });
  await t.fails(() => kv.set(t.key("a"), 1), { deno: "BadResource", node: "after '.close' is called" });
  await t.fails(() => kv.close(), { deno: "BadResource", node: "after '.close' is called" });
});

feature("Symbol.dispose closes", async (t) => {
  const kv = await t.openKv();
  kv[Symbol.dispose]();
  await t.fails(() => kv.get(t.key("a")), { deno: "BadResource", node: "after '.close' is called" });
});

feature("close: ends a watch", async (t) => {
  const kv = await t.openKv();
  await kv.set(t.key("a"), 1);
  const reader = kv.watch([t.key("a")]).getReader();
  t.equal((await reader.read()).value[0].value, 1);
  const next = reader.read();
  kv.close();
  const ended = await Promise.race([next.then(() => "ended", () => "ended"), t.sleep(5_000).then(() => "goes on")]);
  t.equal(ended, "ended");
}, { absent: { node: "the stream stays silent for ever" } });
