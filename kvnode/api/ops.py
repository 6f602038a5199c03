"""The operator's port: /livez, /readyz, /metrics.

Both probes answer 200 or 503 with the reason as text. `live` means that the process must not be restarted:
it fails only once the node has failed for good. `ready` means that operations sent here are served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client.registry import Collector

from kvnode.api.http import HttpServer, Request, Response
from kvnode.api.metrics import CONTENT_TYPE, Metrics
from kvnode.api.ports import ServedNode
from kvnode.base import limits


class Check(NamedTuple):
    """One line of `/readyz?verbose`."""

    name: str
    passed: bool
    detail: str


class OpsServer:
    """Serves the operator's port of a node.

    Args:
        node: who is asked.
        address: host:port to listen on; port 0 = a free one.
        collectors: whose metrics are shown besides the node's.
    """

    def __init__(self, node: ServedNode, address: str, collectors: Sequence[Collector] = ()) -> None:
        self._node = node
        self._metrics = Metrics(node, collectors)
        self._http = HttpServer(self.handle, address)

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises ConfigError when the address cannot be bound."""
        return await self._http.start()

    async def stop(self) -> None:
        """Stop serving."""
        await self._http.stop()

    async def handle(self, request: Request) -> Response:
        """The response to one request."""
        routes = {"/livez": self._live, "/readyz": self._ready, "/metrics": self._show_metrics}
        route = routes.get(request.path)
        if route is None:
            return Response(404, f"{request.path} is not served here; {', '.join(routes)} are\n".encode())
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"only GET and HEAD are served here\n", headers=(("allow", "GET, HEAD"),))
        return route(request)

    def _live(self, _request: Request) -> Response:
        if self._node.failed.done():
            return Response(503, f"the node has failed: {self._node.failed.result()}\n".encode())
        return Response(200, b"ok\n")

    def _ready(self, request: Request) -> Response:
        ready, reason = self._node.ready
        lines = [reason]
        if "verbose" in request.query:
            lines = [f"[{'+' if c.passed else '-'}] {c.name}: {c.detail}" for c in self._checks(ready, reason)]
        return Response(200 if ready else 503, "".join(f"{line}\n" for line in lines).encode())

    def _checks(self, ready: bool, reason: str) -> list[Check]:
        status = self._node.status()
        behind = max(0, status.commit_index - status.applied_index)
        leader = next((member.name for member in status.members if member.node_id == status.leader_id), "")
        return [
            Check("alive", not self._node.failed.done(), "the node has not failed"),
            Check("leader", status.leader_id != 0, f"the leader is {leader or 'not known'}"),
            Check("applied", behind <= limits.MAX_BATCH_TRANSACTIONS_COUNT, f"{behind} committed entries to apply"),
            Check("healthy", not status.problems, "; ".join(status.problems) or "no problems seen"),
            Check("ready", ready, reason),
        ]

    def _show_metrics(self, _request: Request) -> Response:
        return Response(200, self._metrics.text(), CONTENT_TYPE)
