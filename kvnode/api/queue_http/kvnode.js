/**
 * Queues of kvnode for Deno and Node, in Deno's shape; every node serves this file as /kvnode.js.
 *
 *     import { enqueue, listenQueue } from "http://127.0.0.1:4512/kvnode.js";
 *     await listenQueue(kv, async (value) => { ... });
 *
 * Theory of operation. A listener is one HTTP request whose answer brings messages, as many at a time as it may hold
 * (`concurrency`); acks, nacks and extensions are requests of their own, each with all that has gathered while the one
 * before was under way. While a handler runs, the lease of its message is extended. When the answer breaks, the next
 * one, at whichever node answers, begins with the leases that are held; what was decided and not confirmed is sent
 * again. So a listener survives the loss of its node with its handlers running. A message whose lease is lost is
 * delivered again. While no node answers it goes on trying; after some seconds it says so, once.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { createHmac, timingSafeEqual } from "node:crypto";
import process from "node:process";
import v8 from "node:v8";

const DEFAULT_LEASE_MS = 10_000;
const DEFAULT_CONCURRENCY = 10;
const MAX_CONCURRENCY = 1_000;
const MAX_LEASES_COUNT = 1_000; // that one request may settle
const SILENCE_MS = 15_000; // a node pings every 5 s
const OPEN_TIMEOUT_MS = 5_000;
const REQUEST_TIMEOUT_MS = 10_000;
const MIN_REQUEST_TIMEOUT_MS = 1_000;
const HOLD_TIMEOUT_MS = 8_000; // a node that has no leader for an enqueue is to say so before it is given up
const ENQUEUE_TIMEOUT_MS = 60_000; // for all attempts; none begins later
const DISCONNECTED_MS = 5_000; // without a node: then a listener says so, once
const CLOSE_TIMEOUT_MS = 5_000; // for what handlers have decided before
const BACKOFF_MS = 50;
const MAX_BACKOFF_MS = 1_000;
const MAX_PUSH_AGE_MS = 300_000; // of a signature, either way
const V8_HEADER = 0xff;

/** A node's refusal, or why none could be reached. */
export class KvnodeError extends Error {
  /**
   * @param {string} code stable, for example LEASE_LOST; docs/reference/errors.md names each
   * @param {string} message what was wrong and what to do
   * @param {{status?: number, retry?: boolean, cause?: unknown}} [more]
   */
  constructor(code, message, { status = 0, retry = false, cause } = {}) {
    super(`${message} [${code}]`, { cause });
    this.name = "KvnodeError";
    this.code = code;
    this.status = status;
    this.retry = retry;
  }
}

/** An unsigned number of 64 bits, where Deno's own Deno.KvU64 does not exist. */
export class KvU64 {
  /** @param {bigint} value */
  constructor(value) {
    this.value = BigInt.asUintN(64, value);
  }
}

// Values.

/** Whether V8 would write memory that is not the value's: all of the buffer that a view shows a part of. */
function sharesMemory(value, seen) {
  if (value === null || typeof value !== "object" || seen.has(value)) return false;
  seen.add(value);
  if (ArrayBuffer.isView(value)) return value.byteLength < value.buffer.byteLength;
  if (value instanceof Map) value = [...value.keys(), ...value.values()];
  if (value instanceof Set) value = [...value];
  return Object.values(value).some((each) => sharesMemory(each, seen));
}

/** A copy whose views have buffers of their own. */
function detached(value, seen = new Map()) {
  if (value === null || typeof value !== "object") return value;
  if (!seen.has(value)) seen.set(value, shellOf(value));
  else return seen.get(value);
  const made = seen.get(value);
  if (made === value || ArrayBuffer.isView(value)) return made;
  if (value instanceof Map) for (const [key, each] of value) made.set(detached(key, seen), detached(each, seen));
  else if (value instanceof Set) for (const each of value) made.add(detached(each, seen));
  else for (const key of Object.keys(value)) made[key] = detached(value[key], seen);
  return made;
}

/** What a copy begins with; the value itself where it is nothing that holds others. */
function shellOf(value) {
  if (ArrayBuffer.isView(value)) {
    const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength).slice();
    return value instanceof Uint8Array ? bytes : new value.constructor(bytes.buffer);
  }
  if (Array.isArray(value)) return new Array(value.length);
  if (value instanceof Map) return new Map();
  if (value instanceof Set) return new Set();
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null ? {} : value;
}

/** @returns {{payload: string, encoding: "v8" | "bytes" | "le64"}} */
function encoded(value) {
  if (value instanceof Uint8Array) return { payload: base64(value), encoding: "bytes" };
  if (typeof value?.value === "bigint" && value.constructor?.name === "KvU64") {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(value.value);
    return { payload: base64(bytes), encoding: "le64" };
  }
  // Not v8.serialize: it writes typed arrays in a way of Node's own, which others cannot read.
  const serializer = new v8.Serializer();
  serializer.writeHeader();
  serializer.writeValue(sharesMemory(value, new Set()) ? detached(value) : value);
  return { payload: base64(serializer.releaseBuffer()), encoding: "v8" };
}

function decoded(bytes, encoding) {
  if (encoding === "bytes") return new Uint8Array(bytes);
  if (encoding === "le64") return new (globalThis.Deno?.KvU64 ?? KvU64)(bytes.readBigUInt64LE());
  try {
    return v8.deserialize(bytes);
  } catch (error) {
    // Version 16, which newer engines write, has the tags of version 15.
    if (bytes[0] !== V8_HEADER || bytes[1] !== 16) throw error;
    bytes[1] = 15;
    return v8.deserialize(bytes);
  }
}

function base64(bytes) {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
}

function keyPart(part) {
  if (typeof part === "bigint") return { $bigint: String(part) };
  if (part instanceof Uint8Array) return { $bytes: base64(part) };
  if (typeof part === "number" && !Number.isFinite(part)) return { $number: String(part) };
  if (["string", "number", "boolean"].includes(typeof part)) return part;
  // JSON would make something else of it: a string of a Date, for example.
  const message = `a key part is ${String(part)} and must be a string, number, bigint, boolean or Uint8Array`;
  throw new KvnodeError("BAD_KEY_PART", message);
}

/**
 * An option that is a number; undefined when it is absent. JSON has no NaN and no Infinity: it would write null, which
 * stands for the default. Bounds are judged by the node.
 */
function whole(value, name) {
  if (value === undefined || value === null) return undefined;
  if (Number.isSafeInteger(value)) return value;
  throw new KvnodeError("MALFORMED_REQUEST", `${name} is ${String(value)} and must be a whole number`);
}

/** An option that is an array; undefined when it is absent. */
function list(value, name) {
  if (value === undefined || value === null) return undefined;
  return checkedList(value, name);
}

function checkedList(value, name) {
  if (Array.isArray(value)) return value;
  throw new KvnodeError("MALFORMED_REQUEST", `${name} is ${String(value)} and must be an array`);
}

function queueName(value) {
  const found = value ?? "default";
  if (typeof found === "string" && found) return found;
  throw new KvnodeError("BAD_QUEUE_NAME", `queue is '${String(found)}' and must be a name`);
}

/** With anything else every message would fail, and become a dead letter. */
function checkedHandler(value) {
  if (typeof value === "function") return value;
  throw new KvnodeError("BAD_HANDLER", `the handler is ${String(value)} and must be a function`);
}

/** A function that is called back; undefined when it is absent. */
function checkedCallback(value, name) {
  if (value === undefined || value === null || typeof value === "function") return value ?? undefined;
  throw new KvnodeError("BAD_HANDLER", `${name} is ${String(value)} and must be a function`);
}

/** How many handlers may run at a time. With 0 the node would take the listener, and never send it anything. */
function checkedConcurrency(value) {
  const found = whole(value, "concurrency") ?? DEFAULT_CONCURRENCY;
  if (found >= 1 && found <= MAX_CONCURRENCY) return found;
  throw new KvnodeError("BAD_CONCURRENCY", `concurrency is ${found} and must be from 1 to ${MAX_CONCURRENCY}`);
}

// Where to, and as whom.

/** Nodes of one cluster, a database and a token; `close` ends what listens by it. */
class Connection {
  #closing = new AbortController();

  constructor(url, { token, database } = {}) {
    const places = (Array.isArray(url) ? url : [url]).map(place);
    if (!places.length) throw new KvnodeError("ENDPOINT_INVALID", "no URL is given: give http://host:4512");
    this.urls = places.map(({ origin }) => origin);
    this.database = database ?? places[0].database;
    this.token = token;
  }

  get signal() {
    return this.#closing.signal;
  }

  listenQueue(handler, options) {
    return listenQueue(this, handler, options);
  }

  enqueue(value, options) {
    return enqueue(this, value, options);
  }

  close() {
    this.#closing.abort();
  }
}

/**
 * Where queues are.
 *
 * @param {string | URL | (string | URL)[]} url of nodes' KV Connect ports, the nearest first; as for Deno.openKv, it
 *   may name a database: http://10.0.0.1:4512/orders
 * @param {{token?: string, database?: string}} [options]
 */
export function connect(url, options) {
  return new Connection(url, options);
}

/** The origin and the database of a URL, as KV Connect's metadata exchange has them. */
function place(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch (cause) {
    throw new KvnodeError("ENDPOINT_INVALID", `'${url}' is no URL: give http://host:4512`, { cause });
  }
  if (!["http:", "https:"].includes(parsed.protocol)) { // "localhost:4512" is a URL, of the scheme localhost
    throw new KvnodeError("ENDPOINT_INVALID", `'${url}' is not of http or https: give http://host:4512`);
  }
  const parts = parsed.pathname.split("/").filter((part) => part && part !== "eventual");
  const database = parts[0] === "databases" ? parts[1] : parts[0];
  return { origin: parsed.origin, database: database ?? "default" };
}

/** @returns {{urls: string[], database: string, token: string, signals: AbortSignal[]}} */
function resolved(kv, options) {
  const own = import.meta.url.startsWith("http") ? new URL(import.meta.url).origin : undefined;
  const known = Array.isArray(kv?.urls) ? kv : undefined; // also one that another node's copy of this module made
  const named = options.url ?? (known ? undefined : own);
  if (named === undefined && !known) {
    throw new KvnodeError("ENDPOINT_INVALID", "no URL is known: pass connect(url) as kv, or the option url");
  }
  const there = named === undefined ? known : connect(named);
  return {
    urls: there.urls,
    database: options.database ?? known?.database ?? there.database,
    token: checkedToken(options.token ?? known?.token ?? tokenOfEnvironment()),
    signals: [options.signal, known?.signal].filter(Boolean),
  };
}

function tokenOfEnvironment() {
  const token = process.env.DENO_KV_ACCESS_TOKEN; // Deno asks for --allow-env
  if (!token) {
    throw new KvnodeError("ACCESS_TOKEN_INVALID", "no access token: pass `token`, or set DENO_KV_ACCESS_TOKEN");
  }
  return token;
}

/** fetch refuses what no header can carry with the error of a node that does not answer: it would be tried for ever. */
function checkedToken(token) {
  try {
    new Headers({ authorization: `Bearer ${token}` });
    return token;
  } catch (cause) {
    const message = "the access token holds a character that none has: pass it as `kvnode token create` printed it";
    throw new KvnodeError("ACCESS_TOKEN_INVALID", message, { cause });
  }
}

// Requests.

function request(target, url, queue, method, body, signal, headers = {}) {
  return fetch(`${url}/queues/${encodeURIComponent(target.database)}/${encodeURIComponent(queue)}/${method}`, {
    method: "POST",
    headers: { authorization: `Bearer ${target.token}`, "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
    signal,
  });
}

/** The JSON of an answer. Throws KvnodeError. */
async function answerOf(response) {
  const text = await response.text();
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    const message = `the answer is no JSON: ${text.slice(0, 200)}`;
    found = { code: "NOT_A_KVNODE", message, retry: response.status >= 500 };
  }
  if (response.ok) return found;
  throw refusalOf(found, response.status);
}

function refusalOf({ code, message, retry }, status = 0) {
  return new KvnodeError(code, message, { status, retry: retry || status === 429 });
}

/** Whether another attempt may do better: not when a node has refused. What is no refusal came from the network. */
function isRetryable(error) {
  return !(error instanceof KvnodeError) || error.retry;
}

function backoff(failures) {
  return Math.random() * Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** Math.min(failures, 10)) + BACKOFF_MS / 2;
}

function sleep(ms, signal) {
  if (signal?.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    signal?.addEventListener("abort", done);
  });
}

/**
 * Put a message into a queue. It is there when this resolves. After a lost connection it is sent again, and may then be
 * in the queue twice.
 *
 * @param {object | null} kv what connect gave; with a Deno.Kv, or null, `url` or the origin of this module is meant
 * @param {unknown} value whatever V8 can serialize
 * @param {{queue?: string, delay?: number, keysIfUndelivered?: unknown[][], backoffSchedule?: number[],
 *   url?: string | string[], token?: string, database?: string, signal?: AbortSignal}} [options]
 * @returns {Promise<{ok: true, versionstamp: string, id: string}>} rejects with a KvnodeError when the cluster
 *   refuses, or has not taken it for a minute, or an option is wrong; with the reason of `signal` when that is aborted
 */
export async function enqueue(kv, value, options = {}) {
  const target = resolved(kv, options);
  const message = { ...encoded(value), delay_ms: whole(options.delay, "delay") };
  const keys = list(options.keysIfUndelivered, "keysIfUndelivered");
  message.keys_if_undelivered = keys?.map((key) => checkedList(key, "each key of keysIfUndelivered").map(keyPart));
  const schedule = list(options.backoffSchedule, "backoffSchedule");
  message.backoff_schedule = schedule?.map((each) => whole(each, "each number of backoffSchedule"));
  const queue = queueName(options.queue);
  const until = Date.now() + ENQUEUE_TIMEOUT_MS;
  const headers = { "x-kvnode-timeout-ms": String(HOLD_TIMEOUT_MS) };
  const leaving = AbortSignal.any(target.signals);
  for (let attempt = 0;; attempt++) {
    const url = target.urls[attempt % target.urls.length];
    const signal = AbortSignal.any([AbortSignal.timeout(REQUEST_TIMEOUT_MS), leaving]);
    try {
      const response = await request(target, url, queue, "messages", { messages: [message] }, signal, headers);
      const { versionstamp, ids } = await answerOf(response);
      return { ok: true, versionstamp, id: ids[0] };
    } catch (error) {
      if (!isRetryable(error)) throw error;
      leaving.throwIfAborted();
      if (Date.now() > until) throw explained(error, target.urls);
    }
    await sleep(backoff(attempt / target.urls.length), leaving);
    leaving.throwIfAborted();
  }
}

/** What a caller is told of the last failure; undefined = none has been heard of. */
function explained(error, urls) {
  if (error instanceof KvnodeError) return error;
  const why = error?.cause?.code ?? error?.cause?.message ?? error?.message; // that of fetch itself says "fetch failed"
  const message = `no node answers at ${urls.join(", ")}${why ? ` (${why})` : ""}`;
  return new KvnodeError("UNAVAILABLE", message, { retry: true, cause: error });
}

// Listening.

/**
 * Whether a listener has a node, for people: that it has had none for some seconds is said once, and once that it has
 * one again; on the console, unless a callback is given.
 */
class Connectedness {
  #queue;
  #urls;
  #onDisconnect;
  #onReconnect;
  #since; // there is no node
  #error; // the last one since then
  #timer;
  #isSaid = false;

  constructor(queue, urls, { onDisconnect, onReconnect }) {
    this.#queue = queue;
    this.#urls = urls;
    this.#onDisconnect = checkedCallback(onDisconnect, "onDisconnect");
    this.#onReconnect = checkedCallback(onReconnect, "onReconnect");
  }

  /** There is no node yet, or no more; called at each failure. */
  lost(error) {
    this.#error = error;
    if (this.#since !== undefined) return;
    this.#since = Date.now();
    this.#timer = setTimeout(() => this.#sayLost(), DISCONNECTED_MS);
  }

  found(url) {
    clearTimeout(this.#timer);
    if (this.#isSaid) this.#sayFound(url);
    this.#since = undefined;
    this.#isSaid = false;
  }

  /** The listener is closed: nothing is said any more. */
  close() {
    clearTimeout(this.#timer);
  }

  #sayLost() {
    this.#isSaid = true;
    const { code, message, cause } = explained(this.#error, this.#urls);
    const text = `the listener of queue '${this.#queue}' has had no node for ${this.#seconds()} s and goes on trying: `;
    const plain = message.replace(` [${code}]`, "");
    const error = new KvnodeError(code, text + plain, { retry: true, cause: cause ?? this.#error });
    this.#tell(this.#onDisconnect, "onDisconnect", `kvnode: ${error.message}`, error);
  }

  #sayFound(url) {
    const text = `kvnode: the listener of queue '${this.#queue}' listens again, at ${url}, after ${this.#seconds()} s`;
    this.#tell(this.#onReconnect, "onReconnect", text);
  }

  #seconds() {
    return Math.round((Date.now() - this.#since) / 1_000);
  }

  /** What a callback throws, at once or later, is no fault of the listener's, and does not end it. */
  async #tell(callback, name, text, ...all) {
    try {
      if (callback) await callback(...all);
      else if (!this.#onDisconnect && !this.#onReconnect) console.warn(text);
    } catch (error) {
      console.error(`kvnode: ${name} of the listener of queue '${this.#queue}' failed:`, error);
    }
  }
}

/** One delivery: what the handler gets beside the value. */
class Delivery {
  #listener;

  constructor(message, listener) {
    this.#listener = listener;
    this.lease = message.lease;
    this.id = message.id;
    this.queue = message.queue;
    this.attempts = message.attempt;
    this.enqueuedAt = new Date(message.enqueued_at_ms);
    if (message.cron) {
      this.cron = message.cron;
      this.scheduledAt = new Date(message.scheduled_at_ms);
    }
  }

  /** Let the lease last from now on, and make sure that it does; it is extended without this, too. */
  async extend() {
    await this.#listener.extend(this.lease);
  }
}

class Listener {
  #target;
  #queue;
  #handler;
  #concurrency;
  #leaseMs;
  #consumer;
  #signal;
  #connectedness;
  #held = new Map(); // lease -> whether it is lost; its handler runs
  #decided = new Map(); // lease -> ack, nack or unseen, not confirmed
  #extending = new Map(); // lease -> those who wait for an extension
  #isExtending = false; // all that is held is to be extended by the next request
  #settling = false;
  #at = 0; // of the URL in use
  #stream = new AbortController();
  #over = false;
  #failure;
  #wake = () => {};

  constructor(target, handler, options) {
    this.#target = target;
    this.#handler = checkedHandler(handler);
    this.#queue = queueName(options.queue);
    this.#concurrency = checkedConcurrency(options.concurrency);
    this.#leaseMs = whole(options.leaseMs, "leaseMs") || DEFAULT_LEASE_MS; // 0 stands for the default, as at a node
    this.#consumer = options.consumer;
    this.#signal = AbortSignal.any(target.signals);
    this.#connectedness = new Connectedness(this.#queue, target.urls, options);
  }

  /** Resolves when it was closed and its handlers have ended. */
  async run() {
    const timer = setInterval(() => this.#extendAll(), this.#leaseMs / 3);
    const close = () => {
      this.#extendAll(); // which also tells the node that no more is taken
      this.#wake();
    };
    this.#signal.addEventListener("abort", close);
    try {
      const streaming = this.#streams();
      while (!this.#failure && !(this.#signal.aborted && !this.#held.size)) await this.#change();
      await this.#confirmed();
      this.#over = true;
      this.#refuseExtensions(this.#refusal());
      this.#stream.abort();
      await streaming;
    } finally {
      clearInterval(timer);
      this.#signal.removeEventListener("abort", close);
    }
    if (this.#failure) throw this.#failure;
  }

  /** Give the node a while to confirm what was decided. */
  async #confirmed() {
    const until = Date.now() + CLOSE_TIMEOUT_MS;
    const late = setTimeout(() => this.#wake(), CLOSE_TIMEOUT_MS + 1);
    while (!this.#failure && this.#decided.size && Date.now() <= until) await this.#change();
    clearTimeout(late);
  }

  /** The next thing that may end it. */
  #change() {
    return new Promise((resolve) => this.#wake = resolve);
  }

  // What comes.

  async #streams() {
    this.#connectedness.lost(); // as yet
    try {
      await this.#streamAfterStream();
    } finally {
      this.#connectedness.close();
    }
  }

  async #streamAfterStream() {
    for (let failures = 0; !this.#over && !this.#signal.aborted;) {
      const opened = Date.now();
      try {
        await this.#listen(() => {
          failures = 0;
          this.#connectedness.found(this.#url);
        });
        this.#connectedness.lost();
      } catch (error) {
        if (this.#over) return;
        this.#connectedness.lost(error);
        if (!isRetryable(error)) {
          this.#failure = error;
          this.#wake();
          return;
        }
      }
      this.#at++;
      // Another node is tried at once, unless all have failed by now.
      if (++failures % this.#target.urls.length === 0 || Date.now() - opened < BACKOFF_MS) {
        await sleep(backoff(failures / this.#target.urls.length), this.#signal);
      }
    }
  }

  /** One answer to its end. */
  async #listen(succeeded) {
    const abort = this.#stream = new AbortController();
    let timer = setTimeout(() => abort.abort(), OPEN_TIMEOUT_MS);
    try {
      const held = this.#current();
      const body = { credit: this.#concurrency, lease_ms: this.#leaseMs, consumer: this.#consumer, held };
      const response = await request(this.#target, this.#url, this.#queue, "listen", body, abort.signal);
      if (!response.ok) await answerOf(response);
      for await (const line of linesOf(response.body)) {
        clearTimeout(timer);
        timer = setTimeout(() => abort.abort(), SILENCE_MS);
        this.#take(line, succeeded);
      }
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  #take(line, succeeded) {
    if (line.type === "opened") succeeded();
    else if (line.type === "message") this.#handle(line);
    else if (line.type === "failed") this.#lose(line.lease);
    else if (line.type === "end") throw refusalOf(line);
  }

  async #handle(message) {
    if (this.#signal.aborted) {
      this.#decide(message.lease, "unseen");
      return;
    }
    this.#held.set(message.lease, false);
    let decision = "ack";
    try {
      const value = decoded(Buffer.from(message.payload, "base64"), message.encoding);
      await this.#handler(value, new Delivery(message, this));
    } catch (error) {
      console.error(`kvnode: the handler of queue '${message.queue}' failed with message ${message.id}:`, error);
      decision = "nack";
    }
    this.#held.delete(message.lease);
    this.#decide(message.lease, decision);
    this.#wake();
  }

  #lose(lease) {
    if (this.#held.has(lease)) this.#held.set(lease, true);
  }

  /** The leases that are held and not lost. */
  #current() {
    return [...this.#held].filter(([, lost]) => !lost).map(([lease]) => lease);
  }

  // What is said.

  get #url() {
    return this.#target.urls[this.#at % this.#target.urls.length];
  }

  #decide(lease, decision) {
    this.#decided.set(lease, decision);
    this.#settle();
  }

  #extendAll() {
    if (!this.#held.size) return;
    this.#isExtending = true;
    this.#settle();
  }

  extend(lease) {
    if (this.#over) return Promise.reject(this.#refusal());
    return new Promise((resolve, reject) => {
      const waiting = this.#extending.get(lease) ?? [];
      this.#extending.set(lease, [...waiting, { resolve, reject }]);
      this.#settle();
    });
  }

  /** Send what has gathered, one request at a time, until nothing is left. */
  async #settle() {
    if (this.#settling) return;
    this.#settling = true;
    await Promise.resolve(); // what else is decided now goes along
    for (let failures = 0; !this.#over && this.#hasSomething();) {
      try {
        await this.#settleOnce(this.#target.urls[(this.#at + failures) % this.#target.urls.length]);
        failures = 0;
      } catch (error) {
        if (!isRetryable(error)) this.#giveUp(error);
        else await sleep(backoff(++failures / this.#target.urls.length));
      }
    }
    this.#settling = false;
  }

  #hasSomething() {
    return this.#decided.size > 0 || this.#extending.size > 0 || this.#isExtending;
  }

  /** One request. Throws what may go better with the next one. */
  async #settleOnce(url) {
    const decided = [...this.#decided].slice(0, MAX_LEASES_COUNT);
    const sent = new Set(decided.map(([lease]) => lease)); // of the others only an extension is confirmed
    const extending = new Map([...this.#extending].slice(0, MAX_LEASES_COUNT - decided.length));
    const running = this.#isExtending ? this.#current() : [];
    this.#isExtending = false;
    const room = MAX_LEASES_COUNT - decided.length;
    const extend = [...new Set([...extending.keys(), ...running])].slice(0, room);
    if (!decided.length && !extend.length) return;
    const chosen = (verb) => decided.filter(([, decision]) => decision === verb).map(([lease]) => lease);
    const nack = chosen("nack").map((lease) => ({ lease }));
    const body = { ack: chosen("ack"), nack, unseen: chosen("unseen"), extend, lease_ms: this.#leaseMs };
    body.leaving = this.#signal.aborted;
    const timeout = Math.max(MIN_REQUEST_TIMEOUT_MS, Math.min(REQUEST_TIMEOUT_MS, this.#leaseMs / 3));
    const signal = AbortSignal.timeout(Math.ceil(timeout)); // Node takes no fraction
    try {
      const { settled, failed } = await answerOf(await request(this.#target, url, this.#queue, "settle", body, signal));
      for (const lease of settled) this.#settled(lease, sent, extending);
      for (const each of failed) this.#notSettled(each, extending);
      const again = failed.find(({ retry }) => retry);
      if (again) throw refusalOf(again);
    } catch (error) {
      this.#isExtending ||= running.length > 0;
      throw error;
    } finally {
      this.#wake();
    }
  }

  #settled(lease, sent, extending) {
    if (sent.has(lease)) this.#decided.delete(lease); // else its handler has ended since, and that is yet to be said
    for (const { resolve } of this.#answered(lease, extending)) resolve();
  }

  #notSettled(failure, extending) {
    const error = refusalOf(failure);
    if (error.retry) return;
    this.#lose(failure.lease);
    this.#decided.delete(failure.lease); // it is, or was, delivered again; or an answer to this was lost
    for (const { reject } of this.#answered(failure.lease, extending)) reject(error);
  }

  /** Who waited for the extension that was sent; those who have come since wait for the next one. */
  #answered(lease, extending) {
    const answered = extending.get(lease) ?? [];
    const left = this.#extending.get(lease)?.filter((each) => !answered.includes(each)) ?? [];
    if (left.length) this.#extending.set(lease, left);
    else this.#extending.delete(lease);
    return answered;
  }

  /** The cluster refuses this listener. */
  #giveUp(error) {
    this.#refuseExtensions(error);
    this.#decided.clear();
    this.#isExtending = false;
    this.#failure ??= error;
    this.#wake();
  }

  #refuseExtensions(error) {
    for (const waiting of this.#extending.values()) for (const { reject } of waiting) reject(error);
    this.#extending.clear();
  }

  /** Why nothing is said any more, for a handler that outlasts its listener. */
  #refusal() {
    return this.#failure ?? new KvnodeError("CLIENT_CLOSED", "the listener is closed, and extends no lease any more");
  }
}

async function* linesOf(body) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of body) {
    text += decoder.decode(chunk, { stream: true });
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

/**
 * Hand every message of a queue to `handler`. When it returns, the message is gone; when it throws, the message comes
 * again by its schedule. A message may come twice. While a handler runs, its message is given to nobody else.
 *
 * @param {object | null} kv as for enqueue
 * @param {(value: any, message: Delivery) => unknown} handler
 * @param {{queue?: string, concurrency?: number, leaseMs?: number, consumer?: string, url?: string | string[],
 *   token?: string, database?: string, signal?: AbortSignal, onDisconnect?: (error: KvnodeError) => unknown,
 *   onReconnect?: () => unknown}} [options] `concurrency` handlers run at a time (10); `leaseMs` is how long a message
 *   stays with a listener that is heard of no more (10,000); `signal` closes it; `onDisconnect` is called once when it
 *   has had no node for some seconds, `onReconnect` when it has one again, instead of a warning on the console
 * @returns {Promise<void>} when it was closed, and what ran has ended; rejects with a KvnodeError when the cluster
 *   refuses, or an option is wrong
 */
export async function listenQueue(kv, handler, options = {}) {
  await new Listener(resolved(kv, options), handler, options).run();
}

/**
 * What was pushed to this URL (`kvnode queue push`), once its signature and its age have been checked. Answer with 2xx
 * when it is handled; otherwise it comes again by its schedule.
 *
 *     Deno.serve(async (request) => {
 *       const { value } = await readPush(request, secret);
 *       ...
 *       return new Response();
 *     });
 *
 * @param {Request} request
 * @param {string} secret as `kvnode queue push` printed it: whsec_...
 * @param {{maxAgeMs?: number}} [options]
 * @returns {Promise<{value: any, id: string, database: string, queue: string, attempts: number, enqueuedAt: Date,
 *   cron?: string, scheduledAt?: Date}>} `cron` and its tick when a cron sent it; rejects with a KvnodeError:
 *   PUSH_NOT_SIGNED, PUSH_TOO_OLD
 */
export async function readPush(request, secret, { maxAgeMs = MAX_PUSH_AGE_MS } = {}) {
  const header = (name) => request.headers.get(name) ?? "";
  const body = Buffer.from(await request.arrayBuffer());
  const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
  const signed = `${header("webhook-id")}.${header("webhook-timestamp")}.`;
  const wanted = createHmac("sha256", key).update(signed).update(body).digest();
  const isTrue = header("webhook-signature").split(" ").some((each) => {
    const found = Buffer.from(each.replace(/^v1,/, ""), "base64");
    return each.startsWith("v1,") && found.length === wanted.length && timingSafeEqual(found, wanted);
  });
  if (!isTrue) throw new KvnodeError("PUSH_NOT_SIGNED", "the request is not signed with this secret", { status: 401 });
  if (!(Math.abs(Date.now() - Number(header("webhook-timestamp")) * 1_000) <= maxAgeMs)) {
    throw new KvnodeError("PUSH_TOO_OLD", "the request's time is not the present; check the clocks", { status: 401 });
  }
  const pushed = {
    value: decoded(body, header("kvnode-encoding")),
    id: header("webhook-id"),
    database: header("kvnode-database"),
    queue: header("kvnode-queue"),
    attempts: Number(header("kvnode-attempt")),
    enqueuedAt: new Date(Number(header("kvnode-enqueued-at-ms"))),
  };
  if (header("kvnode-cron")) {
    pushed.cron = decodeURIComponent(header("kvnode-cron"));
    pushed.scheduledAt = new Date(Number(header("kvnode-scheduled-at-ms")));
  }
  return pushed;
}
