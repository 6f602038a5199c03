"""The stream of a listener, opened again at the next node whenever it breaks: for the client, and for a gateway.

That a token's rate is exceeded is no reason to go elsewhere, and none to give up: the stream is opened again at the
same node, after a pause, and sends at a slower pace from then on (send_pace.py).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import grpc
import grpc.aio

from kvnode.base import limits
from kvnode.base.clock import SystemClock
from kvnode.base.errors import KvError, RateLimited, Unavailable
from kvnode.client import rpc
from kvnode.client.channel import dial
from kvnode.client.endpoints import Endpoints
from kvnode.client.selection import CallMetadata
from kvnode.client.send_pace import SendPace
from kvnode.client.status import error_from_rpc, is_retryable
from kvnode.proto.kv.v1 import queue_pb2

_log = logging.getLogger(__name__)


class ListenSide(Protocol):
    """Who listens."""

    def first_request(self) -> queue_pb2.ListenRequest:
        """What a new stream begins with: it makes up for whatever the old one took along."""

    async def next_request(self) -> queue_pb2.ListenRequest | None:
        """What is to be said next, once there is something; None = nothing more, and the stream ends when the node
        has answered all that was said."""

    async def take_response(self, response: queue_pb2.ListenResponse) -> None:
        """What comes; the next is read when this returns."""


async def listen_until_refused(
    side: ListenSide, endpoints: Endpoints, metadata: CallMetadata, credentials: grpc.ChannelCredentials | None
) -> KvError | None:
    """Listen at one node after the other, until the cluster refuses to serve this listener: then why.

    None: the listener itself had nothing more to say.
    """
    pace = SendPace(SystemClock())
    while True:
        address = endpoints.current
        try:
            await _listen(side, pace, endpoints, metadata, credentials)
            return None
        except RateLimited as error:
            pause_ms = pace.refused(error)
            _log.info("a queue's stream at %s pauses for %.0f ms: %s", address, pause_ms, error.message)
            await asyncio.sleep(pause_ms / 1000)
        except KvError as error:
            error.endpoint = error.endpoint or address
            pause_ms = endpoints.failed(error)
            if not is_retryable(error) or endpoints.hopeless() is not None:
                return error
            _log.debug("a queue's stream ended and is opened again: %s", error)
            await asyncio.sleep(pause_ms / 1000)


async def _listen(
    side: ListenSide,
    pace: SendPace,
    endpoints: Endpoints,
    metadata: CallMetadata,
    credentials: grpc.ChannelCredentials | None,
) -> None:
    """Serve one connection. Ends with a KvError, unless the listener has nothing more to say."""
    address = endpoints.current
    channel = await dial(address, credentials)
    call = channel.stream_stream(
        rpc.QUEUE_LISTEN.path,
        request_serializer=queue_pb2.ListenRequest.SerializeToString,
        response_deserializer=queue_pb2.ListenResponse.FromString,
    )(metadata=metadata)
    writing: asyncio.Task[None] | None = None
    try:
        await call.write(side.first_request())
        writing = asyncio.get_running_loop().create_task(_write(side, pace, call))
        while True:
            async with asyncio.timeout(limits.CLIENT_LISTEN_SILENCE_MS / 1000):
                response = await call.read()
            if response is grpc.aio.EOF and writing.done() and writing.exception() is None:
                return
            if response is grpc.aio.EOF:
                # Whatever the status is, it comes as an AioRpcError; a stream that just ends is the node's stop.
                raise await _why(call, address)
            endpoints.succeeded()
            await side.take_response(response)
    except TimeoutError:
        raise Unavailable(
            f"nothing, not even a ping, arrived for {limits.CLIENT_LISTEN_SILENCE_MS} ms", phase="leader"
        ) from None
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, address) from None
    except asyncio.InvalidStateError:
        raise await _why(call, address) from None
    finally:
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        call.cancel()
        await channel.close()


async def _write(side: ListenSide, pace: SendPace, call: grpc.aio.StreamStreamCall) -> None:
    await asyncio.sleep(pace.interval_ms() / 1000)
    while (request := await side.next_request()) is not None:
        await call.write(request)
        await asyncio.sleep(pace.interval_ms() / 1000)
    await call.done_writing()


async def _why(call: grpc.aio.StreamStreamCall, address: str) -> KvError:
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return Unavailable("the node ended the stream", phase="dial")
    error = grpc.aio.AioRpcError(
        code, await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
    )
    return error_from_rpc(error, address)
