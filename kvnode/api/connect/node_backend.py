"""The node itself as KV Connect's backend."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from kvnode.api.ports import ServedNode
from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.node.ports import Deliver
from kvnode.node.strong_read import catch_up
from kvnode.proto.kv.v1 import kv_pb2


class NodeBackend:
    """Answers from a node, which forwards to the leader what is the leader's.

    Args:
        node: the node.
    """

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    @property
    def name(self) -> str:
        """The node's."""
        return self._node.name

    def can_begin(self, *, write: bool) -> bool:
        """See Backend."""
        return not write or self._node.can_begin_writes

    def begin(self, operation: kv_pb2.Operation, *, database: int, deliver: Deliver) -> None:
        """See Backend."""
        operation.timeout_ms = limits.CONNECT_HOLD_TIMEOUT_MS
        self._node.begin(operation, database, deliver)

    async def read(self, request: kv_pb2.ReadRequest, *, database: int) -> kv_pb2.ReadResponse:
        """One read. Raises KvError."""
        return await self._node.read(request, limits.CONNECT_HOLD_TIMEOUT_MS, database=database)

    async def write(self, request: kv_pb2.AtomicWriteRequest, *, database: int) -> kv_pb2.AtomicWriteResponse:
        """One atomic write under the node's own session, by which it is settled. Raises KvError."""
        return await self._node.write(request, limits.CONNECT_HOLD_TIMEOUT_MS, database=database, settle=True)

    async def watch(self, request: kv_pb2.WatchRequest, *, database: int) -> AsyncGenerator[kv_pb2.WatchResponse, None]:
        """Frames of a watch; a strong one begins with a state that no acknowledged write is newer than."""
        if request.strong:
            await catch_up(self._node, limits.DEFAULT_OPERATION_TIMEOUT_MS)
        watch = self._node.watches.watch(request, database)
        try:
            async for frame in watch:
                yield frame
        finally:
            watch.close()
        raise Unavailable("the node is stopping; watch at another one", code="NODE_STOPPING")
