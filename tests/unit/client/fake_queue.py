"""A node with one queue, for listeners: it delivers what waits, and settles what it is told, unless it is to refuse."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import grpc

from kvnode.client import rpc
from kvnode.codec.values import encode_value
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2
from tests.unit.client.fake_server import abort


class FakeQueue:
    """Serves Queue.Listen.

    Attributes:
        address: host:port, once it runs.
        waiting: values to deliver.
        requests: all that was received, of every stream.
        refusals: the next requests end their streams with these, without any effect.
        refuse_all: every request does.
        settles: whether what is acked, nacked or released is confirmed.
    """

    def __init__(self) -> None:
        self.address = ""
        self.waiting: deque[object] = deque()
        self.requests: list[queue_pb2.ListenRequest] = []
        self.refusals: list[kv_pb2.Error] = []
        self.refuse_all: kv_pb2.Error | None = None
        self.settles = True
        self.heeds_leaving = True  # False: what it sends has crossed the word
        self._deliveries_count = 0
        self._heard = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> FakeQueue:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self._listen, queue_pb2.ListenRequest.FromString, queue_pb2.ListenResponse.SerializeToString
        )
        service, method = rpc.QUEUE_LISTEN.path.strip("/").split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._server = server
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.stop(None)

    @property
    def openings(self) -> list[queue_pb2.ListenRequest]:
        """The first request of each stream."""
        return [request for request in self.requests if request.HasField("open")]

    def said(self, what: str) -> list[Any]:
        """Everything that was put into one field of the requests: ack, nack, release, extend."""
        return [each for request in self.requests for each in getattr(request, what)]

    async def hear(self, what: str, count: int = 1) -> list[Any]:
        """Wait until that much was."""
        async with asyncio.timeout(5), self._heard:
            await self._heard.wait_for(lambda: len(self.said(what)) >= count)
        return self.said(what)

    async def _listen(self, requests: AsyncIterator[queue_pb2.ListenRequest], context: Any) -> AsyncIterator[Any]:
        credit = 0
        async for request in requests:
            self.requests.append(request)
            refusal = self.refusals.pop(0) if self.refusals else self.refuse_all
            if refusal is not None:
                await abort(context, refusal)
            async with self._heard:
                self._heard.notify_all()
            credit += request.credit
            if request.leaving and self.heeds_leaving:
                credit = 0
            response = queue_pb2.ListenResponse(ping=True)
            if self.settles:
                response.settled.extend([*request.ack, *request.release, *request.unseen])
                response.settled.extend(nack.lease for nack in request.nack)
            while credit and self.waiting:
                credit -= 1
                self._deliver(response, self.waiting.popleft())
            yield response

    def _deliver(self, response: queue_pb2.ListenResponse, value: object) -> None:
        data, encoding = encode_value(value)
        self._deliveries_count += 1
        lease = self._deliveries_count.to_bytes(12, "big")
        message = response.messages.add(id=lease, lease=lease, queue="default", attempt=1)
        message.payload.data, message.payload.encoding = data, encoding  # type: ignore[assignment]
