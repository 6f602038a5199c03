"""The service kv.v1.Queue."""

from __future__ import annotations

import asyncio
import time

import grpc
from grpc import aio

from kvnode.api.auth.gate import Gate
from kvnode.api.grpc_handlers import Handlers, timeout_ms
from kvnode.api.grpc_listening import serve_listen
from kvnode.api.ports import ServedNode
from kvnode.api.queue_http.node_queues import NodeQueues
from kvnode.node.queue import cron_views, views
from kvnode.proto.kv.v1 import queue_pb2

SERVICE = "kv.v1.Queue"


class QueueService:
    """Serves the queues of the node's databases, each call the database that it names.

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
            "Listen": build.streams(self._listen),
            "List": build.unary(queue_pb2.QueueListRequest, self._list),
            "Peek": build.unary(queue_pb2.QueuePeekRequest, self._peek),
            "DeadLetters": build.unary(queue_pb2.DeadLettersRequest, self._dead_letters),
            "Crons": build.unary(queue_pb2.CronsRequest, self._crons),
        }

    async def _listen(self, context: aio.ServicerContext) -> None:
        await serve_listen(NodeQueues(self._node).listen, self._gate, context, self._stopping)

    async def _list(
        self, request: queue_pb2.QueueListRequest, context: aio.ServicerContext
    ) -> queue_pb2.QueueListResponse:
        statuses = await views.list_queues(await self._reader(request, context), request.queue)
        return queue_pb2.QueueListResponse(queues=statuses, now_ms=time.time_ns() // 1_000_000)

    async def _peek(
        self, request: queue_pb2.QueuePeekRequest, context: aio.ServicerContext
    ) -> queue_pb2.QueuePeekResponse:
        reader = await self._reader(request, context)
        return queue_pb2.QueuePeekResponse(messages=await views.peek(reader, request.queue, request.max_count))

    async def _dead_letters(
        self, request: queue_pb2.DeadLettersRequest, context: aio.ServicerContext
    ) -> queue_pb2.DeadLettersResponse:
        reader = await self._reader(request, context)
        found = await views.dead_letters(reader, request.queue, request.max_count, request.after)
        return queue_pb2.DeadLettersResponse(dead_letters=found)

    async def _crons(self, request: queue_pb2.CronsRequest, context: aio.ServicerContext) -> queue_pb2.CronsResponse:
        reader = await self._reader(request, context)
        found = cron_views.show_cron(reader, request.name) if request.name else cron_views.list_crons(reader)
        return queue_pb2.CronsResponse(crons=await found)

    async def _reader(
        self,
        request: queue_pb2.QueueListRequest
        | queue_pb2.QueuePeekRequest
        | queue_pb2.DeadLettersRequest
        | queue_pb2.CronsRequest,
        context: aio.ServicerContext,
    ) -> views.QueueReader:
        permit = await self._gate.permit(context.invocation_metadata())
        permit.use(request.ByteSize(), write=False)
        return views.QueueReader(self._node.read, permit.database, timeout_ms(context))
