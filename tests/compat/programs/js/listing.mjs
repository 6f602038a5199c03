// list: selectors, options, cursors, long lists.
import { feature, section } from "./harness.mjs";

section("Listing");

const LETTERS = ["a", "b", "c", "d", "e", "f", "g"];
const LONG_COUNT = 10_050;

const letters = (t, more = []) => t.fill([...LETTERS.map((letter) => [t.key(letter), letter]), ...more]);
const valuesOf = async (t, selector, options) =>
  (await t.collect(t.kv.list(selector, options))).map((entry) => entry.value).join("");

feature("list: entries have key, value and versionstamp", async (t) => {
  const { versionstamp } = await t.kv.set(t.key("a"), 1);
  t.equal(await t.collect(t.kv.list({ prefix: t.prefix })), [{ key: t.key("a"), value: 1, versionstamp }]);
});

feature("list: nothing there", async (t) => {
  t.equal(await t.collect(t.kv.list({ prefix: t.prefix })), []);
});

feature("list: prefix, without the key that equals it and without half parts", async (t) => {
  await t.fill([[t.key(), "x"], [t.key("a"), "x"], [t.key("a", 1), "1"], [t.key("a", 2), "2"], [t.key("ab", 3), "x"]]);
  t.equal(await valuesOf(t, { prefix: t.key("a") }), "12");
});

feature("list: prefix and start", async (t) => {
  await letters(t);
  t.equal(await valuesOf(t, { prefix: t.prefix, start: t.key("c") }), "cdefg");
  t.equal(await valuesOf(t, { prefix: t.prefix, start: t.key("bb") }), "cdefg");
});

feature("list: prefix and end", async (t) => {
  await letters(t);
  t.equal(await valuesOf(t, { prefix: t.prefix, end: t.key("c") }), "ab");
});

feature("list: start and end", async (t) => {
  await letters(t);
  t.equal(await valuesOf(t, { start: t.key("b"), end: t.key("e") }), "bcd");
  t.equal(await valuesOf(t, { start: t.key("b"), end: t.key("b") }), "");
});

feature("list: start alone", async (t) => {
  await t.refused(() => t.collect(t.kv.list({ start: t.key("b") })), {
    deno: "TypeError: Selector must specify either 'prefix' or both",
    node: "TypeError: Selector must specify either 'prefix' or both",
  });
});

feature("list: prefix, start and end together", async (t) => {
  const list = () => t.collect(t.kv.list({ prefix: t.prefix, start: t.key("a"), end: t.key("c") }));
  await t.refused(list, { deno: "TypeError", node: "can not specify both 'start' and 'end'" });
});

feature("list: a start after the end", async (t) => {
  const list = () => t.collect(t.kv.list({ start: t.key("c"), end: t.key("a") }));
  await t.refused(list, { deno: "Start key is greater than end key", node: "Start key is greater than end key" });
});

feature("list: a start outside of the prefix", async (t) => {
  const list = () => t.collect(t.kv.list({ prefix: t.key("a"), start: t.key("b", 1) }));
  await t.refused(list, { deno: "not in the keyspace defined by prefix", node: "not in the keyspace defined by prefix" });
});

feature("list: limit", async (t) => {
  await letters(t);
  t.equal(await valuesOf(t, { prefix: t.prefix }, { limit: 1 }), "a");
  t.equal(await valuesOf(t, { prefix: t.prefix }, { limit: 3 }), "abc");
  t.equal(await valuesOf(t, { prefix: t.prefix }, { limit: 100 }), "abcdefg");
});

feature("list: a limit of 0", async (t) => {
  await t.refused(() => t.collect(t.kv.list({ prefix: t.prefix }, { limit: 0 })), {
    deno: "Limit must be a positive integer",
    node: "Bad 'limit'",
  });
});

feature("list: reverse, with every selector", async (t) => {
  await letters(t);
  const reverse = { reverse: true };
  t.equal(await valuesOf(t, { prefix: t.prefix }, reverse), "gfedcba");
  t.equal(await valuesOf(t, { prefix: t.prefix, start: t.key("c") }, reverse), "gfedc");
  t.equal(await valuesOf(t, { prefix: t.prefix, end: t.key("c") }, reverse), "ba");
  t.equal(await valuesOf(t, { start: t.key("b"), end: t.key("e") }, reverse), "dcb");
  t.equal(await valuesOf(t, { prefix: t.prefix }, { reverse: true, limit: 2 }), "gf");
});

feature("list: batchSize from 1 up, both ways", async (t) => {
  await letters(t);
  for (const batchSize of [1, 2, 3, 7, 8, 500]) {
    t.equal(await valuesOf(t, { prefix: t.prefix }, { batchSize }), "abcdefg");
    t.equal(await valuesOf(t, { prefix: t.prefix }, { batchSize, reverse: true }), "gfedcba");
    t.equal(await valuesOf(t, { prefix: t.prefix }, { batchSize, limit: 5 }), "abcde");
  }
});

feature("list: batchSize of 1,000", async (t) => {
  await t.fill(Array.from({ length: 1_001 }, (_, number) => [t.key(number), number]));
  const listed = await t.collect(t.kv.list({ prefix: t.prefix }, { batchSize: 1_000 }));
  t.equal(listed.map((entry) => entry.value), Array.from({ length: 1_001 }, (_, number) => number));
});

feature("list: batchSize of 1,001", async (t) => {
  await t.refused(() => t.collect(t.kv.list({ prefix: t.prefix }, { batchSize: 1_001 })), {
    deno: "Too many entries (max 1000)",
    node: "Bad 'batchSize'",
  });
});

feature("list: consistency eventual", async (t) => {
  await letters(t);
  const all = async () => (await valuesOf(t, { prefix: t.prefix }, { consistency: "eventual" })) === "abcdefg";
  await t.until(all, 5_000, "the writes never arrived");
});

feature("list: cursor, before the first entry", async (t) => {
  const iterator = t.kv.list({ prefix: t.prefix });
  await t.refused(async () => iterator.cursor, {
    deno: "Cannot get cursor before first iteration",
    node: "Cannot get cursor before first iteration",
  });
});

feature("list: cursor goes on where a list ended, both ways", async (t) => {
  await letters(t);
  for (const reverse of [false, true]) {
    let [seen, cursor] = ["", undefined];
    for (let page = 0; page < 4; page++) {
      const iterator = t.kv.list({ prefix: t.prefix }, { limit: 2, reverse, cursor });
      for (const entry of await t.collect(iterator)) seen += entry.value;
      cursor = iterator.cursor;
    }
    t.equal(seen, reverse ? "gfedcba" : "abcdefg");
  }
});

feature("list: cursor with every selector", async (t) => {
  await letters(t);
  const selectors = [
    [{ prefix: t.prefix, start: t.key("b") }, "bcdefg"],
    [{ prefix: t.prefix, end: t.key("g") }, "abcdef"],
    [{ start: t.key("b"), end: t.key("f") }, "bcde"],
  ];
  for (const [selector, all] of selectors) {
    const iterator = t.kv.list(selector, { limit: 2 });
    const first = (await t.collect(iterator)).map((entry) => entry.value).join("");
    const rest = await valuesOf(t, selector, { cursor: iterator.cursor });
    t.equal(first + rest, all);
  }
});

feature("list: cursor survives a change of the entry it stands on", async (t) => {
  await letters(t);
  const iterator = t.kv.list({ prefix: t.prefix }, { limit: 3 });
  await t.collect(iterator);
  await t.kv.delete(t.key("c"));
  await t.kv.set(t.key("cc"), "C");
  t.equal(await valuesOf(t, { prefix: t.prefix }, { cursor: iterator.cursor }), "Cdefg");
});

feature("list: a cursor that is none", async (t) => {
  const list = () => t.collect(t.kv.list({ prefix: t.prefix }, { cursor: "!!" }));
  await t.refused(list, { deno: "invalid cursor", node: "Invalid cursor" });
});

feature("list: values of 64 KiB, several in one answer", async (t) => {
  const value = new Uint8Array(65_000).fill(7);
  for (let number = 0; number < 20; number++) await t.kv.set(t.key(number), value);
  const listed = await t.collect(t.kv.list({ prefix: t.prefix }));
  t.equal(listed.length, 20);
  t.ok(listed.every((entry) => entry.value.length === 65_000 && entry.value.every((byte) => byte === 7)));
});

async function longList(t) {
  await t.fill(Array.from({ length: LONG_COUNT }, (_, number) => [t.key(number), number]));
}

function inOrder(t, listed, numbers) {
  t.equal(listed.length, numbers.length);
  t.ok(listed.every((entry, at) => entry.value === numbers[at] && entry.key.at(-1) === numbers[at]));
}

feature("list: 10,050 entries, both ways, in batches of 100, 500 and 1,000", async (t) => {
  await longList(t);
  const numbers = Array.from({ length: LONG_COUNT }, (_, number) => number);
  for (const batchSize of [undefined, 500, 1_000]) {
    inOrder(t, await t.collect(t.kv.list({ prefix: t.prefix }, { batchSize })), numbers);
    const backward = await t.collect(t.kv.list({ prefix: t.prefix }, { batchSize, reverse: true }));
    inOrder(t, backward, numbers.toReversed?.() ?? [...numbers].reverse());
  }
}, { slow: true });

feature("list: 10,050 entries page by page with cursors, with every selector, both ways", async (t) => {
  await longList(t);
  const numbers = Array.from({ length: LONG_COUNT }, (_, number) => number);
  const selectors = [
    [{ prefix: t.prefix }, 0, LONG_COUNT],
    [{ prefix: t.prefix, start: t.key(25) }, 25, LONG_COUNT],
    [{ prefix: t.prefix, end: t.key(10_010) }, 0, 10_010],
    [{ start: t.key(7), end: t.key(10_020) }, 7, 10_020],
  ];
  for (const [selector, first, end] of selectors) {
    for (const reverse of [false, true]) {
      const listed = [];
      let cursor;
      while (true) {
        const iterator = t.kv.list(selector, { limit: 730, batchSize: 365, reverse, cursor });
        const page = await t.collect(iterator);
        listed.push(...page);
        if (page.length < 730) break;
        cursor = iterator.cursor;
      }
      const wanted = numbers.slice(first, end);
      inOrder(t, listed, reverse ? wanted.reverse() : wanted);
    }
  }
}, { slow: true });

feature("list: goes through while transactions write", async (t) => {
  await t.fill(Array.from({ length: 1_200 }, (_, number) => [t.key("fixed", number), number]));
  let running = true;
  const writer = (async () => {
    for (let number = 0; running; number++) {
      await t.kv.atomic().set(t.key("fixed", number % 1_200, "x"), number).delete(t.key("fixed", 5, "x")).commit();
    }
  })();
  const listed = await t.collect(t.kv.list({ prefix: t.key("fixed") }));
  running = false;
  await writer;
  const fixed = listed.filter((entry) => entry.key.length === t.prefix.length + 2);
  t.equal(fixed.map((entry) => entry.value), Array.from({ length: 1_200 }, (_, number) => number));
});
