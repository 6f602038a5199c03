"""Queues that are pushed by three real nodes: a receiver that fails at random, a dead leader, and who is not called."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import re
import ssl
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from cluster.launcher import LocalCluster
from kvnode.client.kv import open_kv
from kvnode.codec.values import decode_value
from kvnode.proto.kv.v1 import kv_pb2
from tests.compat.nodes import make_certificate
from tests.integration.conftest import MakeCluster
from tests.unit.node.push.receiver import OK, Received, receiver

MESSAGES_COUNT = 300
FAILING_SHARE = 0.2
SCHEDULE = [100] * 10
REFUSED = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"


def value_of(request: Received) -> object:
    encoding = f"VALUE_ENCODING_{request.headers['kvnode-encoding'].upper()}"
    return decode_value(request.body, kv_pb2.ValueEncoding.Value(encoding))


def is_signed(request: Received, secret: str) -> bool:
    """As a receiver checks it, by the page of the documentation alone."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(request.headers["webhook-timestamp"])) < 60
    return fresh and hmac.compare_digest(wanted, request.headers["webhook-signature"])


async def drained(kv, queue: str, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            (status,) = await kv.queues.status(queue)
            if not status.waiting_count and not status.in_flight_count:
                return
            await asyncio.sleep(0.1)


def pushed(cluster: LocalCluster) -> Counter[str]:
    """By result, of all nodes that run."""
    found: Counter[str] = Counter()
    for node in cluster.nodes.values():
        for line in node.http("/metrics")[1].splitlines():
            if line.startswith('kvnode_queue_pushed_total{database="default",queue="hooks"'):
                found[re.findall(r'result="(\w+)"', line)[0]] += int(float(line.rpartition(" ")[2]))
    return found


async def test_a_failing_receiver_and_a_dead_leader_lose_no_message(make_cluster: MakeCluster, rounds: int) -> None:
    cluster = make_cluster(environment={"KVNODE_PUSH_ALLOW": "127.0.0.1"})
    chance = random.Random(7)
    total = MESSAGES_COUNT * rounds
    taken: Counter[int] = Counter()

    def answer(request: Received) -> bytes:
        value = value_of(request)
        if not isinstance(value, int) or chance.random() < FAILING_SHARE:
            return REFUSED
        taken[int(value)] += 1
        return OK

    async with open_kv(cluster.addresses) as kv, receiver() as to:
        to.answer = answer
        secret = await kv.queues.push("hooks", to.url, concurrency=8, timeout_ms=5_000)
        await kv.enqueue("never", queue="hooks", backoff_schedule=[50], keys_if_undelivered=[("never",)])
        producing = asyncio.ensure_future(produce(kv, total))
        for at in range(rounds):
            async with asyncio.timeout(60):
                while len(taken) < MESSAGES_COUNT * (at + 0.4):
                    await asyncio.sleep(0.02)
            leader = await asyncio.to_thread(cluster.wait_leader)
            before = pushed(cluster)
            await asyncio.to_thread(cluster.kill, leader)
            await asyncio.to_thread(cluster.restart, leader)
        await producing
        await drained(kv, "hooks")
        (status,) = await kv.queues.status("hooks")
        assert set(taken) == set(range(total))
        assert all(is_signed(request, secret) for request in to.requests)
        assert (status.enqueued_total, status.acknowledged_total, status.dead_total) == (total + 1, total, 1)
        assert (await kv.get(("never",))).value == "never"
        nevers = [request for request in to.requests if value_of(request) == "never"]
        assert [request.headers["kvnode-attempt"] for request in nevers][:2] == ["1", "2"]
        assert len({request.headers["webhook-id"] for request in nevers}) == 1
        # Both leaders pushed, and said so.
        assert before["ok"] > 0 and before["failed"] > 0
        after = await asyncio.to_thread(pushed, cluster)
        assert after["ok"] > 0
        print(f"{len(to.requests)} requests for {total + 1} messages, {sum(taken.values()) - total} taken twice")
        # Pushed no longer, its messages are any consumer's.
        await kv.queues.push_off("hooks")
        await kv.enqueue("by hand", queue="hooks")
        async with kv.messages("hooks") as messages:
            message = await asyncio.wait_for(anext(messages), 10)
            assert message.value == "by hand"
            await message.ack()


async def produce(kv, count: int) -> None:
    for number in range(count):
        await kv.enqueue(number, queue="hooks", backoff_schedule=SCHEDULE)
        await asyncio.sleep(0.005)


async def test_https_must_show_a_certificate_for_its_name(make_cluster: MakeCluster, tmp_path: Path) -> None:
    authority, certificate, key = make_certificate(tmp_path)
    environment = {"KVNODE_PUSH_ALLOW": "127.0.0.0/8,::1", "SSL_CERT_FILE": str(authority)}
    cluster = make_cluster(environment=environment)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with open_kv(cluster.addresses) as kv, receiver(tls) as to:
        await kv.queues.push("named", f"https://localhost:{to.port}/")
        await kv.enqueue({"to": "ada"}, queue="named")
        await drained(kv, "named")
        assert [value_of(request) for request in to.requests] == [{"to": "ada"}]
        await kv.queues.push("other", f"https://127.0.0.2:{to.port}/")  # it is for 127.0.0.1 and localhost
        await kv.enqueue(1, queue="other", backoff_schedule=[])
        await drained(kv, "other")
        (status,) = await kv.queues.status("other")
        assert (status.dead_count, len(to.requests)) == (1, 1)


async def test_an_address_of_the_inside_is_not_called_unless_it_is_allowed(cluster: LocalCluster) -> None:
    async with open_kv(cluster.addresses) as kv, receiver() as to:
        shown = await run_cli(cluster, "push", "mail", "--url", to.url)
        assert shown["secret"].startswith("whsec_")
        await kv.enqueue("waits", queue="mail", backoff_schedule=[])
        async with asyncio.timeout(20):
            while (shown := await run_cli(cluster, "push", "mail"))["error"] is None:
                await asyncio.sleep(0.1)
        assert "push_allow" in shown["error"] and shown["url"] == to.url
        (status,) = await kv.queues.status("mail")
        assert (status.waiting_count, status.delivered_total, status.dead_count) == (1, 0, 0)
        assert to.requests == []
        assert await run_cli(cluster, "push", "mail", "--off") == {"off": 1}
        assert (await run_cli(cluster, "stats", "mail"))["push"] is None


async def test_bytes_are_the_body_as_they_are_and_a_receiver_that_is_gone_is_named(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(environment={"KVNODE_PUSH_ALLOW": "127.0.0.1"})
    async with open_kv(cluster.addresses) as kv:
        async with receiver() as to:
            await kv.queues.push("raw", to.url)
            await kv.enqueue(b'{"to": "ada"}', queue="raw")
            await drained(kv, "raw")
            (request,) = to.requests
        assert (request.headers["kvnode-encoding"], request.body) == ("bytes", b'{"to": "ada"}')
        assert request.headers["content-type"] == "application/octet-stream"
        await kv.enqueue(1, queue="raw", backoff_schedule=[])
        await drained(kv, "raw")
        async with asyncio.timeout(20):
            while not (await kv.queues.status("raw"))[0].push_error:
                await asyncio.sleep(0.1)
        assert "127.0.0.1" in str((await run_cli(cluster, "push", "raw"))["error"])


async def run_cli(cluster: LocalCluster, *arguments: str) -> dict[str, object]:
    """`kvnode queue ...` as JSON."""
    command = [sys.executable, "-m", "kvnode", "queue", *arguments, "-e", cluster.addresses[0], "-o", "json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found
