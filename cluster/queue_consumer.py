"""A consumer process of the queue drill, in Python: `python -m cluster.queue_consumer SETTINGS`.

Its handlers fail at random and write down how they ended before they say so to the cluster; what the cluster answers
is written down too. SIGTERM ends it in order; SIGKILL is what the drill is for. queue_consumer.mjs is the same for
Deno and Node.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from cluster.queue_history import Handled, Journal, Settled, Verb
from kvnode.base.errors import KvError
from kvnode.client import open_kv
from kvnode.client.queue import QueueListener, QueueMessage


class Settings(NamedTuple):
    """What a consumer process is told, as JSON.

    Args:
        name: of the process.
        journal: the file that it writes.
        addresses: gRPC ports of the nodes.
        urls: KV Connect ports of the nodes, for the JavaScript module.
        token: an access token.
        queue: what it listens to.
        consumers: how many listen.
        concurrency: handlers of each at a time.
        lease_ms: of a delivery.
        fail_share: of handlers that fail, 0 to 1.
        handler_ms: the longest a handler runs.
    """

    name: str
    journal: str
    addresses: list[str]
    urls: list[str]
    token: str
    queue: str
    consumers: int
    concurrency: int
    lease_ms: int
    fail_share: float
    handler_ms: float


def number_of(value: object) -> int:
    """The number of a message; -1, which nobody enqueues, when its content is not what was enqueued."""
    if not isinstance(value, dict) or value.get("text") != f"message {value.get('number')}":
        return -1
    return int(value["number"])


def content_of(number: int) -> dict[str, object]:
    """What message `number` carries."""
    return {"number": number, "text": f"message {number}"}


def rotated(places: list[str], count: int) -> list[str]:
    """The same places, beginning further on: who prefers which node."""
    count %= len(places)
    return places[count:] + places[:count]


class Consumer:
    """One of the listeners of this process."""

    def __init__(self, settings: Settings, number: int, journal: Journal) -> None:
        self._settings = settings
        self._name = f"{settings.name}/{number}"
        self._addresses = rotated(settings.addresses, number)
        self._journal = journal
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        settings = self._settings
        async with open_kv(self._addresses) as kv:
            listener: QueueListener = kv.messages(
                settings.queue, concurrency=settings.concurrency, lease_ms=settings.lease_ms, consumer=self._name
            )
            async with listener:
                try:
                    async for message in listener:
                        task = asyncio.ensure_future(self._handle(message))
                        self._running.add(task)
                        task.add_done_callback(self._running.discard)
                finally:
                    await asyncio.gather(*self._running)

    async def _handle(self, message: QueueMessage) -> None:
        begun_ms = time.time() * 1000
        await asyncio.sleep(random.uniform(0, self._settings.handler_ms) / 1000)
        failed = random.random() < self._settings.fail_share
        handled = Handled(
            number_of(message.value), message.id, message.lease.hex(), message.attempt, failed, self._name,
            begun_ms, time.time() * 1000,
        )  # fmt: skip
        self._journal.write(handled)
        verb: Verb = "nack" if failed else "ack"
        try:
            await (message.nack() if failed else message.ack())
        except KvError as error:
            self._journal.write(Settled(handled.lease, verb, error.code))
        else:
            self._journal.write(Settled(handled.lease, verb, ""))


async def run(settings: Settings) -> None:
    """Listen until SIGTERM."""
    journal = Journal(Path(settings.journal))
    consumers = [
        asyncio.ensure_future(Consumer(settings, number, journal).run()) for number in range(settings.consumers)
    ]
    stop = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.cancel)
    await asyncio.wait([stop, *consumers], return_when=asyncio.FIRST_COMPLETED)
    for consumer in consumers:
        consumer.cancel()
    for outcome in await asyncio.gather(*consumers, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


if __name__ == "__main__":
    asyncio.run(run(Settings(**json.loads(sys.argv[1]))))
