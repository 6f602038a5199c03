"""Queues on three real nodes: the leader and a consumer are killed under load, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from cluster.launcher import LocalCluster
from kvnode.base.errors import KvError
from kvnode.client.kv import open_kv
from kvnode.client.queue import QueueMessage

MESSAGES_COUNT = 600

# A consumer as a process of its own: it writes a line for each message before it acknowledges it.
CONSUMER = """
import asyncio, sys
from kvnode.client.kv import open_kv

async def handle(message):
    print(f"{message.value} {message.attempt}", flush=True)
    await asyncio.sleep(0.02)

async def main():
    async with open_kv(sys.argv[1]) as kv:
        await kv.listen_queue(handle, concurrency=8, lease_ms=2_000, consumer=sys.argv[2])

asyncio.run(main())
"""


class ConsumerProcess:
    """One consumer, and the lines that it and its successors wrote."""

    def __init__(self, addresses: list[str], name: str, folder: Path) -> None:
        self.addresses, self.name = addresses, name
        self.path = folder / f"{name}.txt"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.path.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CONSUMER, ",".join(self.addresses), self.name, stdout=out
            )

    async def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    def handled(self) -> list[int]:
        """The messages that it was handed, a line that was cut off by the kill left out."""
        text = self.path.read_bytes()
        lines = text[: text.rfind(b"\n") + 1].decode().splitlines()
        return [int(line.split()[0]) for line in lines]


async def test_kill_of_leader_and_consumer_loses_no_message(cluster: LocalCluster, tmp_path: Path, rounds: int) -> None:
    addresses = cluster.addresses
    consumers = [ConsumerProcess(addresses[at:] + addresses[:at], f"consumer{at}", tmp_path) for at in range(3)]
    async with open_kv(addresses) as kv:
        for consumer in consumers:
            await consumer.start()
        try:
            produce = asyncio.ensure_future(_produce(kv, MESSAGES_COUNT * rounds))
            for _ in range(rounds):
                await asyncio.sleep(2.0)
                leader = await asyncio.to_thread(cluster.wait_leader)
                await asyncio.to_thread(cluster.kill, leader)
                await asyncio.sleep(1.0)
                await consumers[1].kill()
                await consumers[1].start()
                await asyncio.sleep(1.0)
                await asyncio.to_thread(cluster.restart, leader)
            await produce
            await _drained(kv, 60.0)
        finally:
            for consumer in consumers:
                await consumer.kill()
        status = (await kv.queues.status())[0]
    handled = Counter(number for consumer in consumers for number in consumer.handled())
    assert set(handled) == set(range(MESSAGES_COUNT * rounds))
    print(f"{sum(handled.values())} deliveries of {len(handled)} messages")
    assert (status.enqueued_total, status.acknowledged_total) == (MESSAGES_COUNT * rounds, MESSAGES_COUNT * rounds)
    assert (status.dead_total, status.in_flight_count, status.waiting_count) == (0, 0, 0)
    # What was handled twice was so for a reason: each such message was delivered again, and the node counted it.
    assert sum(handled.values()) - len(handled) <= status.redelivered_total


async def _produce(kv, count: int) -> None:
    for number in range(count):
        await kv.enqueue(number)
        await asyncio.sleep(0.005)


async def _drained(kv, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            (status,) = await kv.queues.status()
            if not status.waiting_count and not status.in_flight_count:
                return
            await asyncio.sleep(0.2)


async def test_delays_failures_effects_and_dead_letters(cluster: LocalCluster) -> None:
    async with open_kv(cluster.addresses) as kv:
        loop = asyncio.get_running_loop()
        begun, at = loop.time(), {}
        done = asyncio.Event()

        async def handle(message: QueueMessage) -> None:
            at.setdefault(message.value, []).append((loop.time() - begun) * 1000)
            if message.value == "fails":
                raise ValueError("as it should")
            await kv.atomic().set(("done", str(message.value)), message.attempt).ack(message).commit()
            if message.value == "later":
                done.set()

        listening = asyncio.ensure_future(kv.listen_queue(handle, queue="work"))
        await kv.enqueue("now", queue="work")
        await kv.enqueue("later", queue="work", delay=1_500)
        await kv.enqueue("fails", queue="work", backoff_schedule=[100, 200], keys_if_undelivered=[("undelivered",)])
        await asyncio.wait_for(done.wait(), 10)
        assert [len(at[value]) for value in ("now", "later", "fails")] == [1, 1, 3]
        assert 1_500 <= at["later"][0] < 2_000
        assert (await kv.get(("done", "later"))).value == 1
        assert (await kv.get(("undelivered",))).value == "fails"
        (dead,) = await kv.queues.dead_letters("work")
        assert dead.deliveries_count == 3
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert await kv.queues.requeue("work") == 1
        async with kv.messages("work") as messages:
            again = await asyncio.wait_for(anext(messages), 5)
            assert (again.value, again.attempt) == ("fails", 1)
            await again.ack()
            with pytest.raises(KvError, match="This delivery is over"):
                await again.ack()
        (status,) = await kv.queues.status("work")
        assert (status.waiting_count, status.in_flight_count, status.dead_count) == (0, 0, 0)


async def test_a_consumer_that_stops_gives_back_what_it_holds(cluster: LocalCluster) -> None:
    addresses = cluster.addresses
    async with open_kv(addresses[0]) as one, open_kv(addresses[1]) as other:
        for number in range(10):
            await one.enqueue(number, backoff_schedule=[])
        async with one.messages(concurrency=10) as first:
            held = [await asyncio.wait_for(anext(first), 5) for _ in range(10)]
        begun = asyncio.get_running_loop().time()
        async with other.messages(concurrency=10) as second:
            again = [await asyncio.wait_for(anext(second), 5) for _ in range(10)]
            assert asyncio.get_running_loop().time() - begun < 2.0
            assert sorted(m.value for m in again) == sorted(m.value for m in held) == list(range(10))
            for message in again:
                await message.ack()
