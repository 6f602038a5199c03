"""One Listen stream: messages down; credit, acks and their like up.

The reader takes in what the client says at once; acks end in the node's settler, where they gather with those of
others. The writer sends whatever has come since the last message: deliveries, what was settled, what failed. While
MAX_LISTENER_UNSENT_BYTES wait to be sent, no more are pulled, so that a client which does not read costs no memory.

How the stream ends says what becomes of the messages it held. The client left, or broke off: they are given back at
once. The node stops: the client goes on at another node and takes its leases along, so nothing is given back.
"""

from __future__ import annotations

import asyncio
from functools import partial

from grpc import aio

from kvnode.api.auth.gate import Permit
from kvnode.api.grpc_handlers import parse
from kvnode.api.ports import ServedNode
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.client.status import error_to_proto
from kvnode.machine.queue.validate import validate_action, validate_pull
from kvnode.node.queue.consumer import Consumer
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

_PING = queue_pb2.ListenResponse(ping=True).SerializeToString()


class Listening:
    """The server side of one Listen stream.

    Args:
        node: has the queues.
        permit: what the client may do, and with which database.
        context: of the call.
        stopping: done when the node is about to stop.
    """

    def __init__(
        self, node: ServedNode, permit: Permit, context: aio.ServicerContext, stopping: asyncio.Future[None]
    ) -> None:
        self._node = node
        self._permit = permit
        self._context = context
        self._stopping = stopping
        self._unsent = queue_pb2.ListenResponse()
        self._unsent_bytes = 0
        self._something = asyncio.Event()
        self._settling_count = 0
        self._settled = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(self) -> None:
        """Serve the stream to its end. Raises KvError for what ends the whole stream."""
        raw = await self._context.read()
        if raw is aio.EOF:
            return
        self._permit.use(len(raw), write=True)
        first = parse(queue_pb2.ListenRequest, raw)
        consumer = self._open(first)
        give_back = True
        try:
            opened = queue_pb2.ListenOpened(node=self._node.name, lease_ms=consumer.lease_ms)
            await self._context.write(queue_pb2.ListenResponse(opened=opened).SerializeToString())
            self._take(consumer, first)
            if await self._run(consumer):
                give_back = False
                raise Unavailable("the node is stopping; listen at another one", code="NODE_STOPPING")
        finally:
            self._node.queues.leave(consumer, give_back=give_back)
            if not self._failure.cancel() and not self._failure.cancelled():
                self._failure.exception()  # seen, if the stream ended for another reason first

    def end(self, error: KvError) -> None:
        """No message will come any more, and this is why."""
        if not self._failure.done():
            self._failure.set_exception(error)

    def _open(self, first: queue_pb2.ListenRequest) -> Consumer:
        if not first.HasField("open"):
            raise InvalidRequest("LISTEN_NOT_OPENED", "the first message of a Listen stream must carry `open`")
        opening = first.open
        validate_pull(
            kv_pb2.QueuePull(queue=opening.queue, max_count=1, consumer=opening.consumer, lease_ms=opening.lease_ms)
        )
        if len(opening.held) > limits.MAX_CONSUMER_IN_FLIGHT_COUNT:
            raise InvalidRequest(
                "TOO_MUCH_CREDIT", f"A consumer holds at most {limits.MAX_CONSUMER_IN_FLIGHT_COUNT} messages."
            )
        consumer = self._node.queues.listen(
            self._permit.database,
            (opening.queue, opening.lease_ms, opening.consumer),
            self._deliver,
            self.end,
            lambda: self._unsent_bytes < limits.MAX_LISTENER_UNSENT_BYTES,
        )
        consumer.hold(opening.held)
        return consumer

    async def _run(self, consumer: Consumer) -> bool:
        """Until one side ends it; whether it was the node's stopping. Raises what went wrong."""
        loop = asyncio.get_running_loop()
        reader = loop.create_task(self._read(consumer))
        writer = loop.create_task(self._write(consumer))
        try:
            ends = {reader, writer, self._stopping, self._failure}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in (reader, writer, self._failure):
                if end.done():
                    end.result()
            if self._stopping.done():
                return True
            await self._drain(writer)
            return False
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _drain(self, writer: asyncio.Task[None]) -> None:
        """The client has said its last: let what it asked for come to its end, and tell it so."""
        while (self._settling_count or self._unsent.ByteSize()) and not writer.done():
            self._settled.clear()
            wait = asyncio.ensure_future(self._settled.wait())
            await asyncio.wait((wait, writer, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            wait.cancel()
            if self._stopping.done():
                return

    async def _read(self, consumer: Consumer) -> None:
        while (raw := await self._context.read()) is not aio.EOF:
            self._permit.use(len(raw), write=True)
            request = parse(queue_pb2.ListenRequest, raw)
            if request.HasField("open"):
                raise InvalidRequest(
                    "LISTEN_OPENED_TWICE", "only the first message of a Listen stream may carry `open`"
                )
            self._take(consumer, request)

    def _take(self, consumer: Consumer, request: queue_pb2.ListenRequest) -> None:
        actions = [(lease, kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=lease))) for lease in request.ack]
        actions += [(nack.lease, kv_pb2.QueueAction(nack=nack)) for nack in request.nack]
        actions += [(lease, kv_pb2.QueueAction(release=kv_pb2.QueueRelease(lease=lease))) for lease in request.release]
        for _, action in actions:
            validate_action(action)
        for lease in request.extend:
            validate_action(kv_pb2.QueueAction(extend=kv_pb2.QueueExtend(lease=lease)))
        self._settling_count += len(actions)
        for lease, action in actions:
            consumer.settle(lease, action, partial(self._ended, lease))
        for lease in request.extend:
            consumer.extend(lease, partial(self._extended, lease))
        consumer.forget(request.settled)
        if request.credit:
            consumer.grant(request.credit)

    def _deliver(self, messages: list[kv_pb2.QueueMessage]) -> None:
        self._unsent.messages.extend(messages)
        self._unsent_bytes += sum(len(message.payload.data) for message in messages)
        self._something.set()

    def _ended(self, lease: bytes, error: KvError | None) -> None:
        self._settling_count -= 1
        if error is None:
            self._unsent.settled.append(lease)
        else:
            self._fail(lease, error)
        self._something.set()
        self._settled.set()

    def _extended(self, lease: bytes, error: KvError | None) -> None:
        if error is not None:
            self._fail(lease, error)
            self._something.set()

    def _fail(self, lease: bytes, error: KvError) -> None:
        self._unsent.failed.add(lease=lease, error=error_to_proto(error, self._node.name))

    async def _write(self, consumer: Consumer) -> None:
        while True:
            try:
                async with asyncio.timeout(limits.LISTEN_PING_INTERVAL_MS / 1_000):
                    await self._something.wait()
            except TimeoutError:
                await self._context.write(_PING)
                continue
            self._something.clear()
            response, self._unsent = self._unsent, queue_pb2.ListenResponse()
            size_bytes = self._unsent_bytes
            await self._context.write(response.SerializeToString())
            self._unsent_bytes -= size_bytes
            consumer.resume()
            self._settled.set()
