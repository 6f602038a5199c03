"""The HTTP server, behind one seam: handlers know requests and responses, nothing of the server.

It is granian (Rust, HTTP/1.1 and h2c on one port) embedded in the node's own event loop through RSGI. What is
particular about it stays in this file:

- It binds with SO_REUSEPORT, so a second process on the port would silently get half of the connections. The
  address is therefore tried without that option first.
- Its stop closes idle connections at once but waits for every response that is still being made: the
  wait is bounded here, and long responses must end by themselves before.
- It runs on a loop that is the process's only one; uvloop and asyncio both do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs

from granian.constants import Interfaces
from granian.server.embed import Server

from kvnode.api.listen import free_address
from kvnode.base import limits
from kvnode.base.errors import ConfigError

_log = logging.getLogger(__name__)

_START_POLL_S = 0.005
# Without this granian configures the process's logging anew and closes the handlers that are there.
_LEAVE_LOGGING_ALONE = {"incremental": True, "formatters": {}, "handlers": {}, "loggers": {}}


class Request(NamedTuple):
    """One request. `query` has the last value of each parameter; a bare `?name` is an empty string."""

    method: str
    path: str
    query: dict[str, str]


class Response(NamedTuple):
    """One response, whole."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Handle = Callable[[Request], Awaitable[Response]]


class _Scope(Protocol):
    """The part of an RSGI scope that is used."""

    proto: str
    method: str
    path: str
    query_string: str


class _Protocol(Protocol):
    """The part of an RSGI HTTP protocol that is used."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer."""


class HttpServer:
    """Serves `handle` on host:port.

    Args:
        handle: makes the response; what it raises becomes a 500.
        address: host:port; port 0 = a free one.
    """

    def __init__(self, handle: Handle, address: str) -> None:
        self._handle = handle
        self._address = address
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises ConfigError when the address cannot be bound."""
        host, port = free_address(self._address)
        server = Server(
            self._answer,
            host,
            port,
            interface=Interfaces.RSGI,
            websockets=False,
            log_enabled=False,
            log_dictconfig=_LEAVE_LOGGING_ALONE,
        )
        self._task = asyncio.get_running_loop().create_task(server.serve(), name=f"http {self._address}")
        self._server = server
        while not server.wrks:
            if self._task.done():
                raise ConfigError(f"cannot serve HTTP on {self._address}: {self._task.exception()}")
            await asyncio.sleep(_START_POLL_S)
        return port

    async def stop(self) -> None:
        """Refuse what is new and finish what is under way, within SHUTDOWN_TIMEOUT_MS."""
        if self._server is None or self._task is None:
            return
        self._server.stop()  # type: ignore[no-untyped-call]
        _, unfinished = await asyncio.wait({self._task}, timeout=limits.SHUTDOWN_TIMEOUT_MS / 1_000)
        for task in unfinished:
            _log.warning("HTTP responses on %s did not end in time and were cut", self._address)
            task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _answer(self, scope: _Scope, protocol: _Protocol) -> None:
        pairs = parse_qs(scope.query_string, keep_blank_values=True)
        request = Request(scope.method, scope.path, {name: values[-1] for name, values in pairs.items()})
        try:
            response = await self._handle(request)
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            response = Response(500, b"internal error; the node's log has the traceback\n")
        headers = [("content-type", response.content_type), ("cache-control", "no-store")]
        body = b"" if request.method == "HEAD" else response.body
        protocol.response_bytes(response.status, headers, body)
