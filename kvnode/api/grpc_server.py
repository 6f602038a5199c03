"""The gRPC port of a node: KV, Queue, Admin and Peer, with health and reflection beside them.

Stopping: health turns to NOT_SERVING, sessions and watches end once what they owe is answered, then the peers'
streams, which carried what those answers waited for; what is left after the grace is cut.
"""

from __future__ import annotations

import asyncio
from random import SystemRandom

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvnode.api import grpc_admin, grpc_changelog, grpc_failover, grpc_kv, grpc_peer, grpc_queue
from kvnode.api.auth.authority import Authority
from kvnode.api.auth.gate import Gate
from kvnode.api.calls_under_way import CallsUnderWay
from kvnode.api.grpc_admin import AdminService
from kvnode.api.grpc_changelog import ChangelogService
from kvnode.api.grpc_directory import DirectoryService
from kvnode.api.grpc_failover import FailoverService
from kvnode.api.grpc_handlers import Handlers
from kvnode.api.grpc_kv import KvService
from kvnode.api.grpc_peer import PeerService
from kvnode.api.grpc_queue import QueueService
from kvnode.api.join import Joining
from kvnode.api.listen import bind
from kvnode.api.peer_lanes import PeerLanes
from kvnode.api.ports import ServedNode
from kvnode.base import limits
from kvnode.base.clock import Clock, SystemClock
from kvnode.node.channels import SERVER_OPTIONS

# The whole process, and the services whose health follows the node's readiness.
_HEALTH_NAMES = ("", grpc_kv.SERVICE, grpc_queue.SERVICE, grpc_admin.SERVICE)


class GrpcServer:
    """Serves a node.

    Args:
        node: who answers.
        address: host:port to listen on; port 0 = a free one.
        credentials: for TLS; None = plain text.
        adoption: answers Identify and Adopt; by default as the node that `node` is.
        peer_credentials: for asking other members (cluster status); None = plain text.
        clock: read for peers' clock samples.
        authority: judges tokens; by default one that knows those of the directory alone.
        needs_token: whether calls of KV and Admin need one (`grpc_auth`).
    """

    def __init__(
        self,
        node: ServedNode,
        address: str,
        credentials: grpc.ServerCredentials | None = None,
        *,
        adoption: Joining | None = None,
        peer_credentials: grpc.ChannelCredentials | None = None,
        clock: Clock | None = None,
        authority: Authority | None = None,
        needs_token: bool = False,
    ) -> None:
        self._node = node
        self._address = address
        self._adoption = adoption
        self._credentials = credentials
        self._peer_credentials = peer_credentials
        self._clock = clock or SystemClock()
        self._gate = Gate(authority or Authority(node.directory.view, self._clock), self._clock, required=needs_token)
        self._calls = CallsUnderWay()
        self._lanes = PeerLanes()
        self._server: aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self._health_task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[None] | None = None

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises ConfigError when the address cannot be bound."""
        self._stopping = asyncio.get_running_loop().create_future()
        server = aio.server(options=SERVER_OPTIONS)
        node, gate, build = self._node, self._gate, Handlers(lambda: self._node.name, calls=self._calls)
        administer = Handlers(lambda: self._node.name, gate.require_admin, self._calls)
        admin = AdminService(node, self._peer_credentials, gate.node_metadata).handlers(administer)
        directory = DirectoryService(node, gate, self._clock, SystemRandom(), self._stopping).handlers(administer)
        adoption = self._adoption or Joining(node.member, node.cluster_id)
        for name, methods in (
            (grpc_kv.SERVICE, KvService(node, gate, self._stopping).handlers(build)),
            (grpc_queue.SERVICE, QueueService(node, gate, self._stopping).handlers(build)),
            (grpc_admin.SERVICE, {**admin, **directory}),
            (grpc_changelog.SERVICE, ChangelogService(node).handlers(build)),
            (grpc_failover.SERVICE, FailoverService(node).handlers(build)),
            (grpc_peer.SERVICE, PeerService(node, adoption, self._clock, self._stopping, self._lanes).handlers(build)),
        ):
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        services = (grpc_kv.SERVICE, grpc_queue.SERVICE, grpc_admin.SERVICE, grpc_peer.SERVICE, health.SERVICE_NAME)
        reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server)
        port = bind(server, self._address, self._credentials)
        if self._credentials is None:
            await self._lanes.start(self._address.rpartition(":")[0])
        await self._report_health()
        await server.start()
        self._server = server
        self._health_task = asyncio.get_running_loop().create_task(self._follow_readiness())
        return port

    async def stop(self, grace: float) -> None:
        """Refuse what is new, answer what is owed, cut what is left after `grace` seconds."""
        if self._server is None or self._stopping is None:
            return
        if self._health_task is not None:
            self._health_task.cancel()
            await asyncio.gather(self._health_task, return_exceptions=True)
        await self._health.enter_graceful_shutdown()
        if not self._stopping.done():
            self._stopping.set_result(None)
        self._node.watches.close()
        stopped = asyncio.ensure_future(self._server.stop(grace))
        settled = asyncio.ensure_future(self._calls.settled())
        await asyncio.wait((stopped, settled), return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()
        self._calls.end_lasting()
        await stopped
        self._lanes.stop()

    async def _follow_readiness(self) -> None:
        while True:
            await asyncio.sleep(limits.HEALTH_INTERVAL_MS / 1_000)
            await self._report_health()

    async def _report_health(self) -> None:
        ready, _ = self._node.ready
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if ready else kinds.NOT_SERVING
        for name in _HEALTH_NAMES:
            await self._health.set(name, status)
