"""A gateway's backend: the cluster's nodes, over the Python client.

One Session for each database in use, so that what arrives at the same time travels together, whatever connections it
came on; it goes with its database, once answered. Operations keep their request ids through broken connections and
changes of node and leader; a write that may have been applied is sent again until its outcome is known. Watches follow
the nodes that live: each new stream begins with a full state, which the watcher sees as one more frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

import grpc

from kvnode.base import limits
from kvnode.base.errors import KvError, NotFound, Unavailable
from kvnode.client.pending import Load
from kvnode.client.selection import CallMetadata, call_metadata
from kvnode.client.session import Session
from kvnode.client.watch import WatchStream
from kvnode.machine.directory.view import DirectoryView
from kvnode.node.ports import Deliver
from kvnode.proto.kv.v1 import kv_pb2


class Reach(NamedTuple):
    """How nodes are called."""

    addresses: Sequence[str]
    metadata: CallMetadata
    credentials: grpc.ChannelCredentials | None


class RemoteBackend:
    """See kvnode.api.connect.ports.Backend.

    Args:
        name: of the gateway.
        addresses: host:port of nodes' gRPC, the nearest first.
        view: names the databases.
        token: shown to the nodes, where they ask for one (grpc_auth).
        credentials: for TLS; None = plain text.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        view: DirectoryView,
        *,
        token: str = "",
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._name = name
        self._addresses = list(addresses)
        self._view = view
        self._token = token
        self._credentials = credentials
        # By uuid: the number of a database that a failover cut off may be given to another one.
        self._sessions: dict[str, Session] = {}
        self._leaving: dict[asyncio.Task[None], Session] = {}  # their databases were deleted
        self._load = Load()
        view.follow(self._let_go)

    @property
    def name(self) -> str:
        """The gateway's."""
        return self._name

    @property
    def held_count(self) -> int:
        """Operations that no node has answered yet."""
        return self._load.count

    @property
    def held_bytes(self) -> int:
        """Their size."""
        return self._load.size_bytes

    @property
    def sessions(self) -> list[Session]:
        """Those that are not closed yet."""
        return [*self._sessions.values(), *self._leaving.values()]

    def can_begin(self, *, write: bool) -> bool:
        """See Backend."""
        del write
        return True  # a session is opened by its first operation

    def begin(self, operation: kv_pb2.Operation, *, database: int, deliver: Deliver) -> None:
        """See Backend. Raises KvError."""
        request = operation.write if operation.HasField("write") else operation.read
        self._free_session(database).submit(request, deliver, limits.CONNECT_HOLD_TIMEOUT_MS, settle=True)

    async def read(self, request: kv_pb2.ReadRequest, *, database: int) -> kv_pb2.ReadResponse:
        """One read: a strong one by way of the leader, an eventual one from the node that the session is at."""
        return (await self._call(request, database)).read

    async def read_large(self, request: kv_pb2.ReadRequest, refused: KvError, *, database: int) -> kv_pb2.ReadResponse:
        """See Backend. There is no state here that could be read."""
        raise refused

    async def write(
        self,
        request: kv_pb2.AtomicWriteRequest,
        timeout_ms: int = limits.CONNECT_HOLD_TIMEOUT_MS,
        *,
        database: int,
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write, held and settled. Raises KvError."""
        return (await self._call(request, database, timeout_ms)).write

    async def settle(
        self, request: kv_pb2.AtomicWriteRequest, timeout_ms: int = 0, *, database: int, settle: bool = True
    ) -> kv_pb2.AtomicWriteResponse:
        """As `write`, in the shape of Node.write: for the settler of its queues."""
        return (await self._session(database).call(request, timeout_ms, settle=settle)).write

    def reach(self, database: int) -> Reach:
        """How to call the nodes about a database. Raises NotFound."""
        return Reach(self._addresses, self._metadata(database), self._credentials)

    async def watch(self, request: kv_pb2.WatchRequest, *, database: int) -> AsyncGenerator[kv_pb2.WatchResponse, None]:
        """Frames of a watch, from whichever node serves it. Raises KvError."""
        stream = WatchStream(
            self._addresses,
            request,
            credentials=self._credentials,
            metadata=self._metadata(database),
            with_pings=True,
        )
        try:
            async for frame, _ in stream:
                yield frame
        finally:
            await stream.aclose()

    def give_up_unsent(self) -> None:
        """The gateway stops: what no node has, or merely reads, is refused; writes that a node has go on."""
        for session in self.sessions:
            session.give_up_unsent()

    async def close(self) -> None:
        """Leave the nodes; what is not answered ends as an error that says what is known of it."""
        sessions, leaving = self.sessions, list(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        for session in sessions:
            await session.close()

    def _let_go(self) -> None:
        """Databases have changed: those that are gone need no sessions."""
        uuids = {row.uuid for row in self._view.databases.values()}
        for uuid in [uuid for uuid in self._sessions if uuid not in uuids]:
            session = self._sessions.pop(uuid)
            task = asyncio.get_running_loop().create_task(_close_when_answered(session))
            self._leaving[task] = session
            task.add_done_callback(self._leaving.pop)

    async def _call(
        self,
        request: kv_pb2.ReadRequest | kv_pb2.AtomicWriteRequest,
        database: int,
        timeout_ms: int = limits.CONNECT_HOLD_TIMEOUT_MS,
    ) -> kv_pb2.OperationResult:
        session = self._free_session(database)
        return await session.call(request, timeout_ms, settle=True)

    def _free_session(self, database: int) -> Session:
        session, load = self._session(database), self._load
        is_full = load.count >= limits.MAX_HELD_REQUESTS_COUNT or load.size_bytes >= limits.MAX_HELD_REQUEST_BYTES
        if is_full or session.is_full:
            raise Unavailable("too many requests wait for an answer already; retry later", code="TOO_MANY_HELD")
        return session

    def _session(self, number: int) -> Session:
        uuid = self._uuid(number)
        session = self._sessions.get(uuid)
        if session is None:
            metadata = call_metadata(uuid, self._token)
            session = Session(self._addresses, credentials=self._credentials, metadata=metadata, load=self._load)
            self._sessions[uuid] = session
        return session

    def _uuid(self, number: int) -> str:
        row = self._view.databases.get(number)
        if row is None:
            raise NotFound("The database was deleted.")
        return row.uuid

    def _metadata(self, number: int) -> CallMetadata:
        return call_metadata(self._uuid(number), self._token)


async def _close_when_answered(session: Session) -> None:
    """What it holds keeps the promises that were made for it, and is bounded by what a gateway may hold."""
    while session.unanswered_count:
        await asyncio.sleep(limits.SESSION_LEAVE_INTERVAL_MS / 1000)
    await session.close()
