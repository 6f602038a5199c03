"""The service kv.v1.KV."""

from __future__ import annotations

import asyncio

import grpc
from grpc import aio

from kvnode.api.grpc_handlers import Handlers, timeout_ms
from kvnode.api.grpc_session import Session
from kvnode.api.ports import ServedNode
from kvnode.base.errors import Unavailable
from kvnode.node.strong_read import catch_up
from kvnode.proto.kv.v1 import kv_pb2

SERVICE = "kv.v1.KV"


class KvService:
    """Serves one database from the node.

    Args:
        node: the node that serves.
        stopping: done when the node is about to stop.
    """

    def __init__(self, node: ServedNode, stopping: asyncio.Future[None]) -> None:
        self._node = node
        self._stopping = stopping

    def handlers(self, build: Handlers) -> dict[str, grpc.RpcMethodHandler]:
        """Method names to handlers."""
        return {
            "Read": build.unary(kv_pb2.ReadRequest, self._read),
            "AtomicWrite": build.unary(kv_pb2.AtomicWriteRequest, self._atomic_write),
            "Session": build.streams(self._session),
            "Watch": build.stream_out(kv_pb2.WatchRequest, self._watch),
        }

    async def _read(self, request: kv_pb2.ReadRequest, context: aio.ServicerContext) -> kv_pb2.ReadResponse:
        return await self._node.read(request, timeout_ms(context))

    async def _atomic_write(
        self, request: kv_pb2.AtomicWriteRequest, context: aio.ServicerContext
    ) -> kv_pb2.AtomicWriteResponse:
        return await self._node.write(request, timeout_ms(context))

    async def _session(self, context: aio.ServicerContext) -> None:
        await Session(self._node, context, self._stopping).serve()

    async def _watch(self, request: kv_pb2.WatchRequest, context: aio.ServicerContext) -> None:
        node = self._node
        if request.strong:
            await catch_up(node, timeout_ms(context))
        watch = node.watches.watch(request)
        try:
            async for frame in watch:
                await context.write(frame.SerializeToString())
        finally:
            watch.close()
        raise Unavailable("the node is stopping; watch at another one", code="NODE_STOPPING")
