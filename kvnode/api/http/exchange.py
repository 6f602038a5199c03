"""One request over HTTP/1.x: as it arrives, or whole at once."""

from __future__ import annotations

import asyncio
from typing import Protocol

from kvnode.api.http.known_heads import KnownHead, KnownHeads, head_to_remember
from kvnode.api.http.messages import BodyBudget, Handle, HttpError, Response, parse_query, too_large
from kvnode.base import limits


class Sharing(Protocol):
    """What connections have in common, as far as an exchange looks at it."""

    scheme: str
    budget: BodyBudget


class Carrier(Protocol):
    """The connection that an exchange came on."""

    @property
    def shared(self) -> Sharing:
        """What it has in common with others."""

    def wants_body(self, expects_continue: bool) -> None:
        """The handler waits for the rest of the body."""

    async def gone(self) -> None:
        """Returns when the client has gone."""

    def respond(self, exchange: WholeExchange, response: Response) -> None:
        """Answer an exchange that no task serves."""

    def serve_by(self, exchange: WholeExchange, handle: Handle) -> None:
        """Have a task answer it."""


def _parts(target: bytes) -> tuple[bytes, bytes]:
    """(authority, path) of a target as proxies are sent it, http://host/path: every server has to take it (RFC 9112).

    Of any other target the authority is empty and the path is the target.
    """
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return b"", target
    authority, slash, path = rest.partition(b"/")
    return authority, (slash + path) or b"/"


class _WithHead:
    """What request line and headers say."""

    __slots__ = ("_connection", "_headers", "_url")

    _connection: Carrier
    _headers: dict[bytes, bytes]
    _url: bytes

    @property
    def path(self) -> str:
        """See Request."""
        path = self._url.partition(b"?")[0]
        return (path if path.startswith(b"/") else _parts(path)[1]).decode("latin-1")

    @property
    def query(self) -> dict[str, str]:
        """See Request."""
        return parse_query(self._url.partition(b"?")[2].decode("latin-1"))

    @property
    def origin(self) -> str:
        """See Request."""
        host = _parts(self._url)[0].decode("latin-1") or self.header("host")
        return f"{self._connection.shared.scheme}://{host}" if host else ""

    def header(self, name: str) -> str:
        """See Request."""
        value = self._headers.get(name.encode())
        return "" if value is None else value.decode("latin-1")

    async def client_gone(self) -> None:
        """See Request."""
        await self._connection.gone()


class Exchange(_WithHead):
    """One request over HTTP/1.x, and what has come of its body (messages.Request)."""

    __slots__ = (
        "_chunks",
        "_error",
        "_limit",
        "_received_bytes",
        "_waiter",
        "complete",
        "head_bytes",
        "keep_alive",
        "method",
        "modern",
    )

    def __init__(self, connection: Carrier) -> None:
        self._connection = connection
        self._headers = {}
        self._url = b""
        self._chunks: list[bytes] = []
        self._received_bytes = 0
        self._limit = 0  # 0 = the handler has not asked yet
        self._error: HttpError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.method = ""
        self.complete = False
        self.keep_alive = False
        self.modern = True  # HTTP/1.1
        self.head_bytes = b""  # its head as it came, if that is fit to be remembered

    async def body(self, max_bytes: int) -> bytes:
        """See Request."""
        declared = self._headers.get(b"content-length")
        size = 0 if declared is None else int(declared)  # the parser has checked that it is a number
        if size > max_bytes or self._received_bytes > max_bytes:
            raise too_large(max_bytes)
        if not self.complete:
            await self._rest(max_bytes)
        chunks = self._chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _rest(self, max_bytes: int) -> None:
        """Wait for what is missing. What has come by then takes of the budget, chunk by chunk."""
        budget = self._connection.shared.budget
        try:
            budget.reserve(self._received_bytes)
            if self._error is not None:
                raise self._error
            self._limit = max_bytes
            self._waiter = asyncio.get_running_loop().create_future()
            self._connection.wants_body(self._headers.get(b"expect", b"").lower() == b"100-continue")
            await self._waiter
        finally:
            budget.release(self._received_bytes)
            self._limit = 0
        if self._error is not None:
            raise self._error

    # For the connection.

    def add_header(self, name: bytes, value: bytes) -> None:
        """A header; of several with one name the last counts."""
        self._headers[name.lower()] = value

    @property
    def head_size_bytes(self) -> int:
        """What its target and headers come to."""
        headers = self._headers
        return len(self._url) + sum(map(len, headers)) + sum(map(len, headers.values()))

    def add_url(self, url: bytes) -> None:
        """A part of the URL."""
        self._url += url

    def add_body(self, chunk: bytes) -> bool:
        """A part of the body; returns whether more of it may be read ahead."""
        if self._error is not None:
            return True  # thrown away
        self._received_bytes += len(chunk)
        self._chunks.append(chunk)
        if not self._limit:
            return self._received_bytes < limits.HTTP_READ_AHEAD_BYTES
        try:
            self._connection.shared.budget.reserve(len(chunk))
            if self._received_bytes > self._limit:
                raise too_large(self._limit)
        except HttpError as error:
            self.fail(error)
        return True

    def framing(self) -> bytes:
        """The header that says how the body ends, as a line; empty when there is none, nor a body."""
        for name in (b"transfer-encoding", b"content-length"):
            if name in self._headers:
                return b"%b: %b\r\n" % (name, self._headers[name])
        return b""

    def came_at_once(self, message: bytes) -> None:
        """All of it, and nothing else, came as `message`."""
        if self.method == "POST" and self.keep_alive and self.modern:
            self.head_bytes = head_to_remember(message, self._headers)

    def remember(self, known: KnownHeads) -> None:
        """It was answered well: what it says need not be parsed again."""
        if self.head_bytes:
            known.remember(self.head_bytes, self._url, self._headers)

    def end(self) -> None:
        """The body is whole."""
        self.complete = True
        self._wake()

    def fail(self, error: HttpError) -> None:
        """The body will not be whole."""
        self._error = error
        self._chunks = []
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class WholeExchange(_WithHead):
    """A request that came whole behind a known head: messages.WholeRequest. It is served as an Exchange is."""

    __slots__ = ("content", "head")

    method = "POST"
    complete = True
    keep_alive = True
    modern = True

    def __init__(self, connection: Carrier, head: KnownHead, content: bytes) -> None:
        self._connection = connection
        self._headers = head.headers
        self._url = head.url
        self.head = head
        self.content = content

    async def body(self, max_bytes: int) -> bytes:
        """See Request."""
        if len(self.content) > max_bytes:
            raise too_large(max_bytes)
        return self.content

    def respond(self, response: Response) -> None:
        """See WholeRequest."""
        self._connection.respond(self, response)

    def serve_by(self, handle: Handle) -> None:
        """See WholeRequest."""
        self._connection.serve_by(self, handle)

    def fail(self, error: HttpError) -> None:
        """Nothing of the body is missing."""
