"""kvnode.js in the real Deno and the real Node: the node at which they listen is killed, and no message is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from asyncio.subprocess import PIPE, Process
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from kvnode.client import Admin, open_kv
from tests.compat.clients import PROGRAMS, clients, deno_binary, environment, install, missing
from tests.compat.nodes import TOKEN, Nodes, three_nodes

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

COUNT = 500
FAILING = {number for number in range(COUNT) if number % 50 == 0}  # at the first attempt


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    install()
    with three_nodes(tmp_path_factory.mktemp("queue-module")) as running:
        yield running


class Program:
    """A program that enqueues and listens; `lines` is what it has said."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.lines: list[str] = []
        self._process = process
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode().strip())

    @property
    def handled(self) -> list[tuple[int, int]]:
        """(number, attempt) of each message that was handled."""
        return [(int(line.split()[1]), int(line.split()[2])) for line in self.lines if line.startswith("handled ")]

    async def until(self, condition, what: str, timeout_s: float = 30.0) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            assert self._process.returncode is None, f"{self.name} ended: {self.lines[-5:]}"
            late = asyncio.get_running_loop().time() > deadline
            assert not late, f"{self.name}: {what}; {len(set(self.handled))} handled, {self.lines[-3:]}"
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Have it close its listener, and end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"close\n")
        assert await asyncio.wait_for(self._process.wait(), 10) == 0
        await self._reading
        assert self.lines[-1] == "closed"

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


@contextlib.asynccontextmanager
async def program(client: str, job: dict[str, object], log: Path) -> AsyncIterator[Program]:
    command = next(each.command for each in clients() if each.name == client)[:-1]
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            str(PROGRAMS / "js" / "queue_module.mjs"),
            env=environment(TOKEN) | {"JOB": json.dumps(job)},
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
        )
    running = Program(client, process)
    try:
        yield running
    finally:
        running.kill()
        await process.wait()


def fetched(url: str) -> bytes:
    with urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


async def test_a_killed_node_loses_no_message(nodes: Nodes, tmp_path: Path) -> None:
    leader = await asyncio.to_thread(nodes.cluster.wait_leader)
    other = next(name for name in nodes.cluster.nodes if name != leader)
    urls = [nodes.url(leader), nodes.url(other)]
    module = tmp_path / "kvnode.mjs"
    module.write_bytes(await asyncio.to_thread(fetched, f"{urls[0]}kvnode.js"))
    modules = {"deno": f"{urls[0]}kvnode.js", "node": module.as_uri()}
    async with contextlib.AsyncExitStack() as stack:
        running = []
        for client, specifier in modules.items():
            job = {"module": specifier, "urls": urls, "queue": client, "name": client, "count": COUNT}
            job |= {"pauseMs": 30, "handlerMs": 20, "concurrency": 10}
            running.append(await stack.enter_async_context(program(client, job, tmp_path / f"{client}.txt")))
        for each in running:
            await each.until(lambda each=each: len(each.handled) > COUNT / 2, "half of them")
        await asyncio.to_thread(nodes.cluster.kill, leader)
        for each in running:
            await each.until(lambda each=each: len({number for number, _ in each.handled}) == COUNT, "all of them")
            await each.until(lambda each=each: "produced" in each.lines, "produced")
        await asyncio.to_thread(nodes.cluster.restart, leader)
        await drained(nodes)  # what an enqueue that was sent again has put there twice comes too
        for each in running:
            await each.close()
    for each in running:
        assert not [line for line in each.lines if line.startswith(("TOO MANY", "WRONG"))]
        assert {number for number, _ in each.handled} == set(range(COUNT))
        assert all(attempt > 1 for number, attempt in each.handled if number in FAILING)
        print(f"{each.name}: {len(each.handled)} deliveries of {COUNT} messages")


async def drained(nodes: Nodes) -> None:
    async with open_kv(nodes.cluster.addresses, token=TOKEN) as kv, asyncio.timeout(30):
        while any(status.waiting_count or status.in_flight_count for status in await kv.queues.status()):
            await asyncio.sleep(0.1)
        assert not any(status.dead_count for status in await kv.queues.status())


async def test_a_message_goes_from_each_language_to_each_other(nodes: Nodes, tmp_path: Path) -> None:
    """Deno with the address in its import, types and all; Node with a data: URL."""
    url = nodes.url(nodes.follower())
    source = await asyncio.to_thread(fetched, f"{url}kvnode.js")
    specifiers = {"deno": f"{url}kvnode.js", "node": f"data:text/javascript;base64,{b64encode(source).decode()}"}
    commands = {"deno": [deno_binary(), "run", "-A", "--no-lock", "--check"], "node": ["node", "--no-warnings"]}
    suffixes = {"deno": "ts", "node": "mjs"}
    async with open_kv(nodes.cluster.addresses, token=TOKEN) as kv:
        for client, specifier in specifiers.items():
            path = tmp_path / f"one.{suffixes[client]}"
            path.write_text(ONE.replace("SPECIFIER", specifier).replace("NAME", client).replace("URL", url))
            await kv.enqueue({"by": b"python", "list": [1, 2.5, "x"]}, queue=f"{client}-one")
            done = await asyncio.to_thread(
                subprocess.run,
                [*commands[client], str(path)],
                env=environment(TOKEN),
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines() == ['python 112 [1,2.5,"x"]', "1 default"], done.stderr
            async with kv.messages(f"{client}-answers") as messages:
                values = []
                for _ in range(3):
                    message = await asyncio.wait_for(anext(messages), 5)
                    values.append(message.value)
                    await message.ack()
            assert {type(value) for value in values} >= {bytes}
            assert {"big": 12, "view": bytes([2, 3])} in values
            (dead,) = [entry.value async for entry in kv.list((client, "dead"))]
            assert dead == "never"


# What it enqueues: bytes, a number of 64 bits, an object with a view on a part of a buffer; and one that always fails.
ONE = """
import { connect, enqueue, KvnodeError, KvU64, listenQueue } from "SPECIFIER";

const closing = new AbortController();
const kv = connect("URL");
await listenQueue(kv, async (value, message) => {
  console.log("python", value.by[0], JSON.stringify(value.list));
  const queue = "NAME-answers";
  await message.extend();
  await enqueue(kv, new Uint8Array([1]), { queue });
  await enqueue(kv, new KvU64(7n), { queue });
  const view = new Uint8Array([1, 2, 3, 4]).subarray(1, 3);
  const { ok } = await enqueue(kv, { big: 12n, view }, { queue, delay: 1 });
  if (!ok || message.attempts !== 1) throw new Error("wrong");
  closing.abort();
}, { queue: "NAME-one", signal: closing.signal });

const failing = new AbortController();
const listening = kv.listenQueue((value) => {
  setTimeout(() => failing.abort(), 200);
  throw new Error(`as it should: ${value}`);
}, { queue: "NAME-failing", signal: failing.signal });
await kv.enqueue("never", { queue: "NAME-failing", backoffSchedule: [], keysIfUndelivered: [["NAME", "dead", 1n]] });
await listening;

const refused = await listenQueue(connect("URL", { token: "wrong" }), () => {}).catch((error) => error);
if (!(refused instanceof KvnodeError) || refused.code !== "ACCESS_TOKEN_INVALID") throw refused;
console.log(1, kv.database);
"""


async def run(nodes: Nodes, folder: Path, source: str) -> list[str]:
    """What a program of Node's says that has imported the module and is connected as `kv`."""
    url = nodes.url(nodes.follower())
    (folder / "kvnode.mjs").write_bytes(await asyncio.to_thread(fetched, f"{url}kvnode.js"))
    head = 'import { connect, enqueue, listenQueue } from "./kvnode.mjs";\n'
    path = folder / "program.mjs"
    path.write_text(f'{head}const kv = connect("{url}");\n{source}')
    command = ["node", "--no-warnings", str(path)]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment(TOKEN), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def test_an_option_that_is_no_number_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    """JSON writes Infinity and NaN as null, and null counts as absent: the node would take its default."""
    said = await run(
        nodes,
        tmp_path,
        """
        const outcome = (promise) => promise.then(() => console.log("done"), ({ code }) => console.log(code));
        const putting = (options) => outcome(enqueue(kv, 1, { queue: "bad", ...options }));
        for (const delay of [Infinity, -Infinity, NaN, 1.5, "5"]) await putting({ delay });
        for (const each of [Infinity, NaN]) await putting({ backoffSchedule: [1, each] });
        const signal = AbortSignal.timeout(1000); // what is not refused is "done" then
        const listening = (options) => outcome(listenQueue(kv, () => {}, { queue: "bad", signal, ...options }));
        for (const leaseMs of [Infinity, NaN]) await listening({ leaseMs });
        for (const concurrency of [NaN, 0, -1, 1001]) await listening({ concurrency });
        await outcome(enqueue(kv, 1, { queue: "good", delay: null, backoffSchedule: null }));
        """,
    )
    assert said == ["MALFORMED_REQUEST"] * 10 + ["BAD_CONCURRENCY"] * 3 + ["done"]
    async with open_kv(nodes.cluster.addresses, token=TOKEN) as kv:
        assert "bad" not in {status.queue for status in await kv.queues.status()}


async def test_what_means_nothing_is_refused_before_it_does_anything(nodes: Nodes, tmp_path: Path) -> None:
    """Of a handler that cannot be called every message would fail, and become a dead letter."""
    said = await run(
        nodes,
        tmp_path,
        """
        const outcome = (promise) => promise.then(() => console.log("done"), ({ code }) => console.log(code));
        await enqueue(kv, 1, { queue: "kept", backoffSchedule: [] });
        const signal = AbortSignal.timeout(1000);
        for (const handler of [undefined, 5]) await outcome(listenQueue(kv, handler, { queue: "kept", signal }));
        const putting = (options) => outcome(enqueue(kv, 1, { queue: "bad", ...options }));
        for (const keysIfUndelivered of ["a", ["a"], [null]]) await putting({ keysIfUndelivered });
        for (const part of [new Date(), { $bigint: "7" }, null]) await putting({ keysIfUndelivered: [["a", part]] });
        for (const backoffSchedule of ["1", 5]) await putting({ backoffSchedule });
        for (const queue of ["", 5]) await putting({ queue });
        for (const queue of ["", 5]) await outcome(listenQueue(kv, () => {}, { queue, signal }));
        await outcome(enqueue(kv, 1, { queue: null, keysIfUndelivered: null, backoffSchedule: null }));
        """,
    )
    refused = ["MALFORMED_REQUEST"] * 3 + ["BAD_KEY_PART"] * 3 + ["MALFORMED_REQUEST"] * 2 + ["BAD_QUEUE_NAME"] * 4
    assert said == ["BAD_HANDLER"] * 2 + refused + ["done"]
    async with open_kv(nodes.cluster.addresses, token=TOKEN) as kv:
        waiting = {status.queue: status.waiting_count for status in await kv.queues.status()}
        assert waiting["kept"] == 1 and "bad" not in waiting


async def test_where_no_node_can_be_is_refused_at_once(nodes: Nodes, tmp_path: Path) -> None:
    said = await run(
        nodes,
        tmp_path,
        """
        for (const url of ["localhost:4512", "127.0.0.1:4512", "ftp://a", [], undefined]) {
          try {
            connect(url, { token: "a token" });
            console.log("taken");
          } catch ({ code }) {
            console.log(code);
          }
        }
        """,
    )
    assert said == ["ENDPOINT_INVALID"] * 5


async def test_a_lease_of_0_ms_is_the_default_one(nodes: Nodes, tmp_path: Path) -> None:
    """As at a node; as the interval of a timer it would mean a request after the other."""
    said = await run(
        nodes,
        tmp_path,
        """
        let count = 0;
        const real = globalThis.fetch;
        globalThis.fetch = (...all) => {
          count++;
          return real(...all);
        };
        await enqueue(kv, 1, { queue: "lease" });
        const closing = new AbortController();
        await listenQueue(kv, async () => {
          await new Promise((resolve) => setTimeout(resolve, 1000));
          closing.abort();
        }, { queue: "lease", leaseMs: 0, signal: closing.signal });
        console.log(count);
        """,
    )
    assert int(said[0]) < 10  # an enqueue, a listen and an ack, if nothing is sent again


async def test_a_listener_that_waits_for_its_handlers_is_sent_nothing_more(nodes: Nodes, tmp_path: Path) -> None:
    """It would give back what comes, and get it again: so often that its schedule were used up."""
    said = await run(
        nodes,
        tmp_path,
        """
        const closing = new AbortController();
        const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
        let started;
        const starts = new Promise((resolve) => started = resolve);
        await enqueue(kv, "long", { queue: "leaving" });
        const listening = listenQueue(kv, async (value) => {
          console.log(value);
          started();
          await sleep(2000);
        }, { queue: "leaving", concurrency: 50, signal: closing.signal });
        await starts;
        closing.abort();
        await sleep(500);
        await enqueue(kv, "later", { queue: "leaving", backoffSchedule: [] });
        await listening;
        """,
    )
    assert said == ["long"]
    async with open_kv(nodes.cluster.addresses, token=TOKEN) as kv:
        (status,) = await kv.queues.status("leaving")
        assert (status.waiting_count, status.delivered_total, status.acknowledged_total) == (1, 1, 1)


async def test_an_extension_fails_when_its_listener_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    """One that waits for its answer then, and one that is asked for afterwards."""
    async with (
        Admin(nodes.cluster.addresses, token=TOKEN) as admin,
        open_kv(nodes.cluster.addresses, token=TOKEN) as kv,
    ):
        made = await admin.create_token()
        await kv.enqueue(1, queue="refused")

        async def revoke() -> None:
            while not (await kv.queues.status("refused"))[0].in_flight_count:
                await asyncio.sleep(0.1)
            await admin.revoke_token(made.token.token_id)

        revoking = asyncio.ensure_future(revoke())
        said = await run(
            nodes,
            tmp_path,
            """
            const real = globalThis.fetch;
            globalThis.fetch = (url, more) => String(url).endsWith("/settle") ? new Promise(() => {}) : real(url, more);
            const outcome = (promise) => {
              const hangs = new Promise((resolve) => setTimeout(resolve, 8000, "hangs"));
              return Promise.race([promise.then(() => "extended", ({ code }) => code), hangs]);
            };
            let resolve;
            const handled = new Promise((found) => resolve = found);
            const limited = connect(kv.urls, { token: "SECRET" });
            const ended = listenQueue(limited, async (_value, message) => {
              const waiting = outcome(message.extend());
              await ended.catch(() => {});
              resolve([await waiting, await outcome(message.extend())]);
            }, { queue: "refused" });
            console.log(await ended.catch(({ code }) => code));
            console.log(...await handled);
            process.exit(0);
            """.replace("SECRET", made.secret),
        )
        await revoking
    assert said == ["ACCESS_TOKEN_INVALID", "ACCESS_TOKEN_INVALID ACCESS_TOKEN_INVALID"]


async def test_a_handler_that_ends_while_its_lease_is_extended_is_acknowledged(nodes: Nodes, tmp_path: Path) -> None:
    """The answer to the extension says nothing of the ack, which waits for the next request."""
    said = await run(
        nodes,
        tmp_path,
        """
        const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
        const real = globalThis.fetch;
        let extended;
        const extension = new Promise((resolve) => extended = resolve);
        globalThis.fetch = async (url, more) => {
          const answer = await real(url, more);
          if (!String(url).endsWith("/settle") || !JSON.parse(more.body).extend.length) return answer;
          extended();
          await sleep(300);
          return answer;
        };
        for (const value of ["done", "failed"]) await enqueue(kv, value, { queue: "extended", backoffSchedule: [] });
        const closing = new AbortController();
        await listenQueue(kv, async (value, message) => {
          await extension;
          console.log(value, message.attempts);
          setTimeout(() => closing.abort(), 1000);
          if (value === "failed") throw new Error("as it should");
        }, { queue: "extended", leaseMs: 3000, signal: closing.signal });
        """,
    )
    assert sorted(said) == ["done 1", "failed 1"]
    async with open_kv(nodes.cluster.addresses, token=TOKEN) as kv:
        (status,) = await kv.queues.status("extended")
        assert (status.in_flight_count, status.acknowledged_total, status.dead_count) == (0, 1, 1)


async def test_an_extension_that_is_asked_for_during_another_one_is_answered(nodes: Nodes, tmp_path: Path) -> None:
    """By a request of its own: the one under way says nothing of the time since."""
    said = await run(
        nodes,
        tmp_path,
        """
        const real = globalThis.fetch;
        let extensions = 0;
        globalThis.fetch = async (url, more) => {
          const answer = await real(url, more);
          if (String(url).endsWith("/settle") && JSON.parse(more.body).extend.length) extensions++;
          return answer;
        };
        await enqueue(kv, 1, { queue: "twice" });
        const closing = new AbortController();
        await listenQueue(kv, async (_value, message) => {
          const first = message.extend();
          await new Promise((resolve) => setTimeout(resolve, 0)); // it is sent
          const both = Promise.all([first, message.extend()]).then(() => "extended");
          const hangs = new Promise((resolve) => setTimeout(resolve, 2000, "hangs"));
          console.log(await Promise.race([both, hangs]), extensions);
          closing.abort();
        }, { queue: "twice", signal: closing.signal });
        """,
    )
    assert said == ["extended 2"]


async def test_a_token_that_no_header_can_carry_is_refused_at_once(nodes: Nodes, tmp_path: Path) -> None:
    """To fetch it is as though no node answered, and a listener would try for ever."""
    said = await run(
        nodes,
        tmp_path,
        """
        const outcome = (promise) => promise.then(() => console.log("done"), ({ code }) => console.log(code));
        const signal = AbortSignal.timeout(1000);
        for (const token of ["\\ufeffabc", "a\\nb"]) {
          await outcome(enqueue(kv, 1, { queue: "bad", token, signal }));
          await outcome(listenQueue(kv, () => {}, { queue: "bad", token, signal }));
        }
        """,
    )
    assert said == ["ACCESS_TOKEN_INVALID"] * 4
