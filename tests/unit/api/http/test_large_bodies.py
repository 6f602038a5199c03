"""Bodies that are made as their client takes them, on each of the ways by which an answer goes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import h2.events
import h2.exceptions
import pytest

from kvnode.api.http import HttpServer, LargeBody, Request, Response, WholeRequest
from kvnode.api.http.http2_window import MIN_SHARED_BYTES
from kvnode.base import limits
from tests.unit.api.http.raw import Answer, Http1, Http2, eventually

PIECE = bytes(range(256)) * 256
COUNTS = {"/": 200, "/less": 20}  # pieces; the first is more than kernels take of one connection


class Maker:
    """Answers with large bodies, and knows what of them was made."""

    def __init__(self) -> None:
        self.made = 0
        self.breaks_at = -1
        self.taken = 0  # requests, without a task
        self.kept = 0  # bodies that may still be asked for more

    def response(self, path: str) -> Response:
        if path == "/small":
            return Response(200, b"small")
        count = COUNTS[path]
        return Response(200, LargeBody(count * len(PIECE), self._pieces(count)))

    def _pieces(self, count: int) -> Iterator[bytes]:
        self.kept += 1
        try:
            for number in range(count):
                if number == self.breaks_at:
                    raise ZeroDivisionError("by the test")
                self.made += 1
                yield PIECE
        finally:
            self.kept -= 1

    async def handle(self, request: Request) -> Response:
        await request.body(10_000)
        return self.response(request.path)

    def take(self, request: WholeRequest) -> bool:
        self.taken += 1
        request.respond(self.response(request.path))
        return True


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Maker, int]]:
    maker = Maker()
    server = HttpServer(maker.handle, "127.0.0.1:0", None, http2=True, take_whole=maker.take)
    try:
        yield maker, await server.start()
    finally:
        await server.stop()


def is_whole(answer: Answer, path: str = "/") -> bool:
    body = PIECE * COUNTS[path]
    return answer.status == 200 and int(answer.headers["content-length"]) == len(body) and answer.body == body


def asked(path: str = "/") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n".encode()


class Over2(Http2):
    """Asks so that its heads are remembered."""

    async def wide(self, maker: Maker) -> None:
        """From now on the answers come past granian."""
        self.h2.increment_flow_control_window(MIN_SHARED_BYTES + 1)
        for _ in range(2):  # the second head is written with what the first one has put into HPACK's table
            assert is_whole(await self.get("/less"), "/less")
        maker.made = maker.taken = 0

    def ask(self, path: str) -> int:
        stream = self.begin(path, {"content-length": "2"})
        self.h2.send_data(stream, b"ok", end_stream=True)
        self.flush()
        return stream

    async def get(self, path: str) -> Answer:
        return await self.answer(self.ask(path))


async def test_over_http1() -> None:
    async with serving() as (maker, port):
        client = await Http1.open(port)
        assert is_whole(await client.request("/"))  # by a task
        assert is_whole(await client.request("/"))  # behind a known head
        assert maker.taken == 1
        assert (await client.request("/small")).body == b"small"
        client.send(asked("/less") * 2)  # pipelined
        for _ in range(2):
            assert is_whole(await client.answer(), "/less")
        assert (await client.request("/less", method="HEAD")).headers["content-length"] == str(20 * len(PIECE))
        assert is_whole(await client.request("/less"), "/less")
        assert maker.kept == 0
        await client.close()


@pytest.mark.parametrize("wide", [True, False])
async def test_over_http2(wide: bool) -> None:
    async with serving() as (maker, port):
        client = await Over2.open(port)
        if wide:
            await client.wide(maker)
        for _ in range(3):
            answer = await client.get("/less")
            assert is_whole(answer, "/less")
            assert ("server" in answer.headers) is not wide  # granian says its name
        streams = [client.ask("/less") for _ in range(3)]
        for stream in streams:
            assert is_whole(await client.answer(stream), "/less")
        assert (await client.get("/small")).body == b"small"
        assert maker.taken >= 5 and maker.kept == 0
        await client.close()


@pytest.mark.parametrize("known", [False, True])
async def test_a_client_that_does_not_read_has_little_made_over_http1(known: bool) -> None:
    async with serving() as (maker, port):
        client = await Http1.open(port)
        if known:
            assert is_whole(await client.request("/"))
            maker.made = 0
        client.writer.transport.pause_reading()
        client.send(asked())
        other = await Http1.open(port)
        for _ in range(20):
            assert (await other.request("/small")).body == b"small"
        assert 0 < maker.made < COUNTS["/"]  # what the kernel has room for
        client.writer.transport.resume_reading()
        assert is_whole(await client.answer())
        await client.close()
        await other.close()


@pytest.mark.parametrize("wide", [True, False])
async def test_a_client_that_does_not_read_has_little_made_over_http2(wide: bool) -> None:
    async with serving() as (maker, port):
        client, other = await Over2.open(port), await Over2.open(port)
        if wide:
            await client.wide(maker)
        stream = client.ask("/less")
        for _ in range(20):
            assert (await other.get("/small")).body == b"small"
        most_bytes = 65_535 + limits.MAX_HTTP2_UNREAD_CHUNKS_BYTES + 2 * len(PIECE)
        assert 0 < maker.made * len(PIECE) <= most_bytes
        assert is_whole(await client.answer(stream), "/less")
        await client.close()
        await other.close()


@pytest.mark.parametrize("wide", [True, False])
async def test_nothing_is_kept_of_an_answer_that_is_not_wanted_any_more(wide: bool) -> None:
    async with serving() as (maker, port):
        client = await Over2.open(port)
        if wide:
            await client.wide(maker)
        stream = client.ask("/less")
        await eventually(lambda: maker.kept == 1)
        client.h2.reset_stream(stream)
        client.flush()
        await eventually(lambda: maker.kept == 0)
        assert (await client.get("/small")).body == b"small"
        await client.close()


async def test_a_client_that_leaves_frees_the_rest() -> None:
    async with serving() as (maker, port):
        client = await Http1.open(port)
        client.writer.transport.pause_reading()
        client.send(asked())
        await eventually(lambda: maker.kept == 1)
        client.writer.transport.abort()
        await eventually(lambda: maker.kept == 0)
        assert maker.made < COUNTS["/"]


async def test_a_body_that_cannot_be_made_to_its_end_breaks_its_connection() -> None:
    async with serving() as (maker, port):
        maker.breaks_at = 2
        client = await Http1.open(port)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.request("/less")
        await client.close()


async def test_a_body_that_cannot_be_made_to_its_end_breaks_its_stream() -> None:
    async with serving() as (maker, port):
        client = await Over2.open(port)
        await client.wide(maker)
        for maker.breaks_at in (0, 2):
            stream = client.ask("/less")
            await client.answer(stream)
            assert isinstance(client.events[stream][-1], h2.events.StreamReset)
        maker.breaks_at = -1
        assert is_whole(await client.get("/less"), "/less")  # others on the connection are
        await client.close()


async def test_a_body_that_cannot_be_made_to_its_end_is_cut_short_by_granian() -> None:
    async with serving() as (maker, port):
        client = await Over2.open(port)
        maker.breaks_at = 2
        with pytest.raises(h2.exceptions.InvalidBodyLengthError):
            await client.get("/less")
        await client.close()
