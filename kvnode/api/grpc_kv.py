"""The service kv.v1.KV."""

from __future__ import annotations

import asyncio

import grpc
from grpc import aio

from kvnode.api.auth.gate import Gate
from kvnode.api.grpc_handlers import Handlers, response_too_large, timeout_ms
from kvnode.api.grpc_session import Session
from kvnode.api.ports import ServedNode
from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.machine.read import values_bytes
from kvnode.node.strong_read import catch_up
from kvnode.proto.kv.v1 import kv_pb2

SERVICE = "kv.v1.KV"
_NEVER_TOO_LARGE_COUNT = limits.MAX_GRPC_MESSAGE_BYTES // limits.HARD_MAX_VALUE_BYTES - 1  # entries


class KvService:
    """Serves the databases of the node, each call the one that it names.

    Args:
        node: the node that serves.
        gate: judges the callers.
        stopping: done when the node is about to stop.
    """

    def __init__(self, node: ServedNode, gate: Gate, stopping: asyncio.Future[None]) -> None:
        self._node = node
        self._gate = gate
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
        permit = await self._gate.permit(context.invocation_metadata())
        permit.use(request.ByteSize(), write=False)
        response = await self._node.read(request, timeout_ms(context), database=permit.database)
        if sum([wanted.limit for wanted in request.ranges]) > _NEVER_TOO_LARGE_COUNT:
            size_bytes = values_bytes(response, limits.MAX_GRPC_MESSAGE_BYTES)
            if size_bytes > limits.MAX_GRPC_MESSAGE_BYTES:
                del response  # or it would live as long as the error's traceback
                raise response_too_large(size_bytes)  # before it is serialized, all in one piece
        return response

    async def _atomic_write(
        self, request: kv_pb2.AtomicWriteRequest, context: aio.ServicerContext
    ) -> kv_pb2.AtomicWriteResponse:
        permit = await self._gate.permit(context.invocation_metadata())
        permit.use(request.ByteSize(), write=True)
        return await self._node.write(request, timeout_ms(context), database=permit.database)

    async def _session(self, context: aio.ServicerContext) -> None:
        permit = await self._gate.permit(context.invocation_metadata())
        await Session(self._node, permit, context, self._stopping).serve()

    async def _watch(self, request: kv_pb2.WatchRequest, context: aio.ServicerContext) -> None:
        node = self._node
        permit = await self._gate.permit(context.invocation_metadata())
        permit.use(request.ByteSize(), write=False)
        if request.strong:
            await catch_up(node, timeout_ms(context))
        watch = node.watches.watch(request, permit.database)
        end = self._gate.follow(lambda: watch.close() if permit.refusal(write=False) else None)
        try:
            async for frame in watch:
                if permit.refusal(write=False) is not None:
                    break
                await context.write(frame.SerializeToString())
        finally:
            end()
            watch.close()
        refusal = permit.refusal(write=False)
        if refusal is not None:
            raise refusal
        raise Unavailable("the node is stopping; watch at another one", code="NODE_STOPPING")
