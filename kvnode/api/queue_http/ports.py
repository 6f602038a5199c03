"""What queues over HTTP need of whoever serves them: the node itself, or a gateway without data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Protocol

from kvnode.api.auth.gate import Gate, Permit
from kvnode.base import limits
from kvnode.node.queue.settler import Settler
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


class ListenStream(Protocol):
    """One listener, as queue.proto's Listen has it."""

    ended: asyncio.Future[None]  # fails with the KvError by which it ends, unless the client ends it

    def take(self, request: queue_pb2.ListenRequest) -> None:
        """What the client says: credit, what it extends, what it has settled by itself."""

    def responses(self) -> AsyncGenerator[queue_pb2.ListenResponse, None]:
        """What comes; the first response has `opened`. Raises KvError: why it ends."""

    def finish(self) -> None:
        """The client has said its last: let what it asked for come to its end, and tell it so."""

    def keep(self) -> None:
        """The client comes again with what it holds: nothing of it is given back when it is over."""

    def close(self) -> None:
        """Over; called in any case."""


class QueueBackend(Protocol):
    """Has queues."""

    @property
    def settler(self) -> Settler:
        """Settles leases."""

    async def write(
        self,
        request: kv_pb2.AtomicWriteRequest,
        timeout_ms: int = limits.CONNECT_HOLD_TIMEOUT_MS,
        *,
        database: int,
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write, held for so long while there is no leader, and settled. Raises KvError."""

    async def listen(
        self, permit: Permit, gate: Gate, opening: queue_pb2.ListenOpen, stopping: asyncio.Future[None]
    ) -> ListenStream:
        """A listener; arguments as kvnode.api.queue_listening.Listening has them. Raises KvError."""
