"""The HTTP server, behind one seam: handlers know requests and responses, nothing of the server.

It is granian (Rust, HTTP/1.1 and HTTP/2 on one port: by prior knowledge in plain text, by ALPN over TLS) embedded in
the node's own event loop through RSGI. What is particular about it stays in this file:

- It binds with SO_REUSEPORT, so a second process on the port would silently get half of the connections. The
  address is therefore tried without that option first.
- Its stop closes idle connections at once (GOAWAY on HTTP/2) but waits for every response that is still being made:
  the wait is bounded here, and long responses end before, by the `stopping` future.
- Its `backpressure` bounds connections, not requests: an idle one takes a place.
- It sets no bound on a body nor on the time a body takes; both are set here.
- It runs on a loop that is the process's only one; uvloop and asyncio both do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs

from granian.constants import Interfaces
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server

from kvnode.api.listen import free_address
from kvnode.base import limits
from kvnode.base.errors import ConfigError

_log = logging.getLogger(__name__)

_START_POLL_S = 0.005
_BODY_SWEEP_S = 1.0
# Without this granian configures the process's logging anew and closes the handlers that are there.
_LEAVE_LOGGING_ALONE = {"incremental": True, "formatters": {}, "handlers": {}, "loggers": {}}

TEXT = "text/plain; charset=utf-8"


class _Scope(Protocol):
    """The part of an RSGI scope that is used."""

    scheme: str
    method: str
    path: str
    query_string: str
    authority: str | None
    headers: Any


class _Protocol(Protocol):
    """The part of an RSGI HTTP protocol that is used."""

    async def __call__(self) -> bytes:
        """The whole body."""

    def __aiter__(self) -> Any:
        """The body's chunks."""

    async def client_disconnect(self) -> None:
        """Returns when the client has gone."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer."""

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Any:
        """Begin an answer."""


class HttpError(Exception):
    """Ends a request with this answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Request:
    """One request."""

    __slots__ = ("_bodies", "_protocol", "_scope")

    def __init__(self, scope: _Scope, protocol: _Protocol, bodies: _Bodies) -> None:
        self._scope = scope
        self._protocol = protocol
        self._bodies = bodies

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        return self._scope.method

    @property
    def path(self) -> str:
        """Without the query."""
        return self._scope.path

    @property
    def query(self) -> dict[str, str]:
        """The last value of each parameter; a bare `?name` is an empty string."""
        pairs = parse_qs(self._scope.query_string, keep_blank_values=True)
        return {name: values[-1] for name, values in pairs.items()}

    @property
    def origin(self) -> str:
        """scheme://host:port as the client wrote it; empty when it named no host."""
        host = self._scope.authority or self._scope.headers.get("host")
        return f"{self._scope.scheme}://{host}" if host else ""

    def header(self, name: str) -> str:
        """A header's value by its lower-case name; empty when absent."""
        value: str = self._scope.headers.get(name) or ""
        return value

    async def body(self, max_bytes: int) -> bytes:
        """The whole body. Raises HttpError: 413 too large, 408 too slow, 503 too many at a time."""
        return await self._bodies.read(self._scope, self._protocol, max_bytes)

    async def client_gone(self) -> None:
        """Returns when the client has closed its connection or stream."""
        await self._protocol.client_disconnect()


class Response(NamedTuple):
    """One response, whole."""

    status: int
    body: bytes
    content_type: str = TEXT


class Stream(NamedTuple):
    """A response of 200 in chunks, for as long as the client is there."""

    chunks: AsyncGenerator[bytes, None]
    content_type: str


Handle = Callable[[Request], Awaitable[Response | Stream]]


class Tls(NamedTuple):
    """PEM files."""

    certificate: Path
    key: Path


class HttpServer:
    """Serves `handle` on host:port.

    Args:
        handle: makes the response; HttpError is an answer, what else it raises becomes a 500.
        address: host:port; port 0 = a free one.
        tls: serve over TLS; None = plain text.
    """

    def __init__(self, handle: Handle, address: str, tls: Tls | None = None) -> None:
        self._handle = handle
        self._address = address
        self._tls = tls
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._bodies = _Bodies()
        self._stopping: asyncio.Future[None] | None = None

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises ConfigError when the address cannot be bound."""
        host, port = free_address(self._address)
        self._stopping = asyncio.get_running_loop().create_future()
        server = Server(
            self._answer,
            host,
            port,
            interface=Interfaces.RSGI,
            websockets=False,
            log_enabled=False,
            log_dictconfig=_LEAVE_LOGGING_ALONE,
            backlog=limits.HTTP_BACKLOG_COUNT,
            backpressure=limits.MAX_HTTP_CONNECTIONS_COUNT,
            http1_settings=HTTP1Settings(
                header_read_timeout=limits.HTTP_HEADER_TIMEOUT_MS, max_buffer_size=limits.MAX_HTTP_HEADER_BYTES
            ),
            http2_settings=HTTP2Settings(
                initial_connection_window_size=limits.HTTP2_CONNECTION_WINDOW_BYTES,
                initial_stream_window_size=limits.HTTP2_STREAM_WINDOW_BYTES,
                max_concurrent_streams=limits.MAX_HTTP2_STREAMS_COUNT,
                max_headers_size=limits.MAX_HTTP_HEADER_BYTES,
                keep_alive_interval=limits.HTTP2_KEEPALIVE_MS,
            ),
            ssl_cert=self._tls.certificate if self._tls else None,
            ssl_key=self._tls.key if self._tls else None,
        )
        self._task = asyncio.get_running_loop().create_task(server.serve(), name=f"http {self._address}")
        self._server = server
        while not server.wrks:
            if self._task.done():
                raise ConfigError(f"cannot serve HTTP on {self._address}: {self._task.exception()}")
            await asyncio.sleep(_START_POLL_S)
        self._bodies.start()
        return port

    async def stop(self) -> None:
        """Refuse what is new, end streams and finish what is under way, within SHUTDOWN_TIMEOUT_MS."""
        if self._server is None or self._task is None:
            return
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)
        self._server.stop()  # type: ignore[no-untyped-call]
        _, unfinished = await asyncio.wait({self._task}, timeout=limits.SHUTDOWN_TIMEOUT_MS / 1_000)
        for task in unfinished:
            _log.warning("HTTP responses on %s did not end in time and were cut", self._address)
            task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._bodies.stop()

    async def _answer(self, scope: _Scope, protocol: _Protocol) -> None:
        try:
            response = await self._handle(Request(scope, protocol, self._bodies))
        except HttpError as error:
            response = Response(error.status, error.text.encode())
        except Exception:
            _log.exception("%s %s failed", scope.method, scope.path)
            response = Response(500, b"An internal server error occurred; the node's log has the traceback.\n")
        headers = [("content-type", response.content_type), ("cache-control", "no-store")]
        if isinstance(response, Stream):
            await self._stream(response, protocol, headers)
            return
        body = b"" if scope.method == "HEAD" else response.body
        protocol.response_bytes(response.status, headers, body)

    async def _stream(self, response: Stream, protocol: _Protocol, headers: list[tuple[str, str]]) -> None:
        """Send chunks one by one until they, the client or the server come to an end."""
        gone = asyncio.ensure_future(protocol.client_disconnect())
        assert self._stopping is not None
        sending = asyncio.ensure_future(_send(response.chunks, protocol.response_stream(200, headers)))
        try:
            await asyncio.wait((sending, gone, self._stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            for outcome in await asyncio.gather(sending, gone, return_exceptions=True):
                if isinstance(outcome, Exception) and not gone.done():
                    _log.warning("a stream broke off: %r", outcome)
            await response.chunks.aclose()


async def _send(chunks: AsyncGenerator[bytes, None], transport: Any) -> None:
    async for chunk in chunks:
        await transport.send_bytes(chunk)


class _Bodies:
    """Reads bodies within bounds of size, time and number; slow senders are found by one sweep for all."""

    def __init__(self) -> None:
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._reserved_bytes = 0
        self._late: set[asyncio.Task[Any]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look for slow senders."""
        self._sweep = asyncio.get_running_loop().call_later(_BODY_SWEEP_S, self._find_slow)

    def stop(self) -> None:
        """Stop looking."""
        if self._sweep is not None:
            self._sweep.cancel()

    async def read(self, scope: _Scope, protocol: _Protocol, max_bytes: int) -> bytes:
        """See Request.body."""
        declared = scope.headers.get("content-length")
        size = max_bytes if declared is None else int(declared)  # the server has checked that it is a number
        if size > max_bytes:
            raise _too_large(max_bytes)
        if self._reserved_bytes + size > limits.MAX_HTTP_BODIES_BYTES:
            raise HttpError(503, "The server is temporarily unavailable, try again later: it reads too many bodies.")
        task = asyncio.current_task()
        assert task is not None
        self._reserved_bytes += size
        self._reading[task] = asyncio.get_running_loop().time() + limits.HTTP_BODY_TIMEOUT_MS / 1_000
        try:
            return await (protocol() if declared is not None else _bounded(protocol, max_bytes))
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise HttpError(
                408, f"The body did not arrive within {limits.HTTP_BODY_TIMEOUT_MS} ms: send it at once.\n"
            ) from None
        finally:
            del self._reading[task]
            self._reserved_bytes -= size

    def _find_slow(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task, deadline in self._reading.items():
            if deadline < now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._sweep = loop.call_later(_BODY_SWEEP_S, self._find_slow)


async def _bounded(protocol: _Protocol, max_bytes: int) -> bytes:
    """A body that did not say its size."""
    chunks: list[bytes] = []
    total = 0
    async for chunk in protocol:
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"The body is larger than {max_bytes} bytes: split the transaction.\n")
