"""Requests with a known head that were taken whole, and are answered later, or by a handler after all."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from kvnode.api.http import HttpError, HttpServer, Request, Response, Stream, Unanswered, WholeRequest
from kvnode.base import limits
from tests.unit.api.http.known_heads import (
    connected,
    described,
    exchange,
    held,
    known,
    post,
    serving,
)
from tests.unit.api.http.raw import Http1, eventually

# One that is answered later.


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
        desk.taken[0].serve_by(desk.await_leaving)
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
        desk.taken[0].serve_by(desk.await_leaving)
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
        desk.taken[0].serve_by(desk.await_leaving)
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
