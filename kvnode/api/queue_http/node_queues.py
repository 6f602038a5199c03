"""The node itself as the backend of queues over HTTP."""

from __future__ import annotations

import asyncio

from kvnode.api.auth.gate import Gate, Permit
from kvnode.api.ports import ServedNode
from kvnode.api.queue_listening import Listening
from kvnode.base import limits
from kvnode.node.queue.settler import Settler
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


class NodeQueues:
    """See kvnode.api.queue_http.ports.QueueBackend.

    Args:
        node: the node.
    """

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    @property
    def settler(self) -> Settler:
        """The node's: what comes over HTTP gathers with what comes over gRPC."""
        return self._node.queues.settler

    async def write(
        self,
        request: kv_pb2.AtomicWriteRequest,
        timeout_ms: int = limits.CONNECT_HOLD_TIMEOUT_MS,
        *,
        database: int,
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write under the node's own session, by which it is settled. Raises KvError."""
        return await self._node.write(request, timeout_ms, database=database, settle=True)

    async def listen(
        self, permit: Permit, gate: Gate, opening: queue_pb2.ListenOpen, stopping: asyncio.Future[None]
    ) -> Listening:
        """A listener at this node. Raises InvalidRequest."""
        return Listening(self._node, permit, gate, opening, stopping)
