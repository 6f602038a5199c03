"""The node itself as KV Connect's backend.

The leader answers other nodes in messages of at most MAX_GRPC_MESSAGE_BYTES, and a read of KV Connect may find four
times as much, or more. One that the leader cannot answer so is made here, as strongly: the leader says how far
everything is acknowledged, and the state here is read once it is as far.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from kvnode.api.connect.ports import RESPONSE_TOO_LARGE
from kvnode.api.ports import ServedNode
from kvnode.base import limits
from kvnode.base.errors import KvError, Unavailable, VersionstampLost
from kvnode.node.ports import Deliver
from kvnode.node.strong_read import acknowledged, catch_up
from kvnode.proto.kv.v1 import kv_pb2

_STRONG = int(kv_pb2.CONSISTENCY_STRONG)


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
        try:
            return await self._node.read(request, limits.CONNECT_HOLD_TIMEOUT_MS, database=database)
        except KvError as error:
            if error.code != RESPONSE_TOO_LARGE or request.consistency != _STRONG:
                raise
            refused = error
        return await self.read_large(request, refused, database=database)

    async def read_large(self, request: kv_pb2.ReadRequest, refused: KvError, *, database: int) -> kv_pb2.ReadResponse:
        """See Backend. It is made here: the state here is read once it holds all that was acknowledged."""
        own_stamp = request.min_versionstamp
        request.consistency = kv_pb2.CONSISTENCY_EVENTUAL
        request.max_staleness_ms = 0
        while True:
            stamp = await acknowledged(self._node, limits.CONNECT_HOLD_TIMEOUT_MS)
            request.min_versionstamp = max(own_stamp, stamp)
            try:
                response = await self._node.read(request, limits.CONNECT_HOLD_TIMEOUT_MS, database=database)
            except VersionstampLost:
                if own_stamp >= stamp:
                    raise  # the caller's own
                continue  # a failover cut off what the leader named: the next one is asked
            response.strongly_consistent = True
            return response

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
