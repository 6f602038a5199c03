// Runs programs in this client and prints one JSON line a feature.
//
//     deno run -A --unstable-kv main.mjs '{"url": ..., "programs": [...], ...}'      Deno's own client
//     node main.mjs '{"kv": "file:///.../@deno/kv/esm/npm.js", ...}'                 @deno/kv
//
// The access token comes in DENO_KV_ACCESS_TOKEN, where Deno looks for it.
import process from "node:process";
import { features, runFeature } from "./harness.mjs";

const options = JSON.parse(process.argv[2]);
const isDeno = "Deno" in globalThis;
const token = process.env.DENO_KV_ACCESS_TOKEN ?? "";

async function client() {
  if (isDeno) return { client: "deno", openAt: (url) => Deno.openKv(url), KvU64: Deno.KvU64 };
  const { openKv, KvU64 } = await import(options.kv);
  const openAt = (url, more = {}) => openKv(url, { accessToken: token, ...more });
  return { client: "node", openAt, KvU64 };
}

/** Deno reads the token from the environment as it opens. */
async function withToken(other, action) {
  if (other === undefined) delete process.env.DENO_KV_ACCESS_TOKEN;
  else process.env.DENO_KV_ACCESS_TOKEN = other;
  try {
    return await action();
  } finally {
    process.env.DENO_KV_ACCESS_TOKEN = token;
  }
}

const api = await client();
const environment = {
  ...api,
  openKv: (more) => api.openAt(options.url, more),
  url: options.url,
  token,
  withToken,
  prepared: options.prepared ?? {},
  quick: options.quick === true,
  embedded: options.embedded === true,
  run: options.run,
};
for (const program of options.programs) await import(`./${program}`);
await setLastRow();

/**
 * @deno/kv reads the row that follows a missing key as well, and getMany decodes it: behind the rows of this run must
 * stand one that every client can decode, not what another client wrote in a format of its own.
 */
async function setLastRow() {
  const kv = await environment.openKv();
  await kv.set(["compat", options.run, true], new Uint8Array());
  kv.close();
}

let number = 0;
for (const declared of features) {
  number += 1;
  if (options.only && !declared.title.includes(options.only)) continue;
  if (environment.quick && declared.options.slow) continue;
  let result;
  try {
    result = await runFeature(declared, environment, number);
  } catch (error) {
    const { section, title } = declared;
    result = { section, title, status: "fails", detail: String(error?.message ?? error), ms: 0 };
  }
  console.log(JSON.stringify(result));
}
process.exit(0);
