"""Clients of HTTP/2 that ask for much and read nothing: what waits for them is bounded in bytes and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import h2.events
import pytest
from h2.settings import SettingCodes

from kvnode.api.http import HttpServer, Request, Response, Stream
from kvnode.api.http.http2_window import MIN_SHARED_BYTES
from kvnode.base import limits
from tests.unit.api.http.raw import Http2, eventually

SIZE = 1_000_000
BODY = bytes(range(250)) * (SIZE // 250)
FIT = 3  # so many of these bodies within the bound
ASKED = 10


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    async def handle(request: Request) -> Response:
        await request.body(0)
        return Response(200, BODY if request.path == "/large" else b"small")

    server = HttpServer(handle, "127.0.0.1:0", None, http2=True)
    try:
        yield await server.start()
    finally:
        await server.stop()


@pytest.fixture(autouse=True)
def _small_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP2_UNREAD_CONNECTION_BYTES", FIT * SIZE)


async def deaf(port: int) -> tuple[Http2, list[int]]:
    """A client that lets no byte of a body come, and has asked for large answers."""
    client = await Http2.open(port)
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.flush()
    return client, [client.begin("/large", end=True) for _ in range(ASKED)]


async def statuses(client: Http2, streams: list[int]) -> list[int]:
    """Of answers whose heads must come, although no body can."""
    async with asyncio.timeout(10):
        while True:
            events = [event for stream in streams for event in client.events.get(stream, ())]
            heads = [int(dict(e.headers)[":status"]) for e in events if isinstance(e, h2.events.ResponseReceived)]
            if len(heads) == len(streams):
                return heads
            assert await client.pump()


async def test_what_waits_for_a_client_is_bounded_and_others_are_answered() -> None:
    async with serving() as port:
        client, streams = await deaf(port)
        heads = await statuses(client, streams)
        assert heads.count(200) == FIT
        assert heads.count(503) == ASKED - FIT
        other = await Http2.open(port)
        assert (await other.request("/")).body == b"small"
        assert (await other.request("/large")).body == BODY
        await client.close()
        await other.close()


async def test_what_waits_for_all_clients_is_bounded_until_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP2_UNREAD_BYTES", FIT * SIZE)
    async with serving() as port:
        client, streams = await deaf(port)
        await statuses(client, streams)
        other = await Http2.open(port)
        refused = await other.request("/large")
        assert refused.status == 503 and b"try again later" in refused.body
        assert (await other.request("/")).body == b"small"
        client.writer.transport.abort()
        async with asyncio.timeout(10):
            while (whole := await other.request("/large")).status == 503:
                await asyncio.sleep(0.02)
        assert (whole.status, whole.body) == (200, BODY)
        await other.close()


@pytest.mark.parametrize("direct", [False, True])
async def test_what_was_carried_out_is_not_said_to_be_unavailable(direct: bool) -> None:
    """A 503 says that nothing was done, and its client would do it again."""
    carried_out = 0

    async def handle(request: Request) -> Response:
        nonlocal carried_out
        if request.path == "/large":
            return Response(200, BODY)
        await request.body(100)
        carried_out += 1
        large = request.path == "/change" and carried_out > 2  # those before are how the head becomes known
        return Response(200, BODY if large else b"small", instead=Response(504, b"not known"))

    def take(_: object) -> bool:
        return False

    server = HttpServer(handle, "127.0.0.1:0", None, http2=True, take_whole=take if direct else None)
    client = await Http2.open(await server.start())
    client.h2.increment_flow_control_window(MIN_SHARED_BYTES)
    client.flush()
    for _ in range(2):
        assert (await client.request("/change", {"content-length": "2"}, b"ok")).status == 200
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.flush()
    await statuses(client, [client.begin("/large", end=True) for _ in range(FIT)])
    streams = []
    for _ in range(2):
        streams.append(client.begin("/change", {"content-length": "2"}))
        await client.send(streams[-1], b"ok")
    assert await statuses(client, streams) == [504, 504]
    await eventually(lambda: carried_out == 4)
    await client.close()
    await server.stop()


async def test_a_stream_that_its_client_resets_owes_nothing() -> None:
    async with serving() as port:
        client, streams = await deaf(port)
        assert (await statuses(client, streams)).count(503) == ASKED - FIT
        for stream in streams:
            client.h2.reset_stream(stream)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
        client.flush()
        async with asyncio.timeout(10):
            while (whole := await client.request("/large")).status == 503:
                await asyncio.sleep(0.02)
        assert whole.body == BODY
        await client.close()


async def test_who_reads_nothing_holds_it_for_a_bounded_time(impatient: None) -> None:
    async with serving() as port:
        client, streams = await deaf(port)
        await statuses(client, streams)
        async with asyncio.timeout(10):
            while await client.pump():
                pass
        await client.close()
        other = await Http2.open(port)
        assert (await other.request("/large")).body == BODY
        await other.close()


async def test_a_large_answer_that_is_read_slowly_comes_whole() -> None:
    async with serving() as port:
        client = await Http2.open(port)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.flush()
        stream = client.begin("/large", end=True)
        assert await statuses(client, [stream]) == [200]
        while len(client.data(stream)) < SIZE:
            client.h2.increment_flow_control_window(min(100_000, SIZE - len(client.data(stream))), stream)
            client.flush()
            before = len(client.data(stream))
            await client.data_of(stream, before + 1)
            await asyncio.sleep(0.01)
        answer = await client.answer(stream)
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(SIZE), BODY)
        await client.close()


async def test_many_large_answers_one_after_the_other_are_all_read() -> None:
    """The bound is on what waits, not on what has been sent."""
    async with serving() as port:
        client = await Http2.open(port)
        for _ in range(3 * FIT):
            assert (await client.request("/large")).body == BODY
        await client.close()


async def test_chunks_are_made_as_they_are_read_and_what_is_not_read_of_one_holds_no_other_up() -> None:
    """A watch that is read slowly leaves states out; another one of the same connection goes on."""
    made: dict[str, int] = {}

    async def chunks(path: str) -> AsyncGenerator[bytes, None]:
        while True:
            made[path] = made.get(path, 0) + 1
            yield b"%08d" % made[path] + b"x" * 30_000
            await asyncio.sleep(0)

    async def handle(request: Request) -> Stream:
        await request.body(0)
        return Stream(chunks(request.path), "application/octet-stream")

    server = HttpServer(handle, "127.0.0.1:0", None, http2=True)
    client = await Http2.open(await server.start())
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.flush()
    slow, fast = client.begin("/slow", end=True), client.begin("/fast", end=True)
    for _ in range(40):
        client.h2.increment_flow_control_window(30_008, fast)
        client.flush()
        before = len(client.data(fast))
        await asyncio.wait_for(client.data_of(fast, before + 1), 10)
    await asyncio.sleep(0.1)
    assert 5 <= made["/fast"] <= len(client.data(fast)) // 30_008 + 5, "made faster than they were read"
    assert made["/slow"] <= 4, "made although nobody reads"
    assert not client.data(slow)
    client.h2.increment_flow_control_window(200_000, slow)
    client.flush()
    await asyncio.wait_for(client.data_of(slow, 200_000), 10)
    await client.close()
    await server.stop()
