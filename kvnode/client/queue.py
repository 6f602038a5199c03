"""Listening to a queue: messages under leases, over a stream that is opened again whenever it breaks.

Theory of operation. A listener lets the node send as many messages as it has free places (credit). Each message is
*held* until it is acked, nacked or released; a place becomes free at that moment, before the answer has come. While it
is held its lease is extended, a third of the lease before it would end at the latest. An ack that the node has not
confirmed is *settling*; when the stream breaks, the next one, at whichever node answers, begins with the leases that
are held and with everything that is settling. So a consumer survives the loss of its node with its handlers running.

When a lease is lost all the same (this process was frozen, or cut off, for longer than a lease), the message says so:
`lost` is set, and its ack raises LEASE_LOST. It is, or was, delivered again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from random import Random
from types import TracebackType
from typing import Literal

import grpc

from kvnode.base import limits
from kvnode.base.errors import KvError, OutcomeUnknown
from kvnode.client.endpoints import Endpoints
from kvnode.client.listen_stream import listen_until_refused
from kvnode.client.numbers import parse_concurrency, parse_delay_ms, parse_lease_ms
from kvnode.client.selection import CallMetadata
from kvnode.client.status import error_from_proto
from kvnode.client.texts import consumer_name, listened_queue
from kvnode.codec.values import decode_value
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

_log = logging.getLogger(__name__)

_LEASE_LOST = "LEASE_LOST"
_Verb = Literal["ack", "nack", "release", "unseen"]  # unseen: a release of what nobody was given


class QueueMessage:
    """A message under a lease.

    Attributes:
        id: 24 hexadecimal digits, the same at every delivery.
        queue: the queue's name.
        attempt: 1 for the first delivery, 2 for the next.
        enqueued_at_ms: when it was enqueued, milliseconds since 1970.
        cron: the name of the cron that sent it; None = none did.
        scheduled_at_ms: the tick for which that did, or None; at a late firing it is earlier than enqueued_at_ms.
        lease: of this delivery.
        lost: set when the lease was lost while it was held.
    """

    __slots__ = (
        "_listener",
        "attempt",
        "cron",
        "enqueued_at_ms",
        "id",
        "lease",
        "lost",
        "queue",
        "raw",
        "scheduled_at_ms",
    )

    def __init__(self, message: kv_pb2.QueueMessage, listener: QueueListener) -> None:
        self._listener = listener
        self.id = message.id.hex()
        self.queue = message.queue
        self.raw = (message.payload.data, int(message.payload.encoding))
        self.attempt = message.attempt
        self.enqueued_at_ms = message.enqueued_at_ms
        self.cron: str | None = message.cron or None
        self.scheduled_at_ms: int | None = message.scheduled_at_ms or None
        self.lease = message.lease
        self.lost = asyncio.Event()

    @property
    def value(self) -> object:
        """What was enqueued. Raises KvError: VALUE_NOT_READABLE."""
        return decode_value(*self.raw)

    async def ack(self) -> None:
        """It is handled: remove it. Returns when that is committed.

        Raises:
            KvError: LEASE_LOST: it is, or was, delivered again. Or why the cluster has refused to serve the listener:
                nothing is confirmed any more, and the message is delivered again when its lease ends.
            OutcomeUnknown: the listener was closed before this was confirmed.
        """
        await self._listener.settle(self, "ack")

    async def nack(self, *, delay: float | None = None) -> None:
        """Its handling failed: deliver it again, or give it up if this was the last attempt.

        Args:
            delay: milliseconds until then, 30 days at most, rounded; None = as the schedule has it.

        Raises:
            InvalidRequest: BAD_DEADLINE: the delay is none; the message is held as before.
            KvError: as for ack.
        """
        await self._listener.settle(self, "nack", None if delay is None else parse_delay_ms(delay))

    async def release(self) -> None:
        """Give it back unhandled: it is due again at once, and no attempt is used up. Raises KvError, as ack."""
        await self._listener.settle(self, "release")

    def acknowledged(self) -> None:
        """A transaction of the caller's own has acknowledged it (AtomicOperation.ack does this by itself)."""
        self._listener.settled_elsewhere(self)

    def __repr__(self) -> str:
        return f"QueueMessage(id={self.id!r}, queue={self.queue!r}, attempt={self.attempt})"


class _Settling:
    """What was decided about a message and is not confirmed."""

    __slots__ = ("delay", "future", "verb")

    def __init__(self, verb: _Verb, delay: int | None) -> None:
        self.verb = verb
        self.delay = delay
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add_to(self, request: queue_pb2.ListenRequest, lease: bytes) -> None:
        if self.verb != "nack":
            getattr(request, self.verb).append(lease)
            return
        nack = request.nack.add(lease=lease)
        if self.delay is not None:
            nack.delay_ms = self.delay


class QueueListener(AsyncIterator[QueueMessage]):
    """Messages of one queue, each to be acked, nacked or released: `async with kv.messages() as messages`.

    Args:
        addresses: host:port of nodes.
        queue: its name; empty = the default one.
        concurrency: how many messages may be held at a time.
        lease_ms: how long a message stays with a consumer that is no longer heard of; 0 = 10 s.
        consumer: for people to read.
        credentials, metadata, fail_fast, random: as for the client.

    Raises:
        InvalidRequest: BAD_CONCURRENCY, BAD_LEASE_TIME, BAD_QUEUE_NAME, BAD_TEXT, CONSUMER_NAME_TOO_LONG.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        queue: str = "",
        concurrency: int = 10,
        lease_ms: int = 0,
        consumer: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        fail_fast: bool = False,
        random: Random | None = None,
    ) -> None:
        # All of it here, where the mistake is: the node would say so only when the first message is asked for.
        self.concurrency = parse_concurrency(concurrency)
        lease_ms = parse_lease_ms(lease_ms)
        self._open = queue_pb2.ListenOpen(
            queue=listened_queue(queue), lease_ms=lease_ms, consumer=consumer_name(consumer)
        )
        self._lease_s = (lease_ms or limits.DEFAULT_QUEUE_LEASE_MS) / 1000
        self._credentials = credentials
        self._metadata = metadata
        self._endpoints = Endpoints(addresses, random or Random(), fail_fast=fail_fast)
        self._held: dict[bytes, QueueMessage] = {}
        self._settling: dict[bytes, _Settling] = {}
        self._arrived: asyncio.Queue[QueueMessage | None] = asyncio.Queue()  # None: no more will come
        self._out = queue_pb2.ListenRequest()
        self._something = asyncio.Event()
        self._quiet = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: KvError | None = None
        self._closing = False

    async def __aenter__(self) -> QueueListener:
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> QueueMessage:
        """The next message; no more when the listener is closed.

        Raises:
            KvError: the cluster refuses to serve this listener.
        """
        if self._closing:
            raise StopAsyncIteration
        self._start()
        while (arrived := await self._arrived.get()) is not None:
            if arrived.lease in self._held and self._failure is None:
                return arrived  # it was neither lost nor given back meanwhile, and can be confirmed
        self._arrived.put_nowait(None)  # for whoever else waits, or asks again
        if self._failure is None or self._closing:
            raise StopAsyncIteration
        raise self._failure

    @property
    def held_count(self) -> int:
        """Messages that were delivered and are neither acked, nacked nor released."""
        return len(self._held)

    def take_no_more(self) -> None:
        """Whoever iterates, in this task or another, gets no more. What he was not given yet, and what still comes, is
        given back as never delivered; what he was given is held as before, and its ack confirmed."""
        self._closing = True
        self._out.leaving = True  # or the node would send here again what is given back
        self._something.set()
        while not self._arrived.empty():
            message = self._arrived.get_nowait()
            if message is not None and message.lease in self._held:
                self._settle(message.lease, _quiet("unseen"))
        self._arrived.put_nowait(None)

    async def aclose(self) -> None:
        """Stop: what is held is given back, what is being acked is waited for, a few seconds at most.

        Whoever iterates, in this task or another, gets no more.
        """
        self.take_no_more()
        if self._task is None:
            return
        for lease in list(self._held):
            self._settle(lease, _quiet("release"))
        try:
            async with asyncio.timeout(limits.LISTENER_CLOSE_TIMEOUT_MS / 1000):
                await self._all_settled(self._task)
        except TimeoutError:
            pass
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._fail_settling(OutcomeUnknown("the listener was closed before this was confirmed"))

    async def _all_settled(self, task: asyncio.Task[None]) -> None:
        """Wait until everything is confirmed, or nothing will be because the stream is over for good."""
        while self._settling and not task.done():
            self._quiet.clear()
            await self._quiet.wait()

    async def settle(self, message: QueueMessage, verb: _Verb, delay: int | None = None) -> None:
        """See QueueMessage.ack, nack and release."""
        if message.lease not in self._held:
            raise KvError(
                _LEASE_LOST, "This delivery is over: it was acked, nacked or released, or its lease was lost."
            )
        if self._failure is not None:
            raise self._failure  # no stream will confirm anything
        settling = _Settling(verb, delay)
        self._settle(message.lease, settling)
        await asyncio.shield(settling.future)

    def settle_soon(self, message: QueueMessage, verb: _Verb, delay: int | None = None) -> None:
        """As settle; nobody waits for the outcome."""
        if message.lease in self._held:
            settling = _Settling(verb, delay)
            settling.future.add_done_callback(_note_failure)
            self._settle(message.lease, settling)

    def settled_elsewhere(self, message: QueueMessage) -> None:
        """See QueueMessage.acknowledged."""
        if self._held.pop(message.lease, None) is not None:
            self._out.settled.append(message.lease)
            self._grant()

    # What is sent.

    def _settle(self, lease: bytes, settling: _Settling) -> None:
        del self._held[lease]
        self._settling[lease] = settling
        settling.add_to(self._out, lease)
        self._grant()

    def _grant(self) -> None:
        if not self._closing:
            self._out.credit += 1
        self._something.set()

    def first_request(self) -> queue_pb2.ListenRequest:
        """See ListenSide."""
        request = queue_pb2.ListenRequest(open=self._open)
        request.open.held.extend(self._held)
        request.extend.extend(self._held)
        for lease, settling in self._settling.items():
            settling.add_to(request, lease)
        if self._closing:
            request.leaving = True
        else:
            request.credit = self.concurrency - len(self._held)
        self._out = queue_pb2.ListenRequest()
        return request

    async def next_request(self) -> queue_pb2.ListenRequest:
        """See ListenSide."""
        while True:
            await self._something.wait()
            self._something.clear()
            request, self._out = self._out, queue_pb2.ListenRequest()
            if request.ByteSize():
                return request

    async def _extend(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if self._held:
                self._out.extend.extend(self._held)
                self._something.set()

    # What comes.

    async def take_response(self, response: queue_pb2.ListenResponse) -> None:
        """See ListenSide."""
        for message in response.messages:
            made = QueueMessage(message, self)
            if self._closing:
                self._held[message.lease] = made
                self._settle(message.lease, _quiet("unseen"))
                continue
            self._held[message.lease] = made
            self._arrived.put_nowait(made)
        for lease in response.settled:
            self._confirm(lease, None)
        for failed in response.failed:
            self._failed(failed.lease, error_from_proto(failed.error))

    def _confirm(self, lease: bytes, error: KvError | None) -> None:
        settling = self._settling.pop(lease, None)
        if settling is not None and not settling.future.done():
            if error is None:
                settling.future.set_result(None)
            else:
                settling.future.set_exception(error)
        if not self._settling:
            self._quiet.set()

    def _failed(self, lease: bytes, error: KvError) -> None:
        if lease in self._settling:
            self._confirm(lease, error)
        elif error.code == _LEASE_LOST:
            message = self._held.pop(lease, None)
            if message is not None:
                message.lost.set()
                self._grant()

    # The stream.

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        extending = asyncio.get_running_loop().create_task(self._extend())
        try:
            error = await listen_until_refused(self, self._endpoints, self._metadata, self._credentials)
            if error is not None:
                self._give_up(error)
        finally:
            extending.cancel()

    def _give_up(self, error: KvError) -> None:
        self._failure = error
        self._arrived.put_nowait(None)
        self._fail_settling(error)

    def _fail_settling(self, error: KvError) -> None:
        for lease in list(self._settling):
            self._confirm(lease, error)
        self._quiet.set()


def _quiet(verb: _Verb) -> _Settling:
    """Nobody waits for it."""
    settling = _Settling(verb, None)
    settling.future.add_done_callback(_note_failure)
    return settling


def _note_failure(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.info("what became of a message was not confirmed: %s", error)
