"""HTTP/1.1 on asyncio transports: httptools (llhttp) parses, this file frames, bounds and answers.

Theory of operation. A connection parses whatever arrives into exchanges and answers them one after the other, in
their order: pipelined requests wait, and nothing more is read while one waits. Each exchange runs its handler in one
task. A request that comes whole behind a head that is known (known_heads.py) is not parsed, and first offered to
`take_whole`, which may answer it without a task. An upgrade that a request offers is ignored, its body is not
(upgrades.py). A body is kept as it arrives; above HTTP_READ_AHEAD_BYTES nothing more is read until the handler has
asked for it, and so has judged its sender. An idle connection stays open, because a client that reuses one that is just
being closed sees an error; only when there are too many is the one longest idle closed.

A connection ends: after an answer that says so (the client or HTTP/1.0 wants it, the body was not read whole, the
server stops); after a request that cannot be parsed or is too slow; when the client does not read its answer. Before
it is closed under a body that is still coming in, what comes is thrown away for a while: a reset would destroy the
answer on its way. Deadlines are looked for by one sweep of all connections each second. It makes the Date header, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import cast

import httptools

from kvnode.api.http.exchange import Exchange, WholeExchange
from kvnode.api.http.known_heads import END, KnownHeads
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
    head_too_large,
    refuse_head,
    too_slow,
)
from kvnode.api.http.upgrades import BehindHead
from kvnode.base import limits

_log = logging.getLogger(__name__)

SWEEP_S = 1.0
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_HTTP2 = b"PRI * HTTP/2.0"  # how its connections begin
_NEVER = float("inf")


class Connections:
    """What the connections of one server share.

    Args:
        handle: makes the responses.
        scheme: http or https.
        budget: of the bodies being read.
        take_over: given a connection that speaks HTTP/2, and its first bytes; None = HTTP/2 is not spoken.
        take_whole: may answer a whole request without a task; None = nobody does.
    """

    def __init__(
        self,
        handle: Handle,
        scheme: str,
        budget: BodyBudget,
        take_over: Callable[[asyncio.Transport, bytes], None] | None,
        take_whole: TakeWhole | None = None,
    ) -> None:
        self.handle = handle
        self.take_whole = take_whole
        self.known = KnownHeads()
        self.scheme = scheme
        self.budget = budget
        self.take_over = take_over
        self.open: set[Connection] = set()
        self.idle: dict[Connection, None] = {}  # the one longest idle first
        self.handed_over_count = 0  # connections that speak HTTP/2
        self.stopping = False
        self.loop = asyncio.get_running_loop()  # asking for it at each use costs a system call
        self.now = self.loop.time()  # as of the last sweep: exact enough for deadlines
        self._heads: dict[tuple[int, str], bytes] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to look for what is late."""
        self._tick()

    async def stop(self, timeout_s: float) -> bool:
        """Close what is idle and wait for what is not; False when it did not end in time and was cut."""
        self.stopping = True
        for connection in list(self.open):
            connection.drain()
        if self.open:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._drained,), timeout=timeout_s)
        drained = not self.open
        for connection in list(self.open):
            connection.cut()
        if self._sweep is not None:
            self._sweep.cancel()
        return drained

    def opened(self, connection: Connection) -> bool:
        """Count one in. The one longest idle makes room for it; False = there is none, and no room."""
        full = len(self.open) + self.handed_over_count >= limits.MAX_HTTP_CONNECTIONS_COUNT
        if full:
            if not self.idle:
                return False
            next(iter(self.idle)).close()
        self.open.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        """Count one out."""
        self.open.discard(connection)
        self.idle.pop(connection, None)
        if not self.open and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def head(self, response: Response | Stream) -> bytes:
        """Status line and headers without those that tell lengths; kept until the next second."""
        status = response.status if isinstance(response, Response) else 200
        key = (status, response.content_type)
        head = self._heads.get(key)
        if head is None:
            reason = _REASONS.get(status, "")
            head = (
                f"HTTP/1.1 {status} {reason}\r\ncontent-type: {response.content_type}\r\n"
                f"cache-control: no-store\r\ndate: {formatdate(usegmt=True)}\r\n"
            ).encode("latin-1")
            self._heads[key] = head
        return head

    def _tick(self) -> None:
        self._heads.clear()
        now = self.now = self.loop.time()
        for connection in list(self.open):
            if connection.deadline < now:
                connection.expired()
        self._sweep = self.loop.call_later(SWEEP_S, self._tick)


class Connection(asyncio.Protocol):
    """One connection. `deadline` is in the loop's time."""

    def __init__(self, shared: Connections) -> None:
        self.shared = shared
        self.deadline = _NEVER
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._arriving: Exchange | None = None
        self._serving: Exchange | WholeExchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._in_head = False
        self._head_bytes = 0
        self._writable: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._is_gone = False
        self._last = False  # close after the answer under way
        self._lingering = False
        self._sniffing = shared.take_over is not None
        self._first = b""
        self._unsent_bytes = 0
        self._rest: LargeBody | None = None  # of the answer

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it
        if self.shared.opened(self):
            self._await_request()
        else:
            self._refuse(503, "This server has as many connections as it may; try again later.\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over; whoever waits for it learns so."""
        del exc
        self.shared.closed(self)
        self._client_left()
        if self._serving is not None:
            self._serving.fail(HttpError(400, "The connection broke."))
        self.resume_writing()  # or who waits until it may be written would wait for ever, and hold the loop
        self._transport = None

    def eof_received(self) -> bool:
        """The client will send no more; what it has asked for is still answered."""
        self._client_left()
        if self._serving is not None and self._serving is self._arriving:
            self._serving.fail(HttpError(400, "The body ended before its length.\n"))
        return self._serving is not None and self.shared.scheme == "http"  # TLS knows no half-closed connections

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._lingering:
            return
        if self._sniffing:
            data = self._sniff(data)
            if not data:
                return
        between = self._serving is None and self._arriving is None
        if between and self._take_known(data):
            return
        try:
            if self._in_head:
                self._parse_in_head(data)
            else:
                self._parser.feed_data(data)
            if between and isinstance(self._serving, Exchange) and self._serving.complete and not self._waiting:
                self._serving.came_at_once(data)
        except HttpError as error:
            self._refuse(error.status, error.text)
        except httptools.HttpParserUpgrade as offered:
            self._parse_behind_head(memoryview(data)[offered.args[0] :])
        except httptools.HttpParserError as error:
            self._malformed(str(error))

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        assert self._transport is not None
        self._writable = asyncio.get_running_loop().create_future()
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._set_deadline(limits.HTTP_SEND_TIMEOUT_MS)

    def resume_writing(self) -> None:
        """It has caught up."""
        self.deadline = _NEVER
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # What the parser says.

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._arriving = Exchange(self)
        self._in_head = True
        self._head_bytes = 0
        self.shared.idle.pop(self, None)
        if self._serving is None:
            self._set_deadline(limits.HTTP_HEADER_TIMEOUT_MS)

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        assert self._arriving is not None
        self._arriving.add_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. The parser leaves the blanks behind a value, which are no part of it (RFC 9112, section 5.1)."""
        assert self._arriving is not None
        self._arriving.add_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        exchange = self._arriving
        assert exchange is not None and self._transport is not None
        parser = self._parser
        exchange.method = parser.get_method().decode("latin-1")
        exchange.keep_alive = parser.should_keep_alive()
        exchange.modern = parser.get_http_version() != "1.0"
        if self._serving is None:
            self._serve(exchange)
        else:
            self._waiting.append(exchange)
            self._transport.pause_reading()

    def on_body(self, chunk: bytes) -> None:
        """A part of its body."""
        assert self._arriving is not None and self._transport is not None
        if not self._arriving.add_body(chunk):
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The request is whole."""
        assert self._arriving is not None
        if self._arriving is self._serving:
            self.deadline = _NEVER
        self._arriving.end()
        self._arriving = None

    # What an exchange says.

    def respond(self, exchange: WholeExchange, response: Response) -> None:
        """See Carrier."""
        self._write(response, head_only=False)
        if self._writable is None and self._rest is None:
            self._answered(exchange)
        else:
            self._task = self.shared.loop.create_task(self._finish(exchange))

    def serve_by(self, exchange: WholeExchange, handle: Handle) -> None:
        """See Carrier."""
        self._task = self.shared.loop.create_task(self._run(exchange, handle))

    def wants_body(self, expects_continue: bool) -> None:
        """The handler waits for the rest of the body."""
        if self._transport is None or self._is_gone:
            raise HttpError(400, "The connection broke.")
        if expects_continue:
            self._transport.write(_CONTINUE)
        self._set_deadline(limits.HTTP_BODY_TIMEOUT_MS)
        self._transport.resume_reading()

    async def gone(self) -> None:
        """Returns when the client has gone."""
        if self._is_gone:
            return
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        if self._transport is not None:
            self._transport.resume_reading()  # or its end would not be heard
        await asyncio.shield(self._gone)

    # What the server says.

    def drain(self) -> None:
        """The server stops: after the answer under way this ends."""
        self._last = True
        if self._serving is None:
            self.close()
        elif self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def cut(self) -> None:
        """End at once."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End once everything written is sent."""
        self.shared.idle.pop(self, None)
        if self._transport is not None:
            self._transport.close()

    def expired(self) -> None:
        """The deadline has passed."""
        self.deadline = _NEVER
        if self._writable is not None:
            self._look_for_progress()
        elif self._lingering:
            self._lingering = False  # it may take its time to close, and this long again
            self._set_deadline(limits.HTTP_LINGER_MS)
            self.close()
        elif self._serving is not None and self._arriving is self._serving:
            self._serving.fail(too_slow())
        elif self._serving is None:
            self._refuse(408, f"The request did not arrive within {limits.HTTP_HEADER_TIMEOUT_MS} ms.\n")

    # Within.

    def _sniff(self, data: bytes) -> bytes:
        """What is to be parsed: nothing while it may still become HTTP/2, or when it has."""
        self._first += data
        if _HTTP2.startswith(self._first[: len(_HTTP2)]):
            if len(self._first) >= len(_HTTP2):
                self._hand_over()
            return b""
        self._sniffing = False
        first, self._first = self._first, b""
        return first

    def _hand_over(self) -> None:
        transport, take_over = self._transport, self.shared.take_over
        assert transport is not None and take_over is not None
        self._transport = None
        self.shared.closed(self)
        take_over(transport, self._first)

    def _look_for_progress(self) -> None:
        """A client that reads slowly may; one that does not read at all is cut off."""
        assert self._transport is not None
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes >= self._unsent_bytes:
            self.cut()
            return
        self._unsent_bytes = unsent_bytes
        self._set_deadline(limits.HTTP_SEND_TIMEOUT_MS)

    def _set_deadline(self, after_ms: int) -> None:
        self.deadline = self.shared.now + SWEEP_S + after_ms / 1_000

    def _await_request(self) -> None:
        """Idle, until the next one begins."""
        self.shared.idle[self] = None
        self.deadline = _NEVER

    def _client_left(self) -> None:
        self._is_gone = True
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def _parse_in_head(self, data: bytes) -> None:
        """A piece that ends no head is counted as a part of it: the parser keeps a header until it is whole."""
        exchange = self._arriving
        self._parser.feed_data(data)
        if not self._in_head or self._arriving is not exchange:
            return
        self._head_bytes += len(data)
        if self._head_bytes > limits.MAX_HTTP_HEADER_BYTES:
            raise head_too_large()

    def _parse_behind_head(self, data: memoryview) -> None:
        """The parser took the end of a head for the end of HTTP/1.1; `data` is what came behind it."""
        try:
            while self._ignore_upgrade():
                try:
                    self._parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offered:  # by the next of those that are pipelined
                    data = data[offered.args[0] :]
        except httptools.HttpParserError as error:
            self._malformed(str(error))

    def _ignore_upgrade(self) -> bool:
        """Have the newest exchange go on with its body, which the parser said it had not; False = it can have none.

        Nobody has seen it complete: its task begins in the loop's next pass at the earliest.
        """
        exchange = self._waiting[-1] if self._waiting else self._serving
        assert isinstance(exchange, Exchange)
        exchange.complete = False
        if exchange.method == "CONNECT":  # what comes behind it is of no request
            exchange.fail(HttpError(400, "This server opens no tunnels.\n"))
            self._last = True
            return False
        self._arriving = exchange
        if exchange is self._serving:
            self._set_deadline(limits.HTTP_BODY_TIMEOUT_MS)
        behind = BehindHead(self)
        self._parser = behind.parser
        behind.begin(exchange.framing())
        return True

    def _malformed(self, reason: str) -> None:
        """The parser gave up: of what comes now nothing is known."""
        if self._serving is not None and self._arriving is self._serving:
            self._serving.fail(HttpError(400, f"The request is malformed: {reason}.\n"))
        self._refuse(400, f"The request is malformed: {reason}.\n")

    def _refuse(self, status: int, text: str) -> None:
        """Answer what is no request, and end; an answer under way goes first, and is then the last."""
        self._last = True
        if self._serving is not None:
            return
        self._write(Response(status, text.encode()), head_only=False)
        self._linger()

    def _take_known(self, data: bytes) -> bool:
        """Serve what is one whole request behind a known head; False = it is to be parsed."""
        shared = self.shared
        end = data.find(END) + len(END)
        head = shared.known.get(data[:end])
        if head is None or len(data) - end != head.body_bytes:
            return False
        exchange = WholeExchange(self, head, data[end:])
        self._serving = exchange
        shared.idle.pop(self, None)
        if shared.take_whole is None or not shared.take_whole(exchange):
            self.serve_by(exchange, shared.handle)
        return True

    def _serve(self, exchange: Exchange) -> None:
        self._serving = exchange
        if self._arriving is exchange:
            self._set_deadline(limits.HTTP_BODY_TIMEOUT_MS)
        # A head may be larger than the bound and come in one piece all the same.
        fits = exchange.head_size_bytes <= limits.MAX_HTTP_HEADER_BYTES
        self._task = self.shared.loop.create_task(self._run(exchange, self.shared.handle if fits else refuse_head))

    async def _run(self, exchange: Exchange | WholeExchange, handle: Handle) -> None:
        try:
            response = await handle(exchange)
        except HttpError as error:
            response = Response(error.status, error.text.encode())
        except Unanswered:
            self.cut()
            return
        except Exception:
            _log.exception("%s %s failed", exchange.method, exchange.path)
            response = INTERNAL_ERROR
        if not exchange.keep_alive or not exchange.complete:
            self._last = True
        if isinstance(response, Stream):
            await self._stream(response, exchange)
        else:
            self._write(response, head_only=exchange.method == "HEAD")
            if response.status == 200 and isinstance(exchange, Exchange):
                exchange.remember(self.shared.known)
        await self._finish(exchange)

    async def _finish(self, exchange: Exchange | WholeExchange) -> None:
        """On, once the client has read enough of the answer."""
        rest, self._rest = self._rest, None
        try:
            if rest is not None:
                await self._send_chunks(rest.pieces(), chunked=False)
        except Exception:
            _log.exception("an answer broke off")
            self.cut()
        while self._writable is not None:
            await self._writable
        self._answered(exchange)

    def _write(self, response: Response, *, head_only: bool) -> None:
        if self._transport is None:
            return
        closing = b"connection: close\r\n\r\n" if self._last or self.shared.stopping else b"\r\n"
        length = b"content-length: %d\r\n" % len(response.body)
        body = b"" if head_only else response.body
        if isinstance(body, LargeBody):
            self._rest, body = body, b""
        further = b"" if not response.headers else _header_lines(response.headers)
        self._transport.write(b"".join((self.shared.head(response), length, further, closing, body)))

    async def _stream(self, response: Stream, exchange: Exchange | WholeExchange) -> None:
        """Send chunks until they, the client or the server come to an end."""
        chunked = exchange.modern
        if not chunked:
            self._last = True
        framing = b"transfer-encoding: chunked\r\n" if chunked else b""
        closing = b"connection: close\r\n\r\n" if self._last else b"\r\n"
        if self._transport is not None:
            further = b"" if not response.headers else _header_lines(response.headers)
            self._transport.write(self.shared.head(response) + framing + further + closing)
        gone = asyncio.ensure_future(self.gone())
        sending = asyncio.ensure_future(self._send_chunks(response.chunks, chunked=chunked))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            outcome, _ = await asyncio.gather(sending, gone, return_exceptions=True)
            if isinstance(outcome, Exception):
                _log.warning("a stream broke off: %r", outcome)
                self._last = True
            await response.chunks.aclose()
        if chunked and self._transport is not None and not isinstance(outcome, Exception):
            self._transport.write(_LAST_CHUNK)

    async def _send_chunks(self, chunks: AsyncGenerator[bytes, None], *, chunked: bool) -> None:
        async for chunk in chunks:
            if self._transport is None:
                return
            if chunk:
                self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            while self._writable is not None:
                await self._writable

    def _answered(self, exchange: Exchange | WholeExchange) -> None:
        """On to the next request, or to the end."""
        self._serving = self._task = self._gone = None
        if self._transport is None:
            return
        if not exchange.complete:
            self._linger()
        elif self._last or self.shared.stopping:
            self.close()
        elif self._waiting:
            following = self._waiting.popleft()
            self._serve(following)
            if not self._waiting:
                self._transport.resume_reading()
        elif self._is_gone:
            self.close()
        else:
            self._transport.resume_reading()  # a large body that came whole has stopped it
            if self._arriving is not None:
                self._set_deadline(limits.HTTP_HEADER_TIMEOUT_MS)
            else:
                self._await_request()

    def _linger(self) -> None:
        """Read on for a moment, and throw away, so that the client gets to read the answer."""
        self._lingering = True
        self._arriving = None
        if self._transport is not None:
            if self._is_gone:
                self._transport.close()
                return
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._set_deadline(limits.HTTP_LINGER_MS)
            self._transport.resume_reading()


def _header_lines(headers: tuple[tuple[str, str], ...]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
