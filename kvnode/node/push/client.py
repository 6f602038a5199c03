"""The HTTP/1.1 client of a push: one request at a time on a connection, which is kept for the next one.

Everything about it is bounded: the whole of a request by the queue's timeout, head and body of the answer by bytes,
idle connections by time and by the queue's concurrency. The status decides; the body is read only so that the
connection can be used again, and thrown away. Redirects are not followed. A kept connection that the receiver has
closed meanwhile costs one more attempt on another one, as in every HTTP client: a push may come twice anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import NamedTuple

import httptools

from kvnode.base import limits
from kvnode.machine.queue.push_url import PushUrl
from kvnode.node.push.addresses import AddressPolicy, allowed_addresses

_READ_BYTES = 65_536


class Failed(Exception):
    """The receiver did not take the message; str() says why."""


class Answer(NamedTuple):
    """What of an answer matters."""

    status: int  # 200 .. 599
    retry_after_ms: int | None  # what the receiver asked for


class _Reading:
    """One answer as httptools tells it."""

    def __init__(self) -> None:
        self.retry_after_ms: int | None = None
        self.head_done = False
        self.done = False
        self.body_bytes = 0
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.strip().isdigit():
            self.retry_after_ms = min(int(value.strip()[:10]) * 1_000, limits.MAX_PUSH_RETRY_AFTER_MS)

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.head_done = self.status >= 200
        self.keep = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)

    def on_message_complete(self) -> None:
        self.done = self.status >= 200


class _Connection:
    """One connection to the receiver."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.idle_since_s = 0.0

    def abort(self) -> None:
        self._writer.transport.abort()

    async def exchange(self, request: bytes) -> _Reading:
        """Send, and read up to the end of the answer's head. Raises Failed, OSError."""
        self._writer.write(request)
        await self._writer.drain()
        reading = _Reading()
        head_bytes = 0
        while not reading.head_done:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the connection ended before the answer")
            head_bytes += len(data)
            try:
                reading.parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                reading.keep = False
                if not reading.head_done:
                    raise Failed(f"the answer is no HTTP/1.1: {error}") from None
            if not reading.head_done and head_bytes > limits.MAX_PUSH_RESPONSE_HEAD_BYTES:
                raise Failed(f"the head of the answer has more than {limits.MAX_PUSH_RESPONSE_HEAD_BYTES} bytes")
        return reading

    async def finish(self, reading: _Reading) -> bool:
        """Read the rest, which says nothing; returns whether the connection may be used again."""
        try:
            async with asyncio.timeout(limits.PUSH_BODY_TIMEOUT_MS / 1_000):
                while reading.keep and not reading.done:
                    data = await self._reader.read(_READ_BYTES)
                    if not data or reading.body_bytes > limits.MAX_PUSH_RESPONSE_BODY_BYTES:
                        return False
                    reading.parser.feed_data(data)
        except (OSError, TimeoutError, httptools.HttpParserError):
            return False
        return reading.keep


class PushClient:
    """Requests to one URL.

    Args:
        url: where to.
        policy: which addresses may be called.
        timeout_ms: of one request, everything in it.
        tls: makes the context for https.
    """

    def __init__(
        self,
        url: PushUrl,
        policy: AddressPolicy,
        timeout_ms: int,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._url = url
        self._policy = policy
        self._timeout_s = timeout_ms / 1_000
        self._tls = tls() if url.is_tls else None
        self._idle: list[_Connection] = []
        self._closed = False

    async def check(self) -> None:
        """Whether there is an address that may be called. Raises NotCalled."""
        await allowed_addresses(self._url, self._policy)

    async def send(self, request: bytes) -> Answer:
        """One request.

        Raises:
            Failed: no answer.
            NotCalled: nothing was sent.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                connection, reading = await self._send(request)
        except TimeoutError:
            raise Failed(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, EOFError) as error:
            raise Failed(f"{self._url.host}: {error or type(error).__name__}") from None
        await self._finish(connection, reading)
        return Answer(reading.status, reading.retry_after_ms)

    def close(self) -> None:
        """Close what is idle; requests under way are their callers' to cancel."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    async def _send(self, request: bytes) -> tuple[_Connection, _Reading]:
        while (connection := self._kept()) is not None:
            with contextlib.suppress(OSError, EOFError):
                return connection, await self._exchange(connection, request)
        connection = await self._connect()
        return connection, await self._exchange(connection, request)

    async def _exchange(self, connection: _Connection, request: bytes) -> _Reading:
        try:
            return await connection.exchange(request)
        except BaseException:
            connection.abort()
            raise

    async def _finish(self, connection: _Connection, reading: _Reading) -> None:
        may_be_kept = False
        try:
            may_be_kept = await connection.finish(reading)
        finally:
            if may_be_kept and not self._closed:
                connection.idle_since_s = asyncio.get_running_loop().time()
                self._idle.append(connection)
            else:
                connection.abort()

    def _kept(self) -> _Connection | None:
        """The connection that was used last; those that have been idle for too long are closed."""
        oldest_s = asyncio.get_running_loop().time() - limits.PUSH_IDLE_MS / 1_000
        while self._idle and self._idle[0].idle_since_s < oldest_s:
            self._idle.pop(0).abort()
        return self._idle.pop() if self._idle else None

    async def _connect(self) -> _Connection:
        """To the first address that answers. Raises NotCalled, OSError."""
        failure: OSError | None = None
        for address in await allowed_addresses(self._url, self._policy):
            name = self._url.host if self._tls else None
            try:
                streams = await asyncio.open_connection(
                    address, self._url.port, ssl=self._tls, server_hostname=name, limit=_READ_BYTES
                )
            except OSError as error:
                failure = error
            else:
                return _Connection(*streams)
        assert failure is not None  # there is at least one address
        raise failure
