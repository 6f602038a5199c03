"""`kvnode serve --role gateway`: KV Connect without data, beside an application, under an address that lives.

It needs no data directory and is no member: it may be started, stopped and copied at will. Only the requests that
it holds when it dies are lost with it (docs/howto/gateway.md says what that means for a write).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kvnode.api.auth.authority import Authority
from kvnode.api.auth.gate import Gate
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.connect.server import ConnectServer
from kvnode.api.gateway_grpc import GatewayGrpc
from kvnode.api.http import HttpServer, Request, Response, Tls
from kvnode.api.metrics import CONTENT_TYPE
from kvnode.api.queue_http.server import QueueHttp
from kvnode.api.remote_backend import RemoteBackend
from kvnode.api.remote_directory import RemoteDirectory
from kvnode.api.remote_queues import RemoteQueues
from kvnode.api.shutdown import EXIT_OK, attempt, bounded_shutdown
from kvnode.api.stop_signals import stop_signals
from kvnode.api.tls import grpc_tls
from kvnode.base import garbage
from kvnode.base.clock import SystemClock
from kvnode.base.config import NodeConfig
from kvnode.base.tokens import is_made_by_cluster

_log = logging.getLogger(__name__)

DRAIN_S = 1.0  # for what is owed when the gateway stops


async def serve_gateway(config: NodeConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status. Raises ConfigError."""
    stopping = stop_signals()
    credentials = grpc_tls(config)
    nodes = credentials.peers
    directory = RemoteDirectory(config.peers, token=config.access_token, credentials=nodes)
    backend = RemoteBackend(config.name, config.peers, directory.view, token=config.access_token, credentials=nodes)
    authority = Authority(directory.view, SystemClock(), static_token=_static_token(config), learn=directory.learn)
    stats = ConnectStats()
    tls = Tls(Path(config.tls_cert), Path(config.tls_key)) if config.tls_cert else None
    queues = RemoteQueues(backend)
    queue_http = QueueHttp(queues, authority, SystemClock(), stats)
    connect = ConnectServer(backend, authority, config.connect_listen, tls=tls, stats=stats, queues=queue_http)
    gate = Gate(authority, SystemClock(), required=config.grpc_auth)
    grpc = GatewayGrpc(backend, queues, gate, config.listen, credentials.server) if config.listen else None
    ops = HttpServer(GatewayPages(directory, backend, stats).answer, config.ops_listen)
    following = asyncio.ensure_future(directory.run())
    try:
        await ops.start()
        await connect.start()
        if grpc is not None:
            await grpc.start()
        _log.info(
            "a gateway to %s: KV Connect on %s, ops on %s",
            ", ".join(config.peers),
            config.connect_listen,
            config.ops_listen,
        )
        garbage.settle()
        await stopping.wait()
        _log.info("stopping: draining")
    finally:
        following.cancel()
        asyncio.get_running_loop().call_later(DRAIN_S, backend.give_up_unsent)
        async with bounded_shutdown():
            await attempt(connect.stop())
            if grpc is not None:
                await attempt(grpc.stop(DRAIN_S))
            await attempt(queues.close())
            await attempt(backend.close())
            await attempt(ops.stop())
    return EXIT_OK


def _static_token(config: NodeConfig) -> str:
    """What clients may use besides the tokens of the directory; one that stands there is judged by it alone."""
    return "" if is_made_by_cluster(config.access_token) else config.access_token


class GatewayPages(Collector):
    """The ops port of a gateway: /livez, /readyz, /metrics.

    Args:
        directory: whether the cluster was reached.
        backend: what is held.
        stats: of KV Connect.
    """

    def __init__(self, directory: RemoteDirectory, backend: RemoteBackend, stats: ConnectStats) -> None:
        self._directory = directory
        self._backend = backend
        self._registry = CollectorRegistry()
        for collector in (stats, self):
            self._registry.register(collector)

    async def answer(self, request: Request) -> Response:
        """The response to one request."""
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"only GET and HEAD are served here\n", headers=(("allow", "GET, HEAD"),))
        if request.path == "/livez":
            return Response(200, b"ok\n")
        if request.path == "/readyz":
            trouble = self._directory.trouble
            return Response(503, f"{trouble}\n".encode()) if trouble else Response(200, b"ok\n")
        if request.path == "/metrics":
            return Response(200, generate_latest(self._registry), CONTENT_TYPE)
        return Response(404, f"{request.path} is not served here; /livez, /readyz, /metrics are\n".encode())

    def collect(self) -> Iterator[Family]:
        """What a gateway has besides KV Connect's own numbers."""
        yield GaugeMetricFamily(
            "kvnode_gateway_held_count", "Operations that no node has answered yet.", self._backend.held_count
        )
        yield GaugeMetricFamily("kvnode_gateway_held_bytes", "Their size.", self._backend.held_bytes)
        yield GaugeMetricFamily(
            "kvnode_gateway_directory_followed",
            "1 while databases and tokens are followed at a node.",
            0 if self._directory.trouble else 1,
        )
