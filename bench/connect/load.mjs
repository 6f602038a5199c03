// A real Deno program: CALLERS loops of set, then of get, on whatever Deno.openKv is given; one JSON line each.
// Arguments: URL or path, callers, seconds, bytes of a value.
const [target, callers, seconds, bytes] = [Deno.args[0], Number(Deno.args[1]), Number(Deno.args[2]), Number(Deno.args[3])];
const kv = await Deno.openKv(target);
const value = new Uint8Array(bytes).fill(118);
const KEYS = 10_000;

async function measure(mode, operation) {
  const took = [];
  const end = performance.now() + seconds * 1000;
  const began = performance.now();
  await Promise.all(Array.from({ length: callers }, async () => {
    while (performance.now() < end) {
      const from = performance.now();
      await operation(["bench", String(Math.floor(Math.random() * KEYS))]);
      took.push(performance.now() - from);
    }
  }));
  const elapsed = performance.now() - began;
  took.sort((a, b) => a - b);
  const at = (part) => took[Math.floor(took.length * part)];
  console.log(JSON.stringify({ mode, operations_per_second: took.length / elapsed * 1000, p50_ms: at(0.5), p99_ms: at(0.99) }));
}

await measure("warmup", (key) => kv.set(key, value));
await measure("set", (key) => kv.set(key, value));
await measure("get", (key) => kv.get(key));
kv.close();
