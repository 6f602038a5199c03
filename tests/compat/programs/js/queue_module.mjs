import process from "node:process";

// Enqueues messages and handles them with kvnode.js, in Deno or in Node. It says on standard output what it handled,
// a line each, before the message is acknowledged, and closes when it reads a line.
const job = JSON.parse(process.env.JOB);
const { connect, enqueue, listenQueue } = await import(job.module);

const kv = connect(job.urls);
const closing = new AbortController();
let running = 0;

async function produce() {
  let next = 0;
  const worker = async () => {
    while (next < job.count) {
      const number = next++;
      await enqueue(kv, { number, by: new Uint8Array([1, 2, 3]), when: new Date() }, { queue: job.queue });
      await new Promise((resolve) => setTimeout(resolve, job.pauseMs));
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  console.log("produced");
}

async function handle(value, message) {
  if (++running > job.concurrency) console.log(`TOO MANY: ${running}`);
  if (!(value.by instanceof Uint8Array) || !(value.when instanceof Date)) console.log(`WRONG: ${JSON.stringify(value)}`);
  await new Promise((resolve) => setTimeout(resolve, job.handlerMs));
  running--;
  if (value.number % 50 === 0 && message.attempts === 1) throw new Error("as it should");
  console.log(`handled ${value.number} ${message.attempts}`);
}

process.stdin.on("data", () => closing.abort());
const options = { queue: job.queue, concurrency: job.concurrency, signal: closing.signal, consumer: job.name };
await Promise.all([produce(), listenQueue(kv, handle, options)]);
console.log("closed");
process.exit(0);
