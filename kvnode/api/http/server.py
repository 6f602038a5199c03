"""The HTTP server: one port for HTTP/1.1 and HTTP/2 (by prior knowledge), in plain text or over TLS with ALPN.

Measured with a handler that reads 60 bytes and answers 300, 64 connections, CPU for each request: granian 35 us over
HTTP/1.1 (two crossings between its threads and the loop, and the interpreter's lock with each), http1.py 15 us.
Hence HTTP/1.1 is answered by the loop itself. HTTP/2 in pure Python would cost 200 us; there granian is far ahead. What
its clients ask again and again need not be parsed, and does not go through it (http2_direct.py).
"""

from __future__ import annotations

import asyncio
import logging
import ssl

from kvnode.api.http.http1 import Connection, Connections
from kvnode.api.http.http2 import Http2Server
from kvnode.api.http.http2_pipe import Pipe
from kvnode.api.http.messages import BodyBudget, Handle, TakeWhole, Tls
from kvnode.api.listen import free_address
from kvnode.base import limits
from kvnode.base.errors import ConfigError

_log = logging.getLogger(__name__)

_STOP_POLL_S = 0.005


class HttpServer:
    """Serves `handle` on host:port.

    Args:
        handle: makes the response; HttpError is an answer, what else it raises becomes a 500.
        address: host:port; port 0 = a free one.
        tls: serve over TLS; None = plain text.
        http2: whether HTTP/2 is spoken too.
        take_whole: may answer a whole request by callback; None = nobody does.
    """

    def __init__(
        self,
        handle: Handle,
        address: str,
        tls: Tls | None = None,
        *,
        http2: bool = False,
        take_whole: TakeWhole | None = None,
    ) -> None:
        scheme = "https" if tls else "http"
        budget = BodyBudget()
        self._address = address
        self._tls = tls
        self._http2 = Http2Server(handle, scheme, budget, take_whole) if http2 else None
        self._pipes: set[Pipe] = set()
        self._connections = Connections(handle, scheme, budget, self._take_over if http2 else None, take_whole)
        self._listener: asyncio.Server | None = None

    @property
    def connections_count(self) -> int:
        """Open connections."""
        return len(self._connections.open) + len(self._pipes)

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises ConfigError when the address cannot be bound."""
        context = None if self._tls is None else _tls_context(self._tls, http2=self._http2 is not None)
        host, port = free_address(self._address)
        if self._http2 is not None:
            await self._http2.start()
        self._connections.start()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._accept,
                host,
                port,
                backlog=limits.HTTP_BACKLOG_COUNT,
                ssl=context,
                ssl_handshake_timeout=None if context is None else limits.HTTP_HEADER_TIMEOUT_MS / 1_000,
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._address}: {error.strerror or error}") from error
        return port

    async def stop(self) -> None:
        """Refuse what is new, end streams and finish what is under way, within half of SHUTDOWN_TIMEOUT_MS.

        The other half is for what is stopped behind this: a client that does not answer must not use it up.
        """
        if self._listener is not None:
            self._listener.close()
        timeout_s = limits.SHUTDOWN_TIMEOUT_MS / 2_000
        end_s = asyncio.get_running_loop().time() + timeout_s
        work = [self._connections.stop(timeout_s)]
        if self._http2 is not None:
            work.append(self._http2.stop(timeout_s))
        if not all(await asyncio.gather(*work)):
            _log.warning("HTTP responses on %s did not end in time and were cut", self._address)
        while self._pipes and asyncio.get_running_loop().time() < end_s:
            await asyncio.sleep(_STOP_POLL_S)  # what was answered past granian, and what is not read yet
        for pipe in list(self._pipes):
            pipe.close()

    def _accept(self) -> Connection:
        return Connection(self._connections)

    def _take_over(self, transport: asyncio.Transport, first: bytes) -> None:
        assert self._http2 is not None
        http2 = self._http2
        pipe = Pipe(transport, first, http2.socket, http2.unread, http2.direct, self._pipe_ended)
        self._pipes.add(pipe)
        self._connections.handed_over_count = len(self._pipes)

    def _pipe_ended(self, pipe: Pipe) -> None:
        self._pipes.discard(pipe)
        self._connections.handed_over_count = len(self._pipes)


def _tls_context(tls: Tls, *, http2: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use {tls.certificate} with {tls.key} for TLS: {error}") from error
    return context
