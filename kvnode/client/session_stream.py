"""The one stream that a session has at a time: dialled, served until it breaks or is left, perhaps for a better one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random

import grpc
import grpc.aio

from kvnode.base.errors import KvError
from kvnode.client import rpc
from kvnode.client.channel import dial
from kvnode.client.endpoints import Endpoints
from kvnode.client.homing import until_one_serves
from kvnode.client.selection import CallMetadata
from kvnode.client.status import error_from_rpc
from kvnode.proto.kv.v1 import kv_pb2


class SessionStream:
    """A stream to whichever endpoint is current.

    Args:
        endpoints: says which one that is, and is told when a preferred one serves again.
        credentials: for TLS; None = plain text.
        metadata: sent with the call.
        random: spreads the questions whether a preferred endpoint serves again.
        send: sends on the stream until it ends.
        receive: takes what arrives until the stream ends, and raises the KvError that says why.
        ended: told when the stream is over, before its connection is closed.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        credentials: grpc.ChannelCredentials | None,
        metadata: CallMetadata,
        random: Random,
        send: Callable[[grpc.aio.StreamStreamCall], Coroutine[None, None, None]],
        receive: Callable[[grpc.aio.StreamStreamCall], Coroutine[None, None, None]],
        ended: Callable[[], None],
    ) -> None:
        self._endpoints = endpoints
        self._credentials = credentials
        self._metadata = metadata
        self._random = random
        self._send = send
        self._receive = receive
        self._ended = ended
        self._abandoned: asyncio.Future[KvError | None] | None = None  # resolved to leave the present stream

    @property
    def is_up(self) -> bool:
        """Whether there is one that is not being left."""
        return self._abandoned is not None and not self._abandoned.done()

    def leave(self, reason: KvError | None) -> None:
        """Leave the present stream; None: the endpoint is not to blame."""
        if self._abandoned is not None and not self._abandoned.done():
            self._abandoned.set_result(reason)

    async def serve(self) -> None:
        """Serve one stream at the current endpoint until it is left or breaks. Raises the KvError that ended it."""
        address = self._endpoints.current
        channel = await dial(address, self._credentials)
        try:
            call: grpc.aio.StreamStreamCall = channel.stream_stream(
                rpc.SESSION.path,
                request_serializer=kv_pb2.SessionRequest.SerializeToString,
                response_deserializer=kv_pb2.SessionResponse.FromString,
            )(metadata=self._metadata)
            try:
                await self._exchange(call)
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, address) from None
        finally:
            self._ended()
            await channel.close()

    async def _exchange(self, call: grpc.aio.StreamStreamCall) -> None:
        loop = asyncio.get_running_loop()
        abandoned = self._abandoned = loop.create_future()
        reader = loop.create_task(self._receive(call))
        writer = loop.create_task(self._sending(call))
        homing = loop.create_task(self._return_home())
        try:
            await asyncio.wait([reader, writer, abandoned], return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and writer.exception() is None:
                await asyncio.wait([reader, abandoned], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._abandoned = None
            for task in (reader, writer, homing):
                task.cancel()
            endings = await asyncio.gather(reader, writer, homing, return_exceptions=True)
        if abandoned.done():
            if (reason := abandoned.result()) is not None:
                raise reason
            return
        for ending in endings:
            if isinstance(ending, Exception):
                raise ending

    async def _sending(self, call: grpc.aio.StreamStreamCall) -> None:
        """Send until the call ends; why it ended is the reader's to say."""
        try:
            await self._send(call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def _return_home(self) -> None:
        """Leave the stream when an address that is preferred to its own serves again."""
        preferred = self._endpoints.preferred
        if preferred:
            address = await until_one_serves(preferred, self._credentials, self._metadata, self._random)
            self._endpoints.go_back(address)
            self.leave(None)
