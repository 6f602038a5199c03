"""What handlers know: requests and responses, and nothing of the server or of the HTTP version."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs

from kvnode.api.http.large_body import LargeBody
from kvnode.base import limits

TEXT = "text/plain; charset=utf-8"


class HttpError(Exception):
    """Ends a request with this answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Unanswered(Exception):
    """Ends a request without an answer: its connection or stream breaks."""


class Request(Protocol):
    """One request."""

    @property
    def method(self) -> str:
        """GET, POST, ..."""

    @property
    def path(self) -> str:
        """Without the query."""

    @property
    def query(self) -> dict[str, str]:
        """The last value of each parameter; a bare `?name` is an empty string."""

    @property
    def origin(self) -> str:
        """scheme://host:port as the client wrote it; empty when it named no host."""

    def header(self, name: str) -> str:
        """A header's value by its lower-case name; empty when absent."""

    async def body(self, max_bytes: int) -> bytes:
        """The whole body. Raises HttpError: 413 too large, 408 too slow, 503 too many at a time."""

    async def client_gone(self) -> None:
        """Returns when the client has closed its connection or stream."""


Body = bytes | LargeBody


class Response(NamedTuple):
    """One response, whole.

    Of a request that changed something and may have a body above HTTP2_UNCOUNTED_BYTES, `instead` is what its client
    gets where so much cannot wait to be read (unread.py). None = a 503, which says that nothing was changed.
    """

    status: int
    body: Body
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()  # further ones
    instead: Response | None = None


class Stream(NamedTuple):
    """A response of 200 in chunks, for as long as the client is there."""

    chunks: AsyncGenerator[bytes, None]
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()  # further ones


Handle = Callable[[Request], Awaitable[Response | Stream]]


class Head(Protocol):
    """The head of a request, shared by all that have the same.

    Attributes:
        note: what the handler has worked out from it; None at first.
    """

    note: object


class WholeRequest(Request, Protocol):
    """A request that has come whole. It is answered once: by `respond`, or by a handler."""

    @property
    def head(self) -> Head:
        """Its request line and headers."""

    @property
    def content(self) -> bytes:
        """Its body."""

    def respond(self, response: Response) -> None:
        """Answer it."""

    def serve_by(self, handle: Handle) -> None:
        """Have a task run a handler, and answer it with what that returns."""


# Takes a whole request, to answer it without a task; False = it did not, and the handler is to.
TakeWhole = Callable[[WholeRequest], bool]


class Tls(NamedTuple):
    """PEM files."""

    certificate: Path
    key: Path


INTERNAL_ERROR = Response(500, b"An internal server error occurred; the node's log has the traceback.\n")


class BodyBudget:
    """What the bodies that are being read may take together."""

    def __init__(self) -> None:
        self._reserved_bytes = 0

    def reserve(self, size_bytes: int) -> None:
        """Take a part of it, to be given back in any case. Raises HttpError(503)."""
        self._reserved_bytes += size_bytes
        if self._reserved_bytes > limits.MAX_HTTP_BODIES_BYTES:
            raise HttpError(503, "The server is temporarily unavailable, try again later: it reads too many bodies.\n")

    def release(self, size_bytes: int) -> None:
        """Give a part back."""
        self._reserved_bytes -= size_bytes


def parse_query(text: str) -> dict[str, str]:
    """See Request.query."""
    return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True).items()}


def too_large(max_bytes: int) -> HttpError:
    """The refusal of a body above the bound."""
    return HttpError(413, f"The body is larger than {max_bytes} bytes: split the transaction.\n")


def too_slow() -> HttpError:
    """The refusal of a body that does not arrive."""
    return HttpError(408, f"The body did not arrive within {limits.HTTP_BODY_TIMEOUT_MS} ms: send it at once.\n")


def head_too_large() -> HttpError:
    """Its headers and target are more than MAX_HTTP_HEADER_BYTES."""
    return HttpError(431, f"The headers are larger than {limits.MAX_HTTP_HEADER_BYTES} bytes.\n")


async def refuse_head(request: Request) -> Response | Stream:
    """A Handle for requests whose head is too large."""
    del request
    raise head_too_large()
