"""The gRPC port of a gateway without data: kv.v1.Queue alone, for consumers beside it that speak no HTTP.

It is served when `listen` is given. Listen is a listener of the gateway's own (remote_listening.py); what looks into
queues is asked of a node. Who may call is judged here, as on a node, and the gateway's own token is shown to the nodes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from kvnode.api.auth.gate import Gate
from kvnode.api.calls_under_way import CallsUnderWay
from kvnode.api.grpc_handlers import Handlers, Serve, timeout_ms
from kvnode.api.grpc_listening import serve_listen
from kvnode.api.grpc_queue import SERVICE
from kvnode.api.listen import bind
from kvnode.api.remote_backend import RemoteBackend
from kvnode.api.remote_queues import RemoteQueues
from kvnode.client import rpc
from kvnode.client.rpc import Method
from kvnode.client.selection import CallMetadata
from kvnode.client.unary import UnaryCaller
from kvnode.node.channels import SERVER_OPTIONS

_LOOKS: dict[str, Method[Any, Any]] = {
    "List": rpc.QUEUE_LIST,
    "Peek": rpc.QUEUE_PEEK,
    "DeadLetters": rpc.DEAD_LETTERS,
    "Crons": rpc.CRONS,
}


class GatewayGrpc:
    """Serves a gateway.

    Args:
        backend: the nodes.
        queues: their queues.
        gate: judges the callers.
        address: host:port to listen on.
        credentials: for TLS; None = plain text.
    """

    def __init__(
        self,
        backend: RemoteBackend,
        queues: RemoteQueues,
        gate: Gate,
        address: str,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._credentials = credentials
        self._backend = backend
        self._queues = queues
        self._gate = gate
        self._address = address
        self._calls = CallsUnderWay()
        self._callers: dict[CallMetadata, UnaryCaller] = {}  # it names the database, by its uuid
        self._server: aio.Server | None = None
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Listen and serve. Raises ConfigError when the address cannot be bound."""
        build = Handlers(lambda: self._backend.name, calls=self._calls)
        methods = {name: build.unary(method.request, self._look(method)) for name, method in _LOOKS.items()}
        methods["Listen"] = build.streams(self._listen)
        server = aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        bind(server, self._address, self._credentials)
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """End the listeners, whose clients take their leases along; answer what is owed."""
        if not self._stopping.done():
            self._stopping.set_result(None)
        if self._server is not None:
            stopped = asyncio.ensure_future(self._server.stop(grace_s))
            settled = asyncio.ensure_future(self._calls.settled())
            await asyncio.wait((stopped, settled), return_when=asyncio.FIRST_COMPLETED)
            settled.cancel()
            await stopped
        for caller in self._callers.values():
            await caller.close()

    async def _listen(self, context: aio.ServicerContext) -> None:
        await serve_listen(self._queues.listen, self._gate, context, self._stopping)

    def _look(self, method: Method[Any, Any]) -> Serve[Any]:
        async def serve(request: Message, context: aio.ServicerContext) -> Message:
            permit = await self._gate.permit(context.invocation_metadata())
            permit.use(request.ByteSize(), write=False)
            answer: Message = await self._caller(permit.database).call(method, request, timeout_ms(context))
            return answer

        return serve

    def _caller(self, database: int) -> UnaryCaller:
        reach = self._backend.reach(database)
        caller = self._callers.get(reach.metadata)
        if caller is None:
            caller = UnaryCaller(reach.addresses, metadata=reach.metadata, credentials=reach.credentials)
            self._callers[reach.metadata] = caller
        return caller
