// enqueue and listenQueue: what each client does with them at a remote database.
import { feature, section } from "./harness.mjs";

section("Queues");

feature("enqueue", async (t) => {
  if (t.client === "node") {
    await t.kv.enqueue("message");
    return;
  }
  await t.refused(() => t.kv.enqueue("message"), { deno: "Enqueue operations are not supported in KV Connect" });
}, { absent: { embedded: "not compared here" } });

feature("atomic: enqueue beside a set", async (t) => {
  if (t.client === "node") {
    await t.kv.atomic().set(t.key("a"), 1).enqueue("message").commit();
    t.equal((await t.kv.get(t.key("a"))).value, 1);
    return;
  }
  const text = await t.errorOf(() => t.kv.atomic().set(t.key("a"), 1).enqueue("message").commit());
  t.equal((await t.kv.get(t.key("a"))).value, null);
  await t.refused(() => Promise.reject(new Error(text)), { deno: "" });
}, { absent: { embedded: "not compared here" } });

feature("listenQueue", async (t) => {
  await t.refused(() => t.kv.listenQueue(() => {}), { node: "'listenQueue' is not possible over KV Connect" });
}, { absent: { deno: "warns that KV Connect has no queues, and waits for ever", embedded: "not compared here" } });

feature("enqueue: a delay above 30 days", async (t) => {
  await t.refused(() => t.kv.enqueue("message", { delay: 31 * 86_400_000 }), { deno: "TypeError" });
}, { absent: { node: "takes any delay" } });

feature("enqueue: a back-off schedule of 6", async (t) => {
  await t.refused(() => t.kv.enqueue("message", { backoffSchedule: [1, 2, 3, 4, 5, 6] }), { deno: "TypeError" });
}, { absent: { node: "takes any schedule, and sends its own" } });
