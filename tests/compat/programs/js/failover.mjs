// A program that a user would write, while a leader dies under it: so many sums onto one counter and so many records,
// each guarded by a check that it does not exist yet, at an even pace; and a watch on the counter all along.
//
//     main:  deno run ... failover.mjs '{"url": ..., "count": 2000, "records": 400, "seconds": 30, "run": ...}'
//
// It prints one JSON object: what it counted, what it found, each exception, the longest pause.
import { writeFileSync } from "node:fs";
import process from "node:process";

const options = JSON.parse(process.argv[2]);
const isDeno = "Deno" in globalThis;
const TASKS_COUNT = 8;

async function open() {
  if (isDeno) return await Deno.openKv(options.url);
  const { openKv } = await import(options.kv);
  return await openKv(options.url, { accessToken: process.env.DENO_KV_ACCESS_TOKEN });
}

const kv = await open();
writeFileSync(options.started, "");
const counter = ["failover", options.run, "counter"];
const record = (number) => ["failover", options.run, "record", number];
const errors = [];
const conflicts = [];
let slowestMs = 0;
let lastDone = performance.now();
let longestPauseMs = 0;

/** Does `count` operations in TASKS_COUNT tasks, evenly spread over the time. */
async function paced(count, operation) {
  const start = performance.now();
  let next = 0;
  await Promise.all(Array.from({ length: TASKS_COUNT }, async () => {
    while (next < count) {
      const number = next++;
      const waitMs = start + number * options.seconds * 1_000 / count - performance.now();
      if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs));
      const begun = performance.now();
      try {
        await operation(number);
      } catch (error) {
        errors.push(`${error.name}: ${error.message}`);
      }
      const now = performance.now();
      slowestMs = Math.max(slowestMs, now - begun);
      longestPauseMs = Math.max(longestPauseMs, now - lastDone);
      lastDone = now;
    }
  }));
}

async function append(number) {
  const guard = { key: record(number), versionstamp: null };
  const result = await kv.atomic().check(guard).set(record(number), `record ${number}`).commit();
  if (!result.ok) conflicts.push(number);
}

/** Counts the frames until the counter stands at its end; a counter that goes back is an error. */
async function watch() {
  let [frames, last] = [0, 0n];
  for await (const [entry] of kv.watch([counter])) {
    frames += 1;
    const value = entry.value?.value ?? 0n;
    if (value < last) errors.push(`the watch went back from ${last} to ${value}`);
    last = value;
    if (value >= BigInt(options.count)) return frames;
  }
  errors.push("the watch ended");
  return frames;
}

const watching = watch();
await Promise.all([
  paced(options.count, () => kv.atomic().sum(counter, 1n).commit()),
  paced(options.records, append),
]);
const late = new Promise((resolve) => setTimeout(() => resolve(-1), 15_000));
const frames = await Promise.race([watching, late]);
if (frames < 0) errors.push("the watch never delivered the last state");
const found = [];
for await (const entry of kv.list({ prefix: record(0).slice(0, -1) })) found.push(entry.key.at(-1));
console.log(JSON.stringify({
  counter: Number((await kv.get(counter)).value.value),
  records: found.length === new Set(found).size ? found.length : -1,
  conflicts,
  errors,
  frames,
  slowestMs: Math.round(slowestMs),
  longestPauseMs: Math.round(longestPauseMs),
}));
process.exit(0);
