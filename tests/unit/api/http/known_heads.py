"""A server that remembers heads, what is sent to it, and whoever takes what has a known one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from kvnode.api.http import HttpError, HttpServer, Request, Response, Stream, Unanswered, WholeRequest
from tests.unit.api.http.raw import Answer, Http1, eventually

MAX_BODY = 10_000


async def described(request: Request) -> Response:
    """Says all that a handler can know of a request."""
    body = await request.body(MAX_BODY)
    said = (request.method, request.path, sorted(request.query.items()), request.origin, request.header("x-note"), body)
    return Response(200, repr(said).encode(), "text/plain", (("x-seen", request.header("x-note") or "-"),))


class Desk:
    """Answers by its handler, or takes whole requests: at once, or when it is told to."""

    def __init__(self) -> None:
        self.handled = 0
        self.taken: list[WholeRequest] = []  # with a known head
        self.takes = True
        self.holds = False
        self.go = asyncio.Event()
        self.go.set()
        self.left = 0

    async def handle(self, request: Request) -> Response | Stream:
        self.handled += 1
        await self.go.wait()
        if request.path == "/refused":
            return Response(401, b"no")
        if request.path == "/created":
            return Response(201, b"made")
        if request.path == "/error":
            raise HttpError(409, "by the test")
        if request.path == "/boom":
            raise ZeroDivisionError("by the test")
        if request.path == "/stream":
            return Stream(self.chunks(), "application/octet-stream")
        if request.path == "/large":
            return Response(200, bytes(8_000_000))
        return await described(request)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"

    def take(self, request: WholeRequest) -> bool:
        self.taken.append(request)
        if not self.takes:
            return False
        if not self.holds:
            request.respond(Response(200, b"taken: " + request.content))
        return True

    async def await_leaving(self, request: Request) -> Response:
        """A handler that answers nothing, and counts who has left."""
        await request.client_gone()
        self.left += 1
        raise Unanswered

    def answer(self, at: int = -1, body: bytes = b"later") -> None:
        self.taken[at].respond(Response(200, body))


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Desk, HttpServer, int]]:
    desk = Desk()
    server = HttpServer(desk.handle, "127.0.0.1:0", http2=True, take_whole=desk.take)
    port = await server.start()
    try:
        yield desk, server, port
    finally:
        desk.go.set()
        await server.stop()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Http1]:
    client = await Http1.open(port)
    try:
        yield client
    finally:
        await client.close()


def post(body: bytes = b"", path: str = "/", *lines: str, length: int | None = None, version: str = "1.1") -> bytes:
    size = len(body) if length is None else length
    head = [f"POST {path} HTTP/{version}", "host: test", f"content-length: {size}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


async def exchange(port: int, raw: bytes) -> Answer:
    async with connected(port) as client:
        client.send(raw)
        return await client.answer()


async def known(port: int, raw: bytes) -> None:
    """Make the head of a request known."""
    assert (await exchange(port, raw)).status == 200


async def held(desk: Desk, port: int) -> Http1:
    """A client whose request was taken and is not answered yet."""
    await known(port, post(b"ok"))
    desk.holds = True
    client = await Http1.open(port)
    count = len(desk.taken)
    client.send(post(b"ok"))
    await eventually(lambda: len(desk.taken) == count + 1)
    return client
