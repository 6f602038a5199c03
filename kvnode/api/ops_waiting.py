"""The operator's port of a node that belongs to no cluster yet: it lives, and says what it waits for.

Without it probes would find nobody, as if the process were dead, and an orchestrator would restart for ever what only
waits for the other nodes, or for somebody who takes it in.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.api.http import HttpServer, Request, Response


class WaitingOps:
    """Serves it until the node itself does.

    Args:
        address: host:port to listen on; port 0 = a free one.
        reason: what the node waits for, as of now.
    """

    def __init__(self, address: str, reason: Callable[[], str]) -> None:
        self._reason = reason
        self._http = HttpServer(self.handle, address)

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises ConfigError when the address cannot be bound."""
        return await self._http.start()

    async def stop(self) -> None:
        """Leave the port to the node."""
        await self._http.stop()

    async def handle(self, request: Request) -> Response:
        """The response to one request."""
        if request.path not in ("/livez", "/readyz", "/metrics"):
            return Response(404, f"{request.path} is not served here; /livez, /readyz are\n".encode())
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"only GET and HEAD are served here\n", headers=(("allow", "GET, HEAD"),))
        if request.path == "/livez":
            return Response(200, b"ok\n")
        return Response(503, f"this node belongs to no cluster yet: {self._reason()}\n".encode())
