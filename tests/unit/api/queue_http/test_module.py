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
