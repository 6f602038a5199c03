// What every program shares: a program declares features, each a small body that asserts; the runner of a client
// (main.mjs) runs them one after the other and prints one JSON line for each.
import assert from "node:assert/strict";

const PATIENCE_MS = 60_000;

/** What the programs declared, in order. */
export const features = [];
let currentSection = "";

/** Names the section of the table to which the features that follow belong. */
export function section(title) {
  currentSection = title;
}

/**
 * Declares a feature. `options.absent` maps a client's name to the reason why it has no such thing (the body is then
 * not run for it); `options.slow` leaves it out of the short form; `options.remote` out of the embedded one.
 */
export function feature(title, body, options = {}) {
  features.push({ section: currentSection, title, body, options });
}

/** Thrown by a body whose point is proven by a refusal; carries the text that the user sees. */
class Refused {
  constructor(text) {
    this.text = text;
  }
}

/** What a body is given. */
export class Test {
  constructor(environment, kv, number) {
    Object.assign(this, environment);
    this.kv = kv;
    this.prefix = ["compat", environment.run, number];
    this.assert = assert;
    this.notes = [];
  }

  /** A key of this feature's own. */
  key(...parts) {
    return [...this.prefix, ...parts];
  }

  /** Deep, strict equality: types, -0, NaN and property order of Map and Set count. */
  equal(actual, expected, message) {
    assert.deepStrictEqual(actual, expected, message);
  }

  ok(condition, message) {
    assert.ok(condition, message);
  }

  /** The text of the error with which `action` fails, as its user sees it. Fails when `action` succeeds. */
  async errorOf(action) {
    let result;
    try {
      result = await action();
    } catch (error) {
      return `${error.name}: ${error.message}`;
    }
    assert.fail(`it was expected to fail, and returned ${JSON.stringify(result)}`);
  }

  /** `action` must fail with a text that has `expected` in it: a string, or one for each client. */
  async fails(action, expected) {
    const text = await this.errorOf(action);
    const wanted = typeof expected === "string" ? expected : expected[this.client];
    assert.ok(wanted !== undefined, `no text is expected of ${this.client}; seen: ${text}`);
    assert.ok(text.includes(wanted), `the error should say "${wanted}", and says "${text}"`);
    return text;
  }

  /** Ends the body: this refusal is the outcome. */
  async refused(action, expected) {
    throw new Refused(await this.fails(action, expected));
  }

  /** A figure for the report. */
  note(text) {
    this.notes.push(text);
  }

  sleep(ms) {
    return new Promise((resolve) => setTimeout(resolve, ms));
  }

  /** Waits until `condition` holds; returns the milliseconds that it took. */
  async until(condition, patienceMs, otherwise) {
    const start = performance.now();
    while (!(await condition())) {
      assert.ok(performance.now() - start < patienceMs, otherwise);
      await this.sleep(5);
    }
    return performance.now() - start;
  }

  /**
   * A reader of a watch. @deno/kv watches at the eventual endpoint, where what was just written may arrive later: wait
   * for it first, so that the first frame has it. Deno's watch is strong and must have it by itself.
   */
  async watch(keys, options) {
    if (this.client === "node") {
      const stamps = async (read) => JSON.stringify((await this.kv.getMany(keys, read)).map((e) => e.versionstamp));
      const arrived = async () => (await stamps({ consistency: "eventual" })) === (await stamps());
      await this.until(arrived, 5_000, "the writes never arrived");
    }
    return this.kv.watch(keys, options).getReader();
  }

  /** Everything that an async iterator gives. */
  async collect(iterator) {
    const all = [];
    for await (const item of iterator) all.push(item);
    return all;
  }

  /** Sets many keys, 500 a transaction. `entries` are [key, value]. */
  async fill(entries) {
    for (let at = 0; at < entries.length; at += 500) {
      const operation = this.kv.atomic();
      for (const [key, value] of entries.slice(at, at + 500)) operation.set(key, value);
      this.equal((await operation.commit()).ok, true);
    }
  }
}

/** Deno's embedded database has what its client has, unless the feature says otherwise ("" for: it has it). */
function whyAbsent(absent, environment) {
  if (environment.embedded) return absent.embedded ?? absent.deno;
  return absent[environment.client];
}

/** Runs one feature and says how it ended. */
export async function runFeature(declared, environment, number) {
  const { section, title, body, options } = declared;
  const report = (status, detail, ms = 0) => ({ section, title, status, detail, ms: Math.round(ms) });
  const reason = whyAbsent(options.absent ?? {}, environment);
  if (reason) return report("absent", reason);
  if (options.remote && environment.embedded) return report("absent", "not a remote database");
  const start = performance.now();
  const kv = await environment.openKv();
  const test = new Test(environment, kv, number);
  let timer;
  try {
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not finished after ${PATIENCE_MS} ms`)), PATIENCE_MS);
    });
    await Promise.race([body(test), late]);
    return report("works", test.notes.join("; "), performance.now() - start);
  } catch (error) {
    if (error instanceof Refused) return report("refused", error.text, performance.now() - start);
    return report("fails", String(error?.message ?? error), performance.now() - start);
  } finally {
    clearTimeout(timer);
    try {
      kv.close();
    } catch {
      // The body closed it.
    }
  }
}
