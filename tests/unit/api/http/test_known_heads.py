"""Requests whose head came before: what is remembered, and that nobody can tell whether it was."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvnode.api.http import HttpError, HttpServer, Request, Response, Stream, Unanswered, WholeRequest
from kvnode.api.http import http1 as http1_module
from kvnode.api.http.http1 import Connections
from kvnode.api.http.messages import BodyBudget, TakeWhole
from kvnode.base import limits
from tests.unit.api.http.raw import Answer, Http1
from tests.unit.api.http.wire import converse, passes

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


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_module, "SWEEP_S", 0.05)
    for name in ("HTTP_HEADER_TIMEOUT_MS", "HTTP_BODY_TIMEOUT_MS", "HTTP_SEND_TIMEOUT_MS"):
        monkeypatch.setattr(limits, name, 150)


# What is remembered.


async def test_a_head_is_known_once_it_was_answered_well() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        for at, body in enumerate((b"one", b"two", b"six")):
            client.send(post(body))
            answer = await client.answer()
            assert answer.status == 200 and "connection" not in answer.headers
            assert (desk.handled, len(desk.taken)) == (1, at)
            assert (answer.body == b"taken: " + body) is (at > 0)


async def test_what_one_connection_sent_is_known_to_the_others() -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"one"))
        assert (await exchange(port, post(b"two"))).body == b"taken: two"
        assert desk.handled == 1


async def test_a_body_of_nothing() -> None:
    async with serving() as (desk, _, port):
        await known(port, post())
        assert (await exchange(port, post())).body == b"taken: "
        assert desk.taken[0].content == b""


@pytest.mark.parametrize(
    "raw",
    [
        post(b"x", "/other"),
        post(b"x", "/?query"),
        post(b"xy"),
        post(b"x", "/", "x-note: 1"),
        post(b"x").replace(b"host", b"Host"),
        post(b"x").replace(b"content-length: ", b"content-length:"),
        b"\r\n" + post(b"x"),
    ],
)
async def test_a_head_that_differs_by_a_byte_is_another(raw: bytes) -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"x"))
        assert (await exchange(port, raw)).status == 200
        assert (desk.handled, desk.taken) == (2, [])


@pytest.mark.parametrize(
    "raw",
    [
        post(b"x").replace(b"POST", b"PUT"),
        b"GET / HTTP/1.1\r\nhost: test\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nhost: test\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        post(b"x", "/", "connection: close"),
        post(b"x", "/", "Connection: keep-alive, close"),
        post(b"x", version="1.0"),
        post(b"x", "/", "connection: keep-alive", version="1.0"),
        post(b"x", "/", "expect: 100-continue"),
        post(b"x", "/", "Upgrade: h2c"),
        post(b"x", "/stream"),
        post(b"x", "/refused"),
        post(b"x", "/created"),
        post(b"x", "/error"),
        post(b"x", "/boom"),
    ],
)
async def test_what_is_not_remembered(raw: bytes) -> None:
    async with serving() as (desk, _, port):
        first, second = [await exchange(port, raw) for _ in range(2)]
        assert (desk.handled, desk.taken) == (2, [])
        assert (first.status, first.body) == (second.status, second.body)


async def test_a_request_that_asks_for_an_upgrade_is_not_remembered() -> None:
    async with serving() as (desk, _, port):
        for _ in range(2):
            await exchange(port, post(b"", "/", "connection: upgrade", "upgrade: h2c"))
        assert (desk.handled, desk.taken) == (2, [])


async def test_of_what_came_in_pieces_nothing_is_remembered() -> None:
    raw = post(b"body")
    async with serving() as (desk, _, port), connected(port) as client:
        for cut in (1, 20, len(raw) - 4, len(raw) - 1):
            client.send(raw[:cut])
            await asyncio.sleep(0.02)
            client.send(raw[cut:])
            assert (await client.answer()).status == 200
        assert (desk.handled, desk.taken) == (4, [])


async def test_of_two_in_one_piece_nothing_is_remembered() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        for _ in range(2):
            client.send(post(b"1") + post(b"2"))
            assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        assert (desk.handled, desk.taken) == (4, [])


@pytest.mark.parametrize(("more", "is_known"), [(0, True), (1, False)])
async def test_long_heads_are_not_remembered(more: int, is_known: bool) -> None:
    raw = post(b"x", "/", "x-note: ")
    padding = limits.MAX_KNOWN_HEAD_BYTES - (len(raw) - 1) + more
    raw = raw.replace(b"x-note: ", b"x-note: " + b"n" * padding)
    async with serving() as (desk, _, port):
        for _ in range(2):
            assert (await exchange(port, raw)).status == 200
        assert len(desk.taken) == is_known


async def test_of_too_many_heads_the_one_that_came_first_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN_HEADS_COUNT", 3)
    async with serving() as (desk, _, port), connected(port) as client:

        async def is_known(path: str) -> bool:
            client.send(post(b"x", path))
            return (await client.answer()).body == b"taken: x"

        assert not any([await is_known(path) for path in ("/a", "/b", "/c")])
        assert await is_known("/a")  # which makes it no younger
        assert not await is_known("/d")
        assert [await is_known(path) for path in ("/b", "/c", "/d")] == [True] * 3
        assert not await is_known("/a")  # and it takes the place of /b
        assert [await is_known(path) for path in ("/c", "/d", "/a")] == [True] * 3
        assert not await is_known("/b")
        assert desk.handled == 6


async def test_strangers_drive_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN_HEADS_COUNT", 2)
    async with serving() as (_, _, port), connected(port) as client:
        await known(port, post(b"x"))
        for number in range(5):
            client.send(post(b"x", "/refused", f"authorization: Bearer {number}"))
            assert (await client.answer()).status == 401
        assert (await exchange(port, post(b"x"))).body == b"taken: x"


async def test_a_head_that_is_answered_badly_later_is_still_known() -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"x"))
        desk.holds = True
        for status in (503, 200):
            async with connected(port) as client:
                client.send(post(b"x"))
                await eventually(lambda: len(desk.taken) > 0)
                desk.taken.pop().respond(Response(status, b""))
                assert (await client.answer()).status == status
        assert desk.handled == 1


async def test_what_is_noted_stays_with_the_head() -> None:
    async with serving() as (desk, _, port):
        for path in ("/a", "/b"):
            await known(port, post(b"x", path))
        for path in ("/a", "/b", "/a", "/b"):
            await exchange(port, post(b"x", path))
            request = desk.taken[-1]
            assert request.head.note in (None, path)
            request.head.note = path
        assert desk.taken[0].head is desk.taken[2].head is not desk.taken[1].head
        assert [request.head.note for request in desk.taken] == ["/a", "/b"] * 2


# What the handler sees.


@pytest.mark.parametrize(
    "raw",
    [
        post(b"body", "/a/b%20c?x=1&x=2&y=%41&bare", "x-note: caf\u00e9", "X-Other: 1"),
        post(b"body", "http://elsewhere/a?b=c"),
        b"POST / HTTP/1.1\r\nContent-Length: 0004\r\nX-NOTE: one\r\nx-note: two\r\n\r\n\r\n\r\n",
    ],
)
async def test_a_handler_sees_the_same_of_a_known_head(raw: bytes) -> None:
    async with serving() as (desk, _, port):
        desk.takes = False
        first, second = [await exchange(port, raw) for _ in range(2)]
        assert (desk.handled, len(desk.taken)) == (2, 1)
        for answer in (first, second):
            answer.headers.pop("date")
        assert first == second


async def test_a_server_without_take_whole_uses_its_handler() -> None:
    seen: list[type] = []

    async def handle(request: Request) -> Response:
        seen.append(type(request))
        return await described(request)

    server = HttpServer(handle, "127.0.0.1:0")
    port = await server.start()
    answers = [await exchange(port, post(b"x", "/a", "x-note: n")) for _ in range(2)]
    assert answers[0].body == answers[1].body
    assert seen[0] is not seen[1]  # the second was not parsed
    await server.stop()


async def test_a_body_that_is_too_large_for_its_handler() -> None:
    sizes = iter((MAX_BODY, 3))

    async def handle(request: Request) -> Response:
        return Response(200, await request.body(next(sizes)))

    server = HttpServer(handle, "127.0.0.1:0")
    port = await server.start()
    assert [(await exchange(port, post(b"four"))).status for _ in range(2)] == [200, 413]
    await server.stop()


# How it comes.


async def test_a_known_head_whose_body_comes_later() -> None:
    raw = post(b"body")
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, raw)
        for cut in (len(raw) - 4, len(raw) - 2, len(raw) - 1, 1, len(raw) - 5, len(raw) - 7):
            client.send(raw[:cut])
            await asyncio.sleep(0.02)
            assert desk.taken == []
            client.send(raw[cut:])
            answer = await client.answer()
            assert answer.status == 200 and b"b'body'" in answer.body
        client.send(raw)
        assert (await client.answer()).body == b"taken: body"


async def test_a_known_head_whose_body_does_not_come(impatient: None) -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"body"))
        client.send(post(b"bo", length=4))
        assert (await client.answer()).status == 408
        assert desk.taken == []


async def test_two_known_ones_in_one_piece_are_answered_in_order() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"1"))
        client.send(post(b"1") + post(b"2"))
        assert [(await client.answer()).body[-4:-1] for _ in range(2)] == [b"'1'", b"'2'"]
        client.send(post(b"3"))
        assert (await client.answer()).body == b"taken: 3"
        assert desk.handled == 3


async def test_a_body_that_looks_like_a_known_request() -> None:
    inner = post(b"1")
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, inner)
        for _ in range(2):
            client.send(post(inner))
            answer = await client.answer()
            assert answer.status == 200
        assert answer.body == b"taken: " + inner and desk.handled == 2
        client.send(post(inner)[: -len(inner)])
        await asyncio.sleep(0.02)
        client.send(inner)  # a body, though it begins a piece as a request does
        assert repr(inner).encode() in (await client.answer()).body
        assert desk.handled == 3


async def test_the_rest_of_a_head_that_looks_like_a_known_request() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        client.send(b"POST /odd HTTP/1.1\r\nx-note: ")
        await asyncio.sleep(0.05)
        client.send(post(b"ok"))
        answer = await client.answer()
        assert b"'/odd'" in answer.body and answer.headers["x-seen"] == "post / http/1.1"
        assert (desk.handled, desk.taken) == (2, [])


@pytest.mark.parametrize("rest", [b"nonsense\r\n\r\n", b"x", b"\x00"])
async def test_a_known_head_with_nonsense_behind_it(rest: bytes) -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        client.send(post(b"ok") + rest)
        answer = await client.answer()
        assert answer.status == 200 and b"'ok'" in answer.body
        assert await client.closed()
        assert (desk.handled, desk.taken) == (2, [])


async def test_nonsense_while_a_taken_one_is_unanswered_makes_its_answer_the_last() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        desk.holds = True
        client.send(post(b"ok"))
        await eventually(lambda: len(desk.taken) == 1)
        client.send(b"nonsense\r\n\r\n")
        await asyncio.sleep(0.05)
        desk.answer()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"later", "close")
        assert await client.closed()


async def test_nonsense_after_a_taken_one_is_refused() -> None:
    async with serving() as (_, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        client.send(post(b"ok"))
        assert (await client.answer()).body == b"taken: ok"
        client.send(b"nonsense\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed()


async def test_a_client_that_closes_after_a_known_head_is_closed() -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"x"))
        for taken in (1, 2):
            async with connected(port) as client:
                client.send(post(b"x"))
                assert (await client.answer()).body == b"taken: x"
                client.send(post(b"x", "/", "connection: close"))
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await client.closed()
            assert len(desk.taken) == taken


# One that is answered later.


async def held(desk: Desk, port: int) -> Http1:
    """A client whose request was taken and is not answered yet."""
    await known(port, post(b"ok"))
    desk.holds = True
    client = await Http1.open(port)
    count = len(desk.taken)
    client.send(post(b"ok"))
    await eventually(lambda: len(desk.taken) == count + 1)
    return client


async def test_a_late_answer() -> None:
    async with serving() as (desk, _, port):
        client = await held(desk, port)
        desk.answer()
        assert (await client.answer()).body == b"later"
        desk.holds = False
        client.send(post(b"go"))
        assert (await client.answer()).body == b"taken: go"
        await client.close()


async def test_a_late_answer_has_all_the_time_it_needs(impatient: None) -> None:
    async with serving() as (desk, _, port):
        client = await held(desk, port)
        await asyncio.sleep(0.6)
        desk.answer()
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"later")
        await asyncio.sleep(0.6)  # idle, for as long as it likes
        desk.holds = False
        client.send(post(b"go"))
        assert (await client.answer()).body == b"taken: go"
        await client.close()


def reset(client: Http1) -> None:
    """End a connection so that the server cannot take it for half-closed."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


async def test_the_client_breaks_the_connection_meanwhile() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        reset(client)
        await eventually(lambda: server.connections_count == 0)
        desk.answer()
        desk.holds = False
        assert (await exchange(port, post(b"go"))).body == b"taken: go"


async def test_the_client_closes_meanwhile() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        await client.close()
        await asyncio.sleep(0.05)
        desk.answer()
        await eventually(lambda: server.connections_count == 0)
        desk.holds = False
        assert (await exchange(port, post(b"go"))).body == b"taken: go"


async def test_the_client_closes_meanwhile_and_a_task_is_to_answer() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        reset(client)
        await eventually(lambda: server.connections_count == 0)

        async def handle(request: Request) -> Response:
            await request.client_gone()
            desk.left += 1
            raise Unanswered

        desk.taken[0].serve_by(handle)
        await eventually(lambda: desk.left == 1)


async def test_the_client_half_closes_meanwhile() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        client.writer.write_eof()
        await asyncio.sleep(0.05)
        desk.answer()
        assert (await client.answer()).body == b"later"
        assert await client.closed()
        await client.close()
        await eventually(lambda: server.connections_count == 0)


async def test_a_known_request_and_the_end_at_once() -> None:
    async with serving() as (_, server, port):
        await known(port, post(b"ok"))
        client = await Http1.open(port)
        client.send(post(b"ok"))
        client.writer.write_eof()
        assert (await client.answer()).body == b"taken: ok"
        assert await client.closed()
        await client.close()
        await eventually(lambda: server.connections_count == 0)


async def test_the_server_stops_meanwhile() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        stopping = asyncio.ensure_future(server.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        desk.answer()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"later", "close")
        assert await client.closed()
        await asyncio.wait_for(stopping, 10)
        await client.close()


async def test_the_server_stops_meanwhile_and_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHUTDOWN_TIMEOUT_MS", 200)
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        await asyncio.wait_for(server.stop(), 10)
        assert await client.closed()
        desk.answer()  # too late, and harmless
        await client.close()


async def test_a_stop_ends_a_wait_for_a_client_to_leave() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)

        async def handle(request: Request) -> Response:
            await request.client_gone()
            desk.left += 1
            raise Unanswered

        desk.taken[0].serve_by(handle)
        await asyncio.sleep(0.05)
        assert desk.left == 0
        await asyncio.wait_for(server.stop(), 10)
        assert desk.left == 1
        assert await client.closed()
        await client.close()


async def test_what_is_pipelined_behind_it_waits_and_is_answered_in_order() -> None:
    async with serving() as (desk, _, port):
        client = await held(desk, port)
        client.send(post(b"01") + post(b"02"))
        client.send(b"GET /three HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.02)
        client.send(post(b"04"))
        await asyncio.sleep(0.05)
        assert (desk.handled, len(desk.taken)) == (1, 1)
        desk.holds = False
        desk.answer()
        bodies = [(await client.answer()).body for _ in range(5)]
        assert bodies[0] == b"later"
        for body, said in zip(bodies[1:], (b"01", b"02", b"/three", b"04"), strict=True):
            assert said in body
        desk.holds = False
        client.send(post(b"go"))
        assert (await client.answer()).body == b"taken: go"
        await client.close()


async def test_the_beginning_of_the_next_request_may_come_before_the_answer() -> None:
    following = post(b"01")
    async with serving() as (desk, _, port):
        for cut in (1, 20, len(following) - 2, len(following) - 1):
            client = await held(desk, port)
            client.send(following[:cut])
            await asyncio.sleep(0.03)
            desk.answer()
            assert (await client.answer()).body == b"later"
            client.send(following[cut:])
            assert b"b'01'" in (await client.answer()).body
            desk.holds = False
            client.send(post(b"go"))
            assert (await client.answer()).body == b"taken: go"
            await client.close()


async def test_the_beginning_of_a_request_behind_it_must_go_on(impatient: None) -> None:
    async with serving() as (desk, _, port):
        client = await held(desk, port)
        client.send(b"POST / HT")
        await asyncio.sleep(0.4)
        desk.answer()
        assert (await client.answer()).body == b"later"
        assert (await client.answer()).status == 408
        assert await client.closed()
        await client.close()


async def test_a_large_answer_is_read_slowly() -> None:
    body = bytes(range(256)) * 40_000
    async with serving() as (desk, _, port):
        client = await held(desk, port)
        client.writer.transport.pause_reading()
        desk.answer(body=body)
        desk.holds = False
        client.send(post(b"01"))
        await asyncio.sleep(0.1)
        assert (desk.handled, len(desk.taken)) == (1, 1)
        client.writer.transport.resume_reading()
        assert (await client.answer()).body == body
        assert b"b'01'" in (await client.answer()).body
        await client.close()


async def test_a_large_answer_that_the_client_does_not_read(impatient: None) -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        client.writer.transport.pause_reading()
        desk.answer(body=bytes(8_000_000))
        await asyncio.sleep(0.05)
        assert server.connections_count == 1
        await eventually(lambda: server.connections_count == 0, 5)
        client.writer.transport.abort()


@contextmanager
def noticing_standstill(server: HttpServer, cpu_s: float = 3.0) -> Iterator[list[float]]:
    """When a connection never gives back the loop, free it; what is given notes when that was."""
    struck: list[float] = []
    connections = list(server._connections.open)

    def strike(*_: object) -> None:
        struck.append(time.process_time())
        for connection in connections:
            connection._writable = None

    before = signal.signal(signal.SIGVTALRM, strike)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s, 0.5)
    try:
        yield struck
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("way", ["taken", "handled", "stream"])
async def test_a_client_that_leaves_a_large_answer_harms_nobody(way: str) -> None:
    async with serving() as (desk, server, port):
        if way == "taken":
            client = await held(desk, port)
            client.writer.transport.pause_reading()
            desk.answer(body=bytes(8_000_000))
        else:
            desk.chunks = _endless  # type: ignore[method-assign]
            client = await Http1.open(port)
            client.writer.transport.pause_reading()
            client.send(post(b"", "/large" if way == "handled" else "/stream"))
        await asyncio.sleep(0.2)
        with noticing_standstill(server) as struck:
            reset(client)
            await asyncio.sleep(0.1)
            await eventually(lambda: server.connections_count == 0, 5)
            desk.holds = False
            assert (await exchange(port, post(b"go", "/go"))).status == 200
        if struck:  # a traceback would be too much for the interpreter after this
            pytest.fail("the loop stood still", pytrace=False)


async def _endless() -> AsyncGenerator[bytes, None]:
    while True:
        yield bytes(65_536)


async def test_one_that_is_being_answered_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (desk, _, port):
        busy = await held(desk, port)
        monkeypatch.setattr(limits, "MAX_HTTP_CONNECTIONS_COUNT", 1)
        late = await Http1.open(port)
        assert (await late.answer()).status == 503
        desk.answer()
        assert (await busy.answer()).body == b"later"
        desk.holds = False
        async with connected(port) as later:  # the other is idle by now, and makes room
            later.send(post(b"go"))
            assert (await later.answer()).body == b"taken: go"
        assert await busy.closed()
        await late.close()
        await busy.close()


async def test_one_that_was_just_answered_is_not_the_one_longest_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (_, _, port):
        await known(port, post(b"ok"))
        clients = [await Http1.open(port) for _ in range(3)]
        for client in (*clients, clients[0]):
            client.send(post(b"ok"))
            assert (await client.answer()).body == b"taken: ok"
        monkeypatch.setattr(limits, "MAX_HTTP_CONNECTIONS_COUNT", 3)
        async with connected(port) as late:
            late.send(post(b"go"))
            assert (await late.answer()).body == b"taken: go"
            assert await clients[1].closed()
        for client in (clients[0], clients[2]):
            client.send(post(b"go"))
            assert (await client.answer()).body == b"taken: go"
        for client in clients:
            await client.close()


# One that a handler answers after all.


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_handler_may_answer_what_was_taken(at_once: bool) -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"ok"))

        def take(request: WholeRequest) -> bool:
            serve = partial(request.serve_by, described)
            serve() if at_once else asyncio.get_running_loop().call_later(0.05, serve)
            return True

        server = HttpServer(desk.handle, "127.0.0.1:0", take_whole=take)
        other = await server.start()
        for number in range(3):
            answer = await exchange(other, post(b"%d" % number, "/a", "x-note: n"))
            assert b"b'%d'" % number in answer.body and answer.headers["x-seen"] == "n"
        assert desk.handled == 2
        await server.stop()
        client.send(post(b"ok"))
        assert (await client.answer()).status == 200


async def failing(error: Exception, request: Request) -> Response:
    await asyncio.sleep(0)
    raise error


async def test_a_handler_that_leaves_it_unanswered() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)
        desk.taken[0].serve_by(partial(failing, Unanswered()))
        assert await client.closed()
        await client.close()
        await eventually(lambda: server.connections_count == 0)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [(HttpError(418, "by the test"), 418, b"by the test"), (ZeroDivisionError("a bug"), 500, b"internal server error")],
)
async def test_a_handler_that_fails(error: Exception, status: int, text: bytes) -> None:
    async with serving() as (desk, _, port):
        client = await held(desk, port)
        desk.taken[0].serve_by(partial(failing, error))
        answer = await client.answer()
        assert answer.status == status and text in answer.body and "connection" not in answer.headers
        desk.holds = False
        client.send(post(b"go"))
        assert (await client.answer()).body == b"taken: go"
        await client.close()


async def test_a_handler_of_what_was_taken_learns_that_its_client_left() -> None:
    async with serving() as (desk, server, port):
        client = await held(desk, port)

        async def handle(request: Request) -> Response:
            await request.client_gone()
            desk.left += 1
            raise Unanswered

        desk.taken[0].serve_by(handle)
        await asyncio.sleep(0.05)
        assert desk.left == 0
        client.writer.transport.abort()
        await eventually(lambda: desk.left == 1 and server.connections_count == 0)


async def test_a_handler_may_stream_what_was_taken() -> None:
    async with serving() as (desk, _, port):
        client = await held(desk, port)

        async def handle(request: Request) -> Stream:
            return Stream(desk.chunks(), "text/plain")

        desk.taken[0].serve_by(handle)
        answer = await client.answer()
        assert (answer.body, answer.headers["transfer-encoding"]) == (b"onetwo", "chunked")
        desk.holds = False
        client.send(post(b"go"))
        assert (await client.answer()).body == b"taken: go"
        await client.close()


# Nobody can tell: whatever comes, in whatever pieces, is answered as if no head were known.


async def _answered(pieces: Sequence[bytes], take: TakeWhole | None, *, calm: bool, half_closes: bool) -> bytes:
    """What a fresh server writes to one client. `calm`: it answers what has come before more comes."""

    async def handle(request: Request) -> Response | Stream:
        if request.path == "/refused":
            return Response(401, b"no")
        if request.path == "/error":
            raise HttpError(409, "by the test")
        return await described(request)

    shared = Connections(handle, "http", BodyBudget(), None, take)
    for raw in (SHORT, OTHER):
        await converse(shared, [raw], calm=True, half_closes=True)
    return await converse(shared, pieces, calm=calm, half_closes=half_closes)


SHORT = post(b"abc", "/short?q=1", "x-note: 1")
OTHER = post(b"defgh")
GOOD = (
    SHORT,
    SHORT,
    OTHER,
    post(b"xyz", "/short?q=1", "x-note: 1"),
    post(b"\r\n\r", "/short?q=1", "x-note: 1"),
    post(b"\r\n\r\n\r"),
    post(SHORT),
    post(b"", "/nothing"),
    post(b"", "/nothing"),
    post(b"abc", "/refused"),
    post(b"abc", "/error"),
    post(b"abc", "/expecting", "expect: 100-continue"),
    b"\r\n" + SHORT,
    SHORT + SHORT,
    b"GET /get HTTP/1.1\r\nhost: x\r\n\r\n",
    b"HEAD /head HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /chunked HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    post(b"abc", "/kept", "connection: keep-alive", version="1.0"),
)
ENDING = (
    post(b"abc", "/short?q=1", "x-note: 1", "connection: close"),
    post(b"abc", version="1.0"),
    SHORT + b"x",
    SHORT[:-1],
    b"nonsense\r\n\r\n",
    post(b"abc", "/", "content-length: 3"),
    post(bytes(MAX_BODY + 1)),
    b"POST / HTTP/1.1\r\nhost: x\r\n\r",
)


def _pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    return [stream[start:end] for start, end in pairwise(at)]


def _take_at_once(request: WholeRequest) -> bool:
    task = asyncio.get_running_loop().create_task(described(request))  # its body is there, so one pass is enough
    task.add_done_callback(lambda done: request.respond(done.result()))
    return True


def _take_in_a_while(request: WholeRequest) -> bool:
    async def later(asked: Request) -> Response:
        await passes(3)
        return await described(asked)

    request.serve_by(later)
    return True


def _same(pieces: Sequence[bytes], take: TakeWhole | None, *, calm: bool, half_closes: bool) -> None:
    answered = asyncio.run(_answered(pieces, take, calm=calm, half_closes=half_closes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_KNOWN_HEAD_BYTES", 0)
        parsed = asyncio.run(_answered(pieces, None, calm=calm, half_closes=half_closes))
    assert answered == parsed


TAKES = (None, lambda request: False, _take_at_once, _take_in_a_while)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    good=st.lists(st.sampled_from(GOOD), max_size=5),
    ending=st.sampled_from((b"", b"", *ENDING)),
    whole=st.booleans(),
    cuts=st.lists(st.integers(1, 600), max_size=5),
    take=st.sampled_from(TAKES),
    half_closes=st.booleans(),
)
def test_any_stream_in_any_pieces_is_answered_as_if_no_head_were_known(
    good: list[bytes], ending: bytes, whole: bool, cuts: list[int], take: TakeWhole | None, half_closes: bool
) -> None:
    requests = [*good, ending] if ending else good
    pieces = [piece for piece in requests if piece] if whole else _pieces(b"".join(requests), cuts)
    _same(pieces, take, calm=True, half_closes=half_closes)


@hypothesis_settings(max_examples=75, deadline=None)
@given(
    good=st.lists(st.sampled_from(GOOD), max_size=5),
    whole=st.booleans(),
    cuts=st.lists(st.integers(1, 600), max_size=5),
    take=st.sampled_from(TAKES),
)
def test_so_is_one_that_does_not_wait_for_answers(
    good: list[bytes], whole: bool, cuts: list[int], take: TakeWhole | None
) -> None:
    pieces = good if whole else _pieces(b"".join(good), cuts)
    _same(pieces, take, calm=False, half_closes=False)


@pytest.mark.parametrize("take", TAKES)
def test_a_known_pair_cut_anywhere_is_answered_as_if_no_head_were_known(take: TakeWhole | None) -> None:
    stream = SHORT + OTHER
    for cut in range(1, len(stream)):
        _same(_pieces(stream, [cut]), take, calm=True, half_closes=False)
