// A consumer process of the queue drill for Deno and Node, through the module that the nodes serve; queue_consumer.py
// is the same in Python and says what the settings are.
import { openSync, writeFileSync, writeSync } from "node:fs";
import process from "node:process";
import { pathToFileURL } from "node:url";

const settings = JSON.parse(process.argv[2]);
const file = openSync(settings.journal, "a");
const write = (event) => writeSync(file, JSON.stringify(event) + "\n");

// What the cluster answers to acks and nacks, as the module gets it.
const plainFetch = globalThis.fetch;
globalThis.fetch = async (url, init) => {
  const response = await plainFetch(url, init);
  if (!response.ok || !String(url).endsWith("/settle")) return response;
  const asked = JSON.parse(init.body);
  const verbs = new Map(asked.ack.map((lease) => [lease, "ack"]));
  for (const { lease } of asked.nack) verbs.set(lease, "nack");
  const answer = await response.clone().json();
  const settled = (lease, code) => verbs.has(lease) && write({ what: "settled", lease, verb: verbs.get(lease), code });
  for (const lease of answer.settled) settled(lease, "");
  for (const { lease, code, retry } of answer.failed) if (!retry) settled(lease, code);
  return response;
};

/** The module from whichever node serves it: Deno imports from http, Node from a file. */
async function moduleOf(urls) {
  for (let attempt = 0;; attempt++) {
    try {
      const url = `${urls[attempt % urls.length].replace(/\/$/, "")}/kvnode.js`;
      if (globalThis.Deno) return await import(url);
      const text = await (await plainFetch(url, { signal: AbortSignal.timeout(5_000) })).text();
      const copy = `${settings.journal}-${attempt}.mjs`;
      writeFileSync(copy, text);
      return await import(pathToFileURL(copy));
    } catch (error) {
      if (attempt > 100) throw error;
      await sleep(100);
    }
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** -1, which nobody enqueues, when the content is not what was enqueued. */
const numberOf = (value) => value?.text === `message ${value?.number}` ? Number(value.number) : -1;

function handlerOf(consumer) {
  return async (value, message) => {
    const begun_ms = Date.now();
    await sleep(Math.random() * settings.handler_ms);
    const failed = Math.random() < settings.fail_share;
    const { id, lease, attempts: attempt } = message;
    write({
      what: "handled", number: numberOf(value), id, lease, attempt, failed, consumer, begun_ms, ended_ms: Date.now(),
    });
    if (failed) throw new Error("as it should");
  };
}

console.error = () => {}; // the module reports every handler that fails
const { connect, listenQueue } = await moduleOf(settings.urls);
const closing = new AbortController();
process.on("SIGTERM", () => closing.abort());
const rotated = (places, count) => [...places.slice(count % places.length), ...places.slice(0, count % places.length)];
const listening = Array.from({ length: settings.consumers }, (_, number) => {
  const consumer = `${settings.name}/${number}`;
  return listenQueue(connect(rotated(settings.urls, number), { token: settings.token }), handlerOf(consumer), {
    queue: settings.queue,
    concurrency: settings.concurrency,
    leaseMs: settings.lease_ms,
    consumer,
    signal: closing.signal,
  });
});
try {
  await Promise.all(listening);
} catch (error) {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
}
process.exit(0);
