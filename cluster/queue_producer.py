"""The producer of the queue drill: messages at a rate, each outcome written down."""

from __future__ import annotations

import asyncio
import random

from cluster.queue_consumer import content_of
from cluster.queue_history import Enqueued, Journal
from kvnode.base.errors import KvError
from kvnode.client import Kv

SCHEDULE_MS = (50, 100, 200)  # the first 0 to 3 of these
DELAYED_SHARE = 0.05
MAX_DELAY_MS = 3_000
UNDELIVERED = "undelivered"
_TIMEOUT_MS = 60_000
_REFUSED_PAUSE_S = 0.1


def schedule_of(number: int) -> list[int]:
    """The back-off schedule of message `number`."""
    return list(SCHEDULE_MS[: number % (len(SCHEDULE_MS) + 1)])


class Producer:
    """Enqueues messages 0 to count - 1.

    Args:
        kv: where to.
        journal: what is written.
        queue: which.
        rate: messages a second, at most.
        callers: how many are under way at a time.
    """

    def __init__(self, kv: Kv, journal: Journal, queue: str, *, rate: float, callers: int) -> None:
        self._kv = kv
        self._journal = journal
        self._queue = queue
        self._rate = rate
        self._callers = callers
        self._next = 0
        self.done_count = 0

    async def run(self, count: int) -> None:
        """Until each has an outcome."""
        begun_at = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._call(count, begun_at) for _ in range(self._callers)))

    async def _call(self, count: int, begun_at: float) -> None:
        loop = asyncio.get_running_loop()
        while self._next < count:
            number = self._next
            self._next += 1
            await asyncio.sleep(max(0.0, begun_at + number / self._rate - loop.time()))
            await self._send(number)
            self.done_count += 1

    async def _send(self, number: int) -> None:
        """Once, and again as long as it is refused: then it is certainly not there."""
        schedule = schedule_of(number)
        delay_ms = random.randrange(MAX_DELAY_MS) if random.random() < DELAYED_SHARE else 0
        while True:
            try:
                await self._kv.enqueue(
                    content_of(number), queue=self._queue, delay=delay_ms, backoff_schedule=schedule,
                    keys_if_undelivered=[(UNDELIVERED, number)], timeout_ms=_TIMEOUT_MS,
                )  # fmt: skip
            except KvError as error:
                outcome = "refused" if error.not_applied else "unknown"
                self._journal.write(Enqueued(number, len(schedule), outcome))  # type: ignore[arg-type]
                if not error.not_applied:
                    return
                await asyncio.sleep(_REFUSED_PAUSE_S)
            else:
                self._journal.write(Enqueued(number, len(schedule), "acknowledged"))
                return
