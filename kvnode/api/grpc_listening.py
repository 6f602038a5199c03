"""Queue.Listen: a listener whose client speaks gRPC, both ways at once."""

from __future__ import annotations

import asyncio
from typing import Protocol

from grpc import aio

from kvnode.api.auth.gate import Gate, Permit
from kvnode.api.grpc_handlers import parse
from kvnode.api.queue_http.ports import ListenStream
from kvnode.base.errors import InvalidRequest, RateLimited
from kvnode.proto.kv.v1 import queue_pb2


class Listen(Protocol):
    """QueueBackend.listen."""

    async def __call__(
        self, permit: Permit, gate: Gate, opening: queue_pb2.ListenOpen, stopping: asyncio.Future[None]
    ) -> ListenStream:
        """A listener. Raises KvError."""


async def serve_listen(
    listen: Listen, gate: Gate, context: aio.ServicerContext, stopping: asyncio.Future[None]
) -> None:
    """Serve one stream to its end.

    Args:
        listen: makes the listener.
        gate: judges the caller.
        context: of the call.
        stopping: done when the node is about to stop.

    Raises:
        KvError: what ends the whole stream.
    """
    permit = await gate.permit(context.invocation_metadata())
    raw = await context.read()
    if raw is aio.EOF:
        return
    first = _request(raw, permit)
    if not first.HasField("open"):
        raise InvalidRequest("LISTEN_NOT_OPENED", "the first message of a Listen stream must carry `open`")
    listening = await listen(permit, gate, first.open, stopping)
    try:
        # Of their own: gRPC never ends a call whose first write, which would carry them, is cancelled on its way.
        await context.send_initial_metadata(())
        listening.take(first)
        await _run(listening, context, permit)
    except RateLimited:
        listening.keep()
        raise
    finally:
        listening.close()


async def _run(listening: ListenStream, context: aio.ServicerContext, permit: Permit) -> None:
    """Until one side ends it. Raises what went wrong."""
    loop = asyncio.get_running_loop()
    reader = loop.create_task(_read(listening, context, permit))
    writer = loop.create_task(_write(listening, context))
    try:
        await asyncio.wait({reader, writer, listening.ended}, return_when=asyncio.FIRST_COMPLETED)
        if reader.done() and reader.exception() is None:
            await asyncio.wait({writer, listening.ended}, return_when=asyncio.FIRST_COMPLETED)
        for end in (reader, writer, listening.ended):
            if end.done():
                end.result()
    finally:
        for task in (reader, writer):
            task.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)


async def _read(listening: ListenStream, context: aio.ServicerContext, permit: Permit) -> None:
    while (raw := await context.read()) is not aio.EOF:
        request = _request(raw, permit)
        if request.HasField("open"):
            raise InvalidRequest("LISTEN_OPENED_TWICE", "only the first message of a Listen stream may carry `open`")
        listening.take(request)
    listening.finish()


async def _write(listening: ListenStream, context: aio.ServicerContext) -> None:
    async for response in listening.responses():
        await context.write(response.SerializeToString())


def _request(raw: bytes, permit: Permit) -> queue_pb2.ListenRequest:
    permit.use(len(raw), write=True)
    return parse(queue_pb2.ListenRequest, raw)
