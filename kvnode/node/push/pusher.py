"""One queue that is pushed: an ordinary consumer (node/queue/consumer.py) whose handler is a request.

The answer decides: 2xx acknowledges; any other one, or none within the queue's timeout, is a failure, so that the
message comes again by its schedule, and becomes a dead letter behind it. 429 and 503 may name the time themselves
(Retry-After). While a request runs its lease is extended.

A host that may not be called, or has no address, is nobody's failure: nothing is claimed, the reason is noted in the
queue's row for people to see, and after a pause, longer each time, it is tried again. While every request fails, the
row says why the last one did.

It stops in two steps. `stop`: no message is taken any more, and requests under way come to their end, which the node
can settle though it leads no longer. Cancelled, they are broken off and their messages given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.node.push.addresses import NotCalled
from kvnode.node.push.client import Answer, Failed, PushClient
from kvnode.node.push.outcomes import Outcomes
from kvnode.node.push.request import Signer
from kvnode.node.push.stats import Pushed
from kvnode.node.queue.consumer import Consumer
from kvnode.node.queue.queues import Queues
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

CONSUMER_NAME = "push"


class Pusher:
    """Pushes one queue until it is stopped.

    Args:
        queues: of the node.
        database: its number.
        queue: its name.
        signer: makes requests.
        client: sends them.
        concurrency: requests at one time.
        room: holds as many places as all pushers of the node have together.
        note: told why nothing is pushed or taken, or "" when it is.
        pushed: where it counts.
        now_ms: the node's clock.
    """

    def __init__(
        self,
        queues: Queues,
        database: int,
        queue: str,
        signer: Signer,
        client: PushClient,
        concurrency: int,
        room: asyncio.Semaphore,
        note: Callable[[str], None],
        pushed: Pushed,
        now_ms: Callable[[], int],
    ) -> None:
        self._queues = queues
        self._database = database
        self._queue = queue
        self._signer = signer
        self._client = client
        self._concurrency = concurrency
        self._room = room
        self._note = note
        self._outcomes = Outcomes(self._note_reason)
        self._pushed = pushed
        self._now_ms = now_ms
        self._consumer: Consumer | None = None
        self._running: dict[asyncio.Task[None], bytes] = {}
        self._changed = asyncio.Event()  # a request has ended, or something is to be stopped
        self._trouble: NotCalled | None = None
        self._failed = False
        self._stopping = False

    def stop(self) -> None:
        """Take no more messages; `run` returns when the requests under way have ended."""
        self._stopping = True
        self._outcomes.forget()  # whoever pushes the queue now says how that goes
        self._leave()
        self._changed.set()

    async def run(self) -> None:
        """Push. Cancelled: requests under way are broken off, and their messages given back."""
        pause_ms = limits.MIN_PUSH_PAUSE_MS
        extending = asyncio.ensure_future(self._extend())
        try:
            while not self._stopping and not self._failed:
                await self._look_up()
                if self._trouble is None:
                    pause_ms = limits.MIN_PUSH_PAUSE_MS
                    await self._serve()
                if self._trouble is not None:
                    await self._pause(pause_ms)
                    pause_ms = min(2 * pause_ms, limits.MAX_PUSH_PAUSE_MS)
            await self._ended()
        finally:
            extending.cancel()
            self._outcomes.forget()
            self._leave()
            for task in self._running:
                task.cancel()
            await asyncio.gather(extending, *self._running, return_exceptions=True)
            self._client.close()

    async def _look_up(self) -> None:
        """Whether the host may be called."""
        self._trouble = None
        try:
            await self._client.check()
        except NotCalled as error:
            self._trouble = error
        self._outcomes.forget()  # those of before the look say nothing of what is noted now
        self._note_reason(str(self._trouble or ""))

    def _note_reason(self, reason: str) -> None:
        self._note(reason[: limits.MAX_PUSH_ERROR_CHARACTERS_COUNT])

    async def _pause(self, pause_ms: int) -> None:
        try:
            async with asyncio.timeout(pause_ms / 1_000):
                while not self._stopping:
                    await self._next_change()
        except TimeoutError:
            pass

    async def _serve(self) -> None:
        """Take messages, until that has to end."""
        if self._stopping:
            return
        opening = (self._queue, limits.PUSH_LEASE_MS, CONSUMER_NAME)
        self._consumer = self._queues.listen(self._database, opening, self._deliver, self._refused)
        self._consumer.grant(self._concurrency)
        while not self._stopping and not self._failed and self._trouble is None:
            await self._next_change()
        self._leave()
        await self._ended()

    async def _ended(self) -> None:
        while self._running:
            await self._next_change()

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _leave(self) -> None:
        """No message comes any more; those that requests are under way for stay."""
        if self._consumer is not None:
            self._queues.leave(self._consumer, give_back=False)
            self._consumer = None

    def _refused(self, error: KvError) -> None:
        _log.info("queue '%s' is not pushed: %s", self._queue, error)
        self._failed = True
        self._changed.set()

    def _deliver(self, messages: list[kv_pb2.QueueMessage]) -> None:
        for message in messages:
            task = asyncio.get_running_loop().create_task(self._push(message))
            self._running[task] = message.lease
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a push failed in a way that nobody foresaw; its message comes again", exc_info=error)
        if self._consumer is not None:
            self._consumer.grant(1)

    # One message.

    async def _push(self, message: kv_pb2.QueueMessage) -> None:
        action = kv_pb2.QueueAction(release=kv_pb2.QueueRelease(lease=message.lease))
        try:
            async with self._room:
                if self._stopping or self._trouble is not None:
                    action.release.unseen = True  # it waited for a place
                    return
                action = await self._handed_over(message)
        finally:
            self._settle(message.lease, action)

    async def _handed_over(self, message: kv_pb2.QueueMessage) -> kv_pb2.QueueAction:
        """What is to be done with the message."""
        lease = message.lease
        try:
            answer = await self._client.send(self._signer.request(message, self._now_ms() // 1_000))
        except NotCalled as error:
            self._trouble = error
            return kv_pb2.QueueAction(release=kv_pb2.QueueRelease(lease=lease, unseen=True))
        except Failed as error:
            self._count_failure(message, str(error))
            return kv_pb2.QueueAction(nack=kv_pb2.QueueNack(lease=lease))
        if 200 <= answer.status < 300:
            self._count_success()
            return kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=lease))
        self._count_failure(message, f"the receiver answered with status {answer.status}, which is not 2xx")
        return kv_pb2.QueueAction(nack=_nack(lease, answer))

    def _count_success(self) -> None:
        self._pushed.ok += 1
        if not self._stopping:
            self._outcomes.succeeded()

    def _count_failure(self, message: kv_pb2.QueueMessage, why: str) -> None:
        _log.debug("queue '%s', message %s: %s", message.queue, message.id.hex(), why)
        self._pushed.failed += 1
        if not self._stopping:
            self._outcomes.failed(why)

    def _settle(self, lease: bytes, action: kv_pb2.QueueAction) -> None:
        done = partial(self._settled, lease)
        if self._consumer is not None:
            self._consumer.settle(lease, action, done)
        else:
            self._queues.settler.settle(self._database, action, done)

    def _settled(self, lease: bytes, error: KvError | None) -> None:
        if error is not None:  # it is, or was, delivered again
            _log.debug("queue '%s': what became of lease %s: %s", self._queue, lease.hex(), error)

    async def _extend(self) -> None:
        """Keep the leases of what is under way."""
        while True:
            await asyncio.sleep(limits.PUSH_LEASE_MS / 3_000)
            for lease in self._running.values():
                extend = kv_pb2.QueueExtend(lease=lease, lease_ms=limits.PUSH_LEASE_MS)
                self._queues.settler.settle(
                    self._database, kv_pb2.QueueAction(extend=extend), partial(self._settled, lease)
                )


def _nack(lease: bytes, answer: Answer) -> kv_pb2.QueueNack:
    nack = kv_pb2.QueueNack(lease=lease)
    if answer.status in (429, 503) and answer.retry_after_ms is not None:
        nack.delay_ms = answer.retry_after_ms
    return nack
