"""kvnode.js in the real Node, where no cluster answers as it should: servers of the program's own, or none."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kvnode.api.queue_http.module import Module

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None, reason="kvnode.js needs nodejs: on Debian 'apt install nodejs'"
)

# What each program begins with: servers that are told what to answer, and the console, which is listened to.
HEAD = """
import http from "node:http";
import process from "node:process";
import { connect, enqueue, listenQueue } from "./kvnode.mjs";

const say = (...all) => process.stdout.write(JSON.stringify(all) + "\\n");
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
console.warn = (...all) => say("warn", all.join(" "));
console.error = (...all) => say("error", all.join(" "));

/** A server that answers by `handler`; with `port`, at that one. */
async function serving(handler, port = 0) {
  const server = http.createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => body += chunk);
    request.on("end", () => handler(request, response, body ? JSON.parse(body) : {}));
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    port: server.address().port,
    close: () => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

/** As a node answers a listener, for whom there is nothing. */
function listens(_request, response) {
  response.writeHead(200, { "content-type": "application/x-ndjson" });
  response.write('{"type":"opened","node":"a","lease_ms":10000}\\n');
}

/** Where nobody listens: a port that was free a moment ago. */
async function nowhere() {
  const server = await serving(listens);
  await server.close();
  return server;
}
"""


async def run(folder: Path, source: str) -> list[list[object]]:
    """What a program says."""
    module = Module().response("/kvnode.js")
    (folder / "kvnode.mjs").write_bytes(module.body)
    path = folder / "program.mjs"
    path.write_text(f"{HEAD}\n{source}\nprocess.exit(0);\n")
    command = ["node", "--no-warnings", str(path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_listener_whose_nodes_do_not_answer_says_so_once_and_once_when_one_does(tmp_path: Path) -> None:
    said = await run(
        tmp_path,
        """
        const [one, other] = [await nowhere(), await nowhere()];
        const kv = connect([one.url, other.url], { token: "t" });
        const closing = new AbortController();
        const { signal } = closing;
        const listening = [
          listenQueue(kv, () => {}, { queue: "mail", signal }),
          listenQueue(kv, () => {}, {
            queue: "told",
            signal,
            onDisconnect: (error) => {
              say("onDisconnect", error.code, error.message, error.retry);
              throw new Error("of the callback");
            },
            onReconnect: async () => say("onReconnect"),
          }),
        ];
        await sleep(7500);
        say("returns");
        const back = await serving(listens, other.port);
        await sleep(2500);
        say("closes");
        closing.abort();
        await Promise.all(listening);
        await back.close();
        await sleep(6000); // nothing is said of a listener that was closed
        """,
    )
    before, after = said[: said.index(["returns"])], said[said.index(["returns"]) + 1 :]
    (warning,) = [each[1] for each in before if each[0] == "warn"]
    (told,) = [each for each in before if each[0] == "onDisconnect"]
    (failed,) = [each[1] for each in before if each[0] == "error"]
    assert len(before) == 3, before
    assert "queue 'mail'" in str(warning) and "5 s" in str(warning) and "ECONNREFUSED" in str(warning)
    assert str(warning).count("http://127.0.0.1:") >= 2, "it names where it looked"
    assert (told[1], "queue 'told'" in str(told[2]), told[3]) == ("UNAVAILABLE", True, True)
    assert "onDisconnect" in str(failed) and "of the callback" in str(failed)
    (again,) = [each[1] for each in after if each[0] == "warn"]
    assert "queue 'mail'" in str(again) and "again" in str(again)
    assert [each for each in after if each[0] != "warn"] == [["onReconnect"], ["closes"]]


async def test_a_node_that_is_back_soon_is_not_worth_a_word(tmp_path: Path) -> None:
    said = await run(
        tmp_path,
        """
        let opened = 0;
        const counts = (request, response) => {
          opened++;
          listens(request, response);
        };
        const both = async () => {
          while (opened < 2) await sleep(20);
          await sleep(300); // for the answers
          opened = 0;
        };
        let node = await serving(counts);
        const closing = new AbortController();
        const options = { onDisconnect: () => say("disconnected"), onReconnect: () => say("reconnected") };
        const kv = connect(node.url, { token: "t" });
        const quiet = listenQueue(kv, () => {}, { signal: closing.signal });
        const listening = listenQueue(kv, () => {}, { ...options, signal: closing.signal });
        for (let times = 0; times < 5; times++) { // longer together than it takes to be worth one
          await both();
          await node.close();
          await sleep(1200);
          node = await serving(counts, node.port);
        }
        await both();
        closing.abort();
        await Promise.all([listening, quiet]);
        """,
    )
    assert said == []


async def test_a_callback_that_is_none_is_refused(tmp_path: Path) -> None:
    said = await run(
        tmp_path,
        """
        const kv = connect("http://127.0.0.1:1", { token: "t" });
        const outcome = (promise) => promise.then(() => say("done"), ({ code, message }) => say(code, message));
        for (const name of ["onDisconnect", "onReconnect"]) {
          await outcome(listenQueue(kv, () => {}, { [name]: 5, signal: AbortSignal.timeout(500) }));
        }
        """,
    )
    assert [each[0] for each in said] == ["BAD_HANDLER"] * 2
    assert "onDisconnect is 5" in str(said[0][1]) and "onReconnect is 5" in str(said[1][1])


async def test_an_enqueue_that_is_aborted_rejects_with_the_reason_as_fetch_does(tmp_path: Path) -> None:
    said = await run(
        tmp_path,
        """
        const silent = await serving(() => {});
        const refusing = await serving((_request, response) => {
          response.writeHead(503);
          response.end('{"code":"UNAVAILABLE","message":"no leader","retry":true}');
        });
        const urls = { silent: silent.url, refusing: refusing.url, nowhere: (await nowhere()).url };
        for (const [name, url] of Object.entries(urls)) {
          const kv = connect(url, { token: "t" });
          for (const reason of [new RangeError("mine"), "a text", undefined]) {
            const aborting = new AbortController();
            setTimeout(() => aborting.abort(reason), 300);
            const found = await enqueue(kv, 1, { signal: aborting.signal }).catch((error) => error);
            say(name, found === aborting.signal.reason, String(found?.name ?? found));
          }
          const late = await enqueue(kv, 1, { signal: AbortSignal.timeout(200) }).catch((error) => error);
          say(name, late.name);
          const before = await enqueue(kv, 1, { signal: AbortSignal.abort("before") }).catch((error) => error);
          say(name, before);
          setTimeout(() => kv.close(), 200);
          say(name, (await kv.enqueue(1).catch((error) => error)).name);
        }
        """,
    )
    expected: list[list[object]] = []
    for name in ("silent", "refusing", "nowhere"):
        expected += [[name, True, "RangeError"], [name, True, "a text"], [name, True, "AbortError"]]
        expected += [[name, "TimeoutError"], [name, "before"], [name, "AbortError"]]
    assert said == expected


async def test_a_refusal_is_a_refusal_although_the_caller_has_left(tmp_path: Path) -> None:
    said = await run(
        tmp_path,
        """
        const aborting = new AbortController();
        const node = await serving((_request, response) => {
          response.writeHead(409);
          response.end('{"code":"QUEUE_FULL","message":"full","retry":false}');
        });
        const real = globalThis.fetch;
        globalThis.fetch = async (...all) => {
          const answer = await real(...all);
          const text = await answer.text();
          aborting.abort("too late");
          return { ok: answer.ok, status: answer.status, text: async () => text };
        };
        const found = await enqueue(connect(node.url, { token: "t" }), 1, { signal: aborting.signal }).catch((e) => e);
        say(found.code, found.status);
        """,
    )
    assert said == [["QUEUE_FULL", 409]]


async def test_an_enqueue_tells_the_node_when_to_answer_and_goes_on_at_the_next(tmp_path: Path) -> None:
    """A node that held it for longer than the module waits would enqueue it, and the next one once more."""
    said = await run(
        tmp_path,
        """
        const began = Date.now();
        const leaderless = await serving((request, response) => {
          const timeout = Number(request.headers["x-kvnode-timeout-ms"]);
          say("held", timeout);
          setTimeout(() => {
            response.writeHead(503);
            response.end('{"code":"DEADLINE_EXCEEDED","message":"no leader","retry":true}');
          }, timeout);
        });
        const led = await serving((_request, response) => response.end('{"versionstamp":"00","ids":["0000"]}'));
        const done = await enqueue(connect([leaderless.url, led.url], { token: "t" }), 1);
        say(done.ok, Date.now() - began < 9900);
        """,
    )
    assert said == [["held", 8_000], [True, True]]
