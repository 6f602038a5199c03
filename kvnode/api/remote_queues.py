"""The queues of a gateway without data: those of the nodes."""

from __future__ import annotations

import asyncio

from kvnode.api.auth.gate import Gate, Permit
from kvnode.api.remote_backend import RemoteBackend
from kvnode.api.remote_listening import RemoteListening
from kvnode.base import limits
from kvnode.node.queue.settler import Settler
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


class RemoteQueues:
    """See kvnode.api.queue_http.ports.QueueBackend.

    Args:
        backend: of the gateway.
    """

    def __init__(self, backend: RemoteBackend) -> None:
        self._backend = backend
        self._settler = Settler(backend.settle)
        self._listening: dict[RemoteListening, None] = {}

    @property
    def settler(self) -> Settler:
        """Settles over the gateway's own sessions, so that an ack is sent again until its outcome is known."""
        return self._settler

    async def write(
        self,
        request: kv_pb2.AtomicWriteRequest,
        timeout_ms: int = limits.CONNECT_HOLD_TIMEOUT_MS,
        *,
        database: int,
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write, held and settled. Raises KvError."""
        return await self._backend.write(request, timeout_ms, database=database)

    async def listen(
        self, permit: Permit, gate: Gate, opening: queue_pb2.ListenOpen, stopping: asyncio.Future[None]
    ) -> RemoteListening:
        """A listener at whichever node serves it. Raises InvalidRequest, NotFound."""
        reach = self._backend.reach(permit.database)
        listening = RemoteListening(self._backend.name, reach, permit, gate, opening, stopping)
        self._listening[listening] = None
        listening.relay.add_done_callback(lambda _relay: self._listening.pop(listening, None))
        return listening

    async def close(self) -> None:
        """The gateway stops: the nodes are told which leases the listeners keep."""
        await asyncio.gather(*(listening.left() for listening in self._listening), return_exceptions=True)
        await self._settler.close()
