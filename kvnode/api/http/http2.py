"""HTTP/2 by granian (Rust, hyper), embedded in the node's loop through RSGI, behind a socket of its own.

http1.py takes in every connection and hands over those that begin with HTTP/2's preface; a pipe (http2_pipe.py) then
carries their bytes to granian and back. What is particular about granian stays in this file:

- It would listen by itself, with SO_REUSEPORT, and not say when a port is taken. Here it listens on a Unix socket
  whose name is gone once it is bound: this process alone still reaches it, by its descriptor.
- It does not say when it serves: its workers are looked for.
- Its stop tells clients to go (GOAWAY) and waits for every response that is still being made: the wait is bounded
  here, and long responses end before, by the `stopping` future.
- It takes a body whose stream the client resets without an error for whole: a declared length is compared here.
- It takes whatever it is given of a response, however little its client reads: unread.py bounds that.
- It sets no bound on a body nor on the time a body takes; both are set here.
- It runs a coroutine for each request, and asks for a scope that costs as much again: most requests of a client that
  repeats itself are taken out before they reach it (http2_direct.py).
- Without `_LEAVE_LOGGING_ALONE` it configures the process's logging anew and closes the handlers that are there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Any, Protocol

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP2Settings
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]  # as its documentation has it
from granian.server.embed import Server

from kvnode.api.http.http2_direct import DirectServer
from kvnode.api.http.http2_frames import MARK, MARK_BYTES
from kvnode.api.http.known_heads import KnownHead, KnownHeads
from kvnode.api.http.large_body import LargeBody
from kvnode.api.http.messages import (
    INTERNAL_ERROR,
    BodyBudget,
    Handle,
    HttpError,
    Response,
    Stream,
    TakeWhole,
    Unanswered,
    parse_query,
    too_large,
    too_slow,
)
from kvnode.api.http.unread import Account, Unread
from kvnode.base import limits
from kvnode.base.errors import ConfigError

_log = logging.getLogger(__name__)

# A socket's path has 107 bytes at most, and some of them are the folder's own and the socket's names.
_MAX_PLACE_BYTES = 107 - len("/kvnode-http2-12345678/socket")
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_START_POLL_S = 0.005
_BODY_SWEEP_S = 1.0
_LEAVE_LOGGING_ALONE = {"incremental": True, "formatters": {}, "handlers": {}, "loggers": {}}


class _Scope(Protocol):
    """The part of an RSGI scope that is used."""

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

    def client_disconnect(self) -> Awaitable[None]:
        """Returns when the client has gone."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer."""

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Any:
        """Begin an answer."""


class Http2Server:
    """Serves HTTP/2 connections that others have accepted.

    Args:
        handle: makes the responses.
        scheme: http or https, as the client sees it.
        budget: of the bodies being read.
        take_whole: may answer a request with a head like one before by callback; None = nobody does.
    """

    def __init__(self, handle: Handle, scheme: str, budget: BodyBudget, take_whole: TakeWhole | None = None) -> None:
        self._handle = handle
        self._take_whole = take_whole
        self._known = KnownHeads()
        self.direct = DirectServer(handle, scheme, budget, take_whole)
        self._scheme = scheme
        self._bodies = _Bodies(budget)
        self.unread = Unread()
        self.socket = ""  # where it listens
        self._inode = -1
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Serve. Raises ConfigError."""
        loop = asyncio.get_running_loop()
        self._stopping = loop.create_future()
        folder = _folder()
        path = Path(folder.name, "socket")
        server = Server(
            self._answer,
            uds=path,
            interface=Interfaces.RSGI,
            http=HTTPModes.http2,
            websockets=False,
            log_enabled=False,
            log_dictconfig=_LEAVE_LOGGING_ALONE,
            backlog=limits.HTTP_BACKLOG_COUNT,
            backpressure=limits.MAX_HTTP_CONNECTIONS_COUNT,
            http2_settings=HTTP2Settings(
                initial_connection_window_size=limits.HTTP2_CONNECTION_WINDOW_BYTES,
                initial_stream_window_size=limits.HTTP2_STREAM_WINDOW_BYTES,
                max_concurrent_streams=limits.MAX_HTTP2_STREAMS_COUNT,
                max_headers_size=limits.MAX_HTTP_HEADER_BYTES + MARK_BYTES,
                keep_alive_interval=limits.HTTP2_KEEPALIVE_MS,
            ),
        )
        self._task = loop.create_task(server.serve(), name="http/2")
        self._server = server
        while not server.wrks or not path.exists():  # noqa: ASYNC240 (a few microseconds, at the start)
            if self._task.done():
                folder.cleanup()
                raise ConfigError(f"cannot serve HTTP/2: {self._task.exception()}")
            await asyncio.sleep(_START_POLL_S)
        self._inode = os.open(path, os.O_PATH)
        folder.cleanup()  # a process that is killed leaves nothing behind
        self.socket = f"/proc/self/fd/{self._inode}"
        self._bodies.start()
        self.unread.start()
        self.direct.start()

    async def stop(self, timeout_s: float) -> bool:
        """End streams and finish what is under way; False when it did not end in time and was cut."""
        if self._server is None or self._task is None:
            return True
        self.direct.stopping = True
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)
        self._server.stop()  # type: ignore[no-untyped-call]
        self._server = None
        _, unfinished = await asyncio.wait({self._task}, timeout=timeout_s)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._bodies.stop()
        self.unread.stop()
        self.direct.stop()
        if self._inode >= 0:
            os.close(self._inode)
        return not unfinished

    async def _answer(self, scope: _Scope, protocol: _Protocol) -> None:
        request = _Request(scope, protocol, self._bodies, self._scheme)
        try:
            response = await self._respond(request, scope)
        except HttpError as error:
            response = Response(error.status, error.text.encode())
        except Unanswered:
            return
        except Exception:
            _log.exception("%s %s failed", scope.method, scope.path)
            response = INTERNAL_ERROR
        if isinstance(response, Stream):
            await self._stream(response, request, protocol, _headers(response))
            return
        if scope.method == "HEAD":
            response = response._replace(body=b"")
        account = None
        if len(response.body) > limits.HTTP2_UNCOUNTED_BYTES:
            found = self.unread.find(request.header(MARK))
            if found is not None:
                connection, stream = found
                response, account = connection.reserve(stream, response)
        body = response.body
        if isinstance(body, bytes):
            protocol.response_bytes(response.status, _headers(response), body)
        elif account is not None:  # else its client has gone
            headers = [*_headers(response), ("content-length", str(len(body)))]
            await _send_large(body, protocol.response_stream(response.status, headers), account)

    async def _respond(self, request: _Request, scope: _Scope) -> Response | Stream:
        if self._take_whole is None or scope.method != "POST":
            return await self._handle(request)
        fields = _fields_of(scope)
        key = (scope.path, scope.query_string, scope.authority, fields)
        head = self._known.get(key)
        if head is None:
            response = await self._handle(request)
            if isinstance(response, Response) and response.status == 200 and _may_be_remembered(fields):
                self._learn(request, self._known.remember(key, _target(scope), _as_bytes(fields, scope.authority)))
            return response
        self._learn(request, head)
        whole = _WholeRequest(request, head, await request.body(head.body_bytes))
        if not self._take_whole(whole):
            return await self._handle(whole)
        answer = await whole.answer
        return answer if isinstance(answer, Response) else await answer(whole)

    def _learn(self, request: _Request, head: KnownHead) -> None:
        """Whoever sends that head again need not come here (http2_direct.py)."""
        if (found := self.unread.find(request.header(MARK))) is not None:
            connection, stream = found
            connection.learn(stream, head)

    async def _stream(
        self, response: Stream, request: _Request, protocol: _Protocol, headers: list[tuple[str, str]]
    ) -> None:
        """Send chunks one by one, as the client reads them, until they, it or the server come to an end."""
        found = self.unread.find(request.header(MARK))
        if found is None:
            await response.chunks.aclose()
            return
        connection, stream = found
        account = connection.open(stream, whole=False)
        gone = _task_of(protocol.client_disconnect())
        assert self._stopping is not None
        sending = asyncio.ensure_future(_send(response.chunks, protocol.response_stream(200, headers), account))
        try:
            await asyncio.wait((sending, gone, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            client_left = gone.done()
        finally:
            for task in (sending, gone):
                task.cancel()
            outcome, _ = await asyncio.gather(sending, gone, return_exceptions=True)
            connection.end(stream)
            await response.chunks.aclose()
        if isinstance(outcome, Exception) and not client_left:
            _log.warning("a stream broke off: %r", outcome)


def _folder() -> tempfile.TemporaryDirectory[str]:
    """One for the socket: where temporary files belong, or where its path is short enough. Raises ConfigError."""
    failure: OSError | None = None
    for place in (tempfile.gettempdir(), *_SHORT_PLACES):
        if len(os.fsencode(place)) > _MAX_PLACE_BYTES:
            continue
        try:
            return tempfile.TemporaryDirectory(prefix="kvnode-http2-", dir=place, ignore_cleanup_errors=True)
        except OSError as error:
            failure = failure or error
    raise ConfigError(
        f"cannot serve HTTP/2: no folder for its socket can be made ({failure}); set TMPDIR to a writable one whose "
        f"path has at most {_MAX_PLACE_BYTES} bytes"
    )


def _headers(response: Response | Stream) -> list[tuple[str, str]]:
    return [("content-type", response.content_type), ("cache-control", "no-store"), *response.headers]


def _task_of(awaitable: Awaitable[None]) -> asyncio.Task[None]:
    """A task that awaits one of granian's: they look like futures and are none, asyncio.gather never ends with one."""

    async def awaited() -> None:
        await awaitable

    return asyncio.get_running_loop().create_task(awaited())


async def _send(chunks: AsyncGenerator[bytes, None], transport: Any, account: Account) -> None:
    async for chunk in chunks:
        await account.room()  # others may have used it up while this one waited for something to send
        account.hand(len(chunk))
        try:
            await transport.send_bytes(chunk)
        except ProtocolClosed:  # the client has left, and its task that waits for that has not heard yet
            return
        await account.room()  # before the next one is made: what it shows is then as new as can be


async def _send_large(body: LargeBody, transport: Any, account: Account) -> None:
    """All of it is counted as unread already; granian is given no more than the client is about to take."""
    left_bytes = len(body)
    async for piece in body.pieces():
        left_bytes -= len(piece)
        try:
            await transport.send_bytes(piece)
        except ProtocolClosed:
            return
        await account.room(left_bytes)
        if account.ended:
            return


def _fields_of(scope: _Scope) -> tuple[tuple[str, str], ...]:
    """The headers that the client has sent, in their order; the mark is behind them."""
    fields = tuple(scope.headers.items())
    if fields and fields[-1][0] == MARK:
        return fields[:-1]
    return tuple(field for field in fields if field[0] != MARK)


class _Request:
    """One request (messages.Request)."""

    __slots__ = ("_bodies", "_protocol", "_scheme", "_scope", "method", "path")

    def __init__(self, scope: _Scope, protocol: _Protocol, bodies: _Bodies, scheme: str) -> None:
        self._scope = scope
        self._protocol = protocol
        self._bodies = bodies
        self._scheme = scheme
        self.method = scope.method
        self.path = scope.path

    @property
    def query(self) -> dict[str, str]:
        """See Request."""
        return parse_query(self._scope.query_string)

    @property
    def origin(self) -> str:
        """See Request."""
        host = self._scope.authority or self._scope.headers.get("host")
        return f"{self._scheme}://{host}" if host else ""

    def header(self, name: str) -> str:
        """See Request."""
        value: str = self._scope.headers.get(name) or ""
        return value

    async def body(self, max_bytes: int) -> bytes:
        """See Request."""
        return await self._bodies.read(self._scope, self._protocol, max_bytes)

    async def client_gone(self) -> None:
        """See Request."""
        await self._protocol.client_disconnect()


class _WholeRequest:
    """A request whose body is there: messages.WholeRequest."""

    __slots__ = ("_request", "answer", "content", "head")

    def __init__(self, request: _Request, head: KnownHead, content: bytes) -> None:
        self._request = request
        self.head = head
        self.content = content
        # The answer, or the handler that is to make it.
        self.answer: asyncio.Future[Response | Handle] = asyncio.get_running_loop().create_future()

    @property
    def method(self) -> str:
        """See Request."""
        return self._request.method

    @property
    def path(self) -> str:
        """See Request."""
        return self._request.path

    @property
    def query(self) -> dict[str, str]:
        """See Request."""
        return self._request.query

    @property
    def origin(self) -> str:
        """See Request."""
        return self._request.origin

    def header(self, name: str) -> str:
        """See Request."""
        return self._request.header(name)

    async def body(self, max_bytes: int) -> bytes:
        """See Request."""
        if len(self.content) > max_bytes:
            raise too_large(max_bytes)
        return self.content

    async def client_gone(self) -> None:
        """See Request."""
        await self._request.client_gone()

    def respond(self, response: Response) -> None:
        """See WholeRequest."""
        if not self.answer.done():
            self.answer.set_result(response)

    def serve_by(self, handle: Handle) -> None:
        """See WholeRequest."""
        if not self.answer.done():
            self.answer.set_result(handle)


def _may_be_remembered(fields: tuple[tuple[str, str], ...]) -> bool:
    """A small head, and a body that is read before its sender is judged in any case."""
    declared = next((value for name, value in fields if name == "content-length"), "")
    head_bytes = sum(len(name) + len(value) for name, value in fields)
    is_small = bool(declared) and _length(declared) <= limits.HTTP_READ_AHEAD_BYTES
    return is_small and head_bytes <= limits.MAX_KNOWN_HEAD_BYTES


def _target(scope: _Scope) -> bytes:
    return (f"{scope.path}?{scope.query_string}" if scope.query_string else scope.path).encode()


def _as_bytes(fields: tuple[tuple[str, str], ...], authority: str | None) -> dict[bytes, bytes]:
    headers = {name.encode(): value.encode() for name, value in fields}
    if authority:
        headers[b"host"] = authority.encode()
    return headers


class _Bodies:
    """Reads bodies within bounds of size and time; slow senders are found by one sweep for all."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._reading: dict[asyncio.Task[Any], float] = {}
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
        size = None if declared is None else _length(declared)
        if size is not None and size > max_bytes:
            raise too_large(max_bytes)
        task = asyncio.current_task()
        assert task is not None
        self._reading[task] = asyncio.get_running_loop().time() + limits.HTTP_BODY_TIMEOUT_MS / 1_000
        try:
            if size is not None and size <= limits.HTTP_READ_AHEAD_BYTES:
                return await self._at_once(protocol, size)
            return await self._by_chunks(protocol, max_bytes, size)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise too_slow() from None
        except ProtocolClosed:  # its client has gone in the middle of it
            raise Unanswered from None
        finally:
            del self._reading[task]

    async def _at_once(self, protocol: _Protocol, size: int) -> bytes:
        try:
            self._budget.reserve(size)
            return _whole(await protocol(), size)
        finally:
            self._budget.release(size)

    async def _by_chunks(self, protocol: _Protocol, max_bytes: int, size: int | None) -> bytes:
        """A body that is large, or did not say its size: it takes of the budget what has come of it."""
        chunks: list[bytes] = []
        total = 0
        try:
            async for chunk in protocol:
                total += len(chunk)
                self._budget.reserve(len(chunk))
                if total > max_bytes:
                    raise too_large(max_bytes)
                chunks.append(chunk)
            return _whole(b"".join(chunks), size)
        finally:
            self._budget.release(total)

    def _find_slow(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task, deadline in self._reading.items():
            if deadline < now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._sweep = loop.call_later(_BODY_SWEEP_S, self._find_slow)


def _whole(body: bytes, size: int | None) -> bytes:
    """The body, if it is of its declared size. Granian takes a stream that is reset without an error for ended."""
    if size is not None and len(body) != size:
        raise HttpError(400, "The body ended before its length: send the request again.\n")
    return body


def _length(declared: str) -> int:
    if not declared.isascii() or not declared.isdigit():
        raise HttpError(400, "The content-length is no number.\n")
    return int(declared)
