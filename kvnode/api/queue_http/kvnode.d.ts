/** Queues of kvnode for Deno and Node, in Deno's shape. */

/** A part of a key, as in Deno KV. */
export type KeyPart = Uint8Array | string | number | bigint | boolean;

/** Where queues are, and as whom. What is left out comes from `kv`. */
export interface Target {
  /** Of nodes' KV Connect ports, the nearest first. Without it, and without `connect`: where this module came from. */
  url?: string | URL | (string | URL)[];
  /** An access token with the right to write. Without it: the variable DENO_KV_ACCESS_TOKEN. */
  token?: string;
  /** Name or uuid. Without it: the one that the URL names, or `default`. */
  database?: string;
}

export interface EnqueueOptions extends Target {
  /** The queue's name; `default` without it. */
  queue?: string;
  /** Milliseconds until the message is delivered, a whole number, at most 30 days. */
  delay?: number;
  /** Keys that get the value when the last attempt has failed, at most 10. */
  keysIfUndelivered?: KeyPart[][];
  /** Milliseconds after each failure, at most 10 of an hour; without it 100, 1000, 5000, 30000, 60000. */
  backoffSchedule?: number[];
  /**
   * Gives up when it is aborted, and rejects with its reason, as `fetch` does. The message may be in the queue all the
   * same.
   */
  signal?: AbortSignal;
}

export interface ListenOptions extends Target {
  /** The queue's name; `default` without it. */
  queue?: string;
  /** How many handlers run at a time, 1 to 1,000; 10 without it. */
  concurrency?: number;
  /**
   * How long a message stays with a listener that is heard of no more, in milliseconds, 1,000 to 600,000; 10,000
   * without it, or with 0.
   */
  leaseMs?: number;
  /** A name for people to read. */
  consumer?: string;
  /** Closes the listener when it is aborted: handlers that run are waited for. */
  signal?: AbortSignal;
  /**
   * Called once when no node has served the listener for 5 seconds, at the start or later. It goes on trying by itself;
   * `error` says where, and why the last attempt failed: `UNAVAILABLE` when no node answers, otherwise what one said.
   *
   * Without this and `onReconnect` both are warnings on the console. What a callback throws is written there, too.
   */
  onDisconnect?: (error: KvnodeError) => unknown;
  /** Called once when a node serves the listener again after `onDisconnect`. */
  onReconnect?: () => unknown;
}

/** One delivery. */
export interface Message {
  /** 24 hexadecimal digits, the same at every delivery. */
  readonly id: string;
  readonly queue: string;
  /** 1 for the first delivery, 2 for the next. */
  readonly attempts: number;
  readonly enqueuedAt: Date;
  /** The cron that sent it, if one did, and the tick for which. */
  readonly cron?: string;
  readonly scheduledAt?: Date;
  /** Of this delivery, 24 hexadecimal digits; another at the next one. */
  readonly lease: string;
  /**
   * Let the lease last from now on, and know that it does; it is extended without this, too. Rejects: LEASE_LOST; once
   * the listener has ended CLIENT_CLOSED, or what ended it.
   */
  extend(): Promise<void>;
}

export type Handler<T = any> = (value: T, message: Message) => unknown;

export interface Enqueued {
  ok: true;
  versionstamp: string;
  id: string;
}

/** Nodes of one cluster, a database and a token. */
export interface Connection {
  readonly urls: string[];
  readonly database: string;
  listenQueue<T = any>(handler: Handler<T>, options?: ListenOptions): Promise<void>;
  enqueue(value: unknown, options?: EnqueueOptions): Promise<Enqueued>;
  /** Ends its listeners as their `signal` would. */
  close(): void;
}

/**
 * Where queues are.
 *
 * @param url of nodes' KV Connect ports, the nearest first; as for `Deno.openKv` it may name a database
 */
export function connect(url: string | URL | (string | URL)[], options?: Omit<Target, "url">): Connection;

/**
 * Put a message into a queue. It is there when this resolves. After a lost connection it is sent again, and may then be
 * in the queue twice. While no node answers, or none finds a leader, it goes on trying for a minute: a node is given 8
 * seconds to find one and 10 to answer. Rejects with a KvnodeError when the cluster refuses, or has not taken it by then,
 * or an option is wrong; with the reason of `signal` when that is aborted.
 *
 * @param kv what `connect` gave; a `Deno.Kv` or null means `url`, or where this module came from
 */
export function enqueue(kv: Connection | object | null, value: unknown, options?: EnqueueOptions): Promise<Enqueued>;

/**
 * Hand every message of a queue to `handler`. When it returns, the message is gone; when it throws, the message comes
 * again by its schedule. A message may come twice. Resolves when it was closed and what ran has ended; rejects with a
 * KvnodeError when the cluster refuses, or an option is wrong.
 *
 * @param kv as for `enqueue`
 */
export function listenQueue<T = any>(
  kv: Connection | object | null,
  handler: Handler<T>,
  options?: ListenOptions,
): Promise<void>;

/** What was pushed to a URL. */
export interface Pushed<T = any> {
  value: T;
  /** 24 hexadecimal digits, the same at every attempt. */
  id: string;
  database: string;
  queue: string;
  /** 1 for the first delivery, 2 for the next. */
  attempts: number;
  enqueuedAt: Date;
  /** The cron that sent it, if one did, and the tick for which. */
  cron?: string;
  scheduledAt?: Date;
}

/**
 * What was pushed to this URL (`kvnode queue push`), once its signature and its age have been checked. Answer with 2xx
 * when it is handled; otherwise it comes again by its schedule. Rejects with a KvnodeError: PUSH_NOT_SIGNED,
 * PUSH_TOO_OLD.
 *
 * @param secret as `kvnode queue push` printed it: whsec_...
 */
export function readPush<T = any>(
  request: Request,
  secret: string,
  options?: { maxAgeMs?: number },
): Promise<Pushed<T>>;

/** A node's refusal, or why none could be reached. */
export class KvnodeError extends Error {
  /** Stable, for example LEASE_LOST. */
  readonly code: string;
  /** Of HTTP; 0 when it came otherwise. */
  readonly status: number;
  /**
   * Whether the same may succeed when it is sent again a moment later. After a QUEUE_FULL it is false, and the same may
   * succeed all the same: when consumers have made room.
   */
  readonly retry: boolean;
}

/** An unsigned number of 64 bits, where `Deno.KvU64` does not exist. */
export class KvU64 {
  constructor(value: bigint);
  readonly value: bigint;
}
