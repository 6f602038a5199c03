"""Requests over HTTP/2 that are answered past granian: the same answers, the same bounds, one connection for both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h2.events
import h2.exceptions
import pytest
from h2.settings import SettingCodes
from hpack import NeverIndexedHeaderTuple

from kvnode.api.http import HttpServer
from kvnode.api.http.http2_direct import Direct
from kvnode.api.http.http2_known import KnownBlocks
from kvnode.api.http.http2_window import MIN_SHARED_BYTES
from kvnode.api.http.known_heads import KnownHead
from kvnode.base import limits
from tests.unit.api.http.known_heads import MAX_BODY, serving
from tests.unit.api.http.raw import Answer, Http2, eventually

HEADERS, DATA, RST, PING, WINDOW_UPDATE = 0x1, 0x0, 0x3, 0x6, 0x8


@asynccontextmanager
async def connected(port: int, window_bytes: int = MIN_SHARED_BYTES) -> AsyncIterator[Http2]:
    """A client with windows as Deno's has them."""
    client = await Http2.open(port)
    client.h2.increment_flow_control_window(window_bytes)
    client.flush()
    try:
        yield client
    finally:
        await client.close()


async def post(client: Http2, body: bytes = b"ok", path: str = "/", **headers: str) -> Answer:
    return await client.answer(await begin(client, body, path, **headers))


async def begin(client: Http2, body: bytes = b"ok", path: str = "/", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    stream = client.begin(path, {"content-length": str(len(body)), **named})
    await client.send(stream, body, end=False)
    client.h2.end_stream(stream)
    client.flush()
    return stream


async def learned(client: Http2, body: bytes = b"ok", path: str = "/", **headers: str) -> None:
    """Have the server know a head: the first makes the tables as they stay, the second is parsed under them."""
    for _ in range(2):
        assert (await post(client, body, path, **headers)).status == 200


def way(server: HttpServer) -> Direct:
    """The direct way of its only connection of HTTP/2."""
    assert server._http2 is not None
    (direct,) = server._http2.direct.connections
    return direct


async def test_a_head_that_comes_again_is_answered_directly() -> None:
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        assert way(server).last_taken == 0
        for body in (b"ab", b"cd"):
            assert (await post(client, body)).body == b"taken: " + body
        assert way(server).last_taken == 7 and not way(server).is_busy
        assert desk.handled == 1, "a handler was asked although the request was taken"


async def test_a_head_that_differs_in_its_length_alone_is_known_too() -> None:
    """As Deno writes it: the length is never indexed."""
    async with serving() as (desk, server, port), connected(port) as client:
        encoder = client.h2.encoder
        encode = encoder.encode
        encoder.encode = lambda headers, **rest: encode(  # type: ignore[method-assign]
            [NeverIndexedHeaderTuple(*h) if h[0] in ("content-length", b"content-length") else h for h in headers]
        )
        desk.takes = False
        await learned(client, b"ok", x_note="n")
        for size in (0, 1, 9, 345, 9_876):
            answer = await post(client, b"x" * size, x_note="n")
            assert answer.status == 200 and answer.body.endswith(repr(("n", b"x" * size))[1:].encode())
            assert way(server).last_taken == max(client.events)
        desk.takes = True
        assert (await post(client, b"four", x_note="n")).body == b"taken: four"
        too_large = await post(client, b"x" * (limits.HTTP_READ_AHEAD_BYTES + 1), x_note="n")
        assert too_large.status == 413 and way(server).last_taken < max(client.events)


async def test_no_more_heads_are_known_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN_BLOCKS_BYTES", 300)
    known = KnownBlocks()
    for number in range(100):
        block = b"\x83" * 10 + b"\x0f\x0d\x02%02d" % number
        known.add(block, KnownHead(b"/", {}, number))
        assert known._size_bytes == sum(map(len, [*known._heads, *known._forms])) <= 300
        found = known.find(block)
        assert found is not None and found.body_bytes == number
    monkeypatch.setattr(limits, "MAX_KNOWN_BLOCKS_BYTES", 5)
    known.add(block, KnownHead(b"/", {}, 99))
    assert known.find(block) is None and not known._size_bytes


async def test_the_answer_and_what_the_handler_sees_are_the_same() -> None:
    async with serving() as (desk, server, port), connected(port) as client:
        desk.takes = False
        path, note = "/p%20q?a=1&a=2&b", "x" * 300
        first = await post(client, b"body", path, x_note=note)
        second = await post(client, b"body", path, x_note=note)
        assert way(server).last_taken == 0
        third = await post(client, b"body", path, x_note=note)
        assert way(server).last_taken == 5
        assert first.body == second.body == third.body and note.encode() in first.body and b"http://test" in first.body
        same = {"content-type", "content-length", "cache-control", "x-seen", ":status"}
        assert {name: third.headers[name] for name in same} == {name: second.headers[name] for name in same}
        assert "date" in third.headers and set(third.headers) <= set(second.headers) | {"date"}


@pytest.mark.parametrize(("path", "status"), [("/refused", 401), ("/error", 409), ("/boom", 500)])
async def test_answers_of_a_handler_that_are_no_200(path: str, status: int) -> None:
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        desk.takes = False
        seen = desk.handle

        async def handle(request: object) -> object:
            class Other:
                def __getattr__(self, name: str) -> object:
                    return path if name == "path" else getattr(request, name)

            return await seen(Other())  # type: ignore[arg-type]

        assert server._http2 is not None
        server._http2.direct.handle = handle  # type: ignore[assignment]
        assert (await post(client)).status == status
        assert way(server).last_taken == 5
        desk.takes = True
        assert (await post(client, b"go")).body == b"taken: go"


async def test_any_order_of_heads_and_bodies_is_understood() -> None:
    """HPACK's tables change under the connection all the time: a head must never be taken for what it once meant."""
    async with serving() as (desk, server, port):
        desk.takes = False
        taken = 0
        for seed in range(6):
            chance = random.Random(seed)
            async with connected(port) as client:
                under_way: list[tuple[int, bytes, str, str]] = []
                for _ in range(120):
                    body = bytes(chance.choices(b"xyz", k=chance.choice((2, 2, 2, 3))))
                    path = chance.choice(("/a", "/a", "/b", "/b?c=d"))
                    note = chance.choice(("n", "n", "n", "n", "m", f"once {chance.random()}"))
                    under_way.append((await begin(client, body, path, x_note=note), body, path, note))
                    if chance.random() < 0.5:
                        for stream, sent, asked, noted in under_way:
                            answer = await client.answer(stream)
                            assert answer.status == 200 and answer.headers["x-seen"] == noted
                            expected = ("POST", asked.partition("?")[0])
                            assert answer.body.startswith(repr(expected)[:-1].encode()), answer.body
                            assert answer.body.endswith(repr((noted, sent))[1:].encode()), answer.body
                        under_way.clear()
                taken += way(server).last_taken > 0
            await eventually(lambda: server.connections_count == 0)
        assert taken == 6, "the test is about requests that are answered directly"


async def test_large_answers_share_the_window_with_granians() -> None:
    """The client raises FlowControlError when either sends more than it may."""
    async with serving() as (desk, server, port), connected(port, 2 * MIN_SHARED_BYTES) as client:
        desk.takes = False
        await learned(client, b"ok", "/large")
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 3_000_000})
        client.flush()
        streams = []
        for number in range(3):
            streams.append(await begin(client, b"ok", "/large"))
            streams.append(await begin(client, b"ok", "/large", x_note=f"other {number}"))
        for stream in streams:
            answer = await client.answer(stream)
            assert (answer.status, len(answer.body)) == (200, 8_000_000)
        direct = way(server)
        assert 5 <= direct.last_taken < streams[-1]
        assert 0 <= direct.window.granted_bytes <= direct.window.pool_bytes
        assert server._http2 is not None and server._http2.unread.owed_bytes == 0


async def test_an_answer_waits_for_its_streams_window() -> None:
    async with serving() as (desk, server, port), connected(port) as client:
        desk.takes = False
        await learned(client, b"ok", "/large")
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
        client.flush()
        while not any(10 in [c.new_value for c in each.changed_settings.values()] for each in acknowledged(client)):
            assert await client.pump()
        stream = await begin(client, b"ok", "/large")
        assert len(await client.data_of(stream, 10)) == 10
        assert way(server).is_busy
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
        client.flush()
        assert len((await client.answer(stream)).body) == 8_000_000
        assert not way(server).is_busy


async def test_what_a_client_is_slow_to_read_does_not_pile_up_in_its_socket() -> None:
    """Or a ping would have to wait behind all of it, and granian ends whoever does not answer."""
    async with serving() as (desk, server, port), connected(port, 64 * MIN_SHARED_BYTES) as client:
        desk.takes = False
        await learned(client, b"ok", "/large")
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 64_000_000})
        client.flush()
        while not any(64_000_000 in [c.new_value for c in e.changed_settings.values()] for e in acknowledged(client)):
            assert await client.pump()
        streams = [await begin(client, b"ok", "/large") for _ in range(4)]
        await asyncio.sleep(0.3)
        (pipe,) = server._pipes
        assert pipe._client.transport is not None
        assert pipe._client.transport.get_write_buffer_size() < 500_000 and way(server).is_busy
        for stream in streams:
            assert len((await client.answer(stream)).body) == 8_000_000


@pytest.mark.parametrize("window_bytes", [1, MIN_SHARED_BYTES - 1])
async def test_a_small_window_is_granians_alone(window_bytes: int) -> None:
    async with serving() as (_, server, port), connected(port, window_bytes) as client:
        await learned(client)
        assert (await post(client, b"go")).body == b"taken: go"
        assert not way(server).shares and way(server).last_taken == 0


async def test_a_client_that_wants_small_tables_is_left_to_granian() -> None:
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client)
        await post(client)
        client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 0})
        client.flush()
        taken = way(server).last_taken
        assert taken == 5
        for _ in range(3):
            assert (await post(client, b"go")).body == b"taken: go"
        assert way(server).last_taken == taken


@pytest.mark.parametrize("body", [b"o", b"okay"])
async def test_a_body_of_another_length_resets_its_stream_alone(body: bytes) -> None:
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client)
        stream = client.begin("/", {"content-length": "2"})
        for piece in (body[:1], body[1:]):
            client.h2._data_to_send += frame(DATA, 0, stream, piece)
        client.h2._data_to_send += frame(DATA, 0x1, stream)
        client.flush()
        await eventually_ended(client, stream)
        (reset,) = [e for e in client.events[stream] if isinstance(e, h2.events.StreamReset)]
        assert reset.error_code == 1 and not way(server).is_busy
        assert (await post(client, b"go")).body == b"taken: go"


async def test_a_padded_body_in_pieces() -> None:
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client, b"hello")
        stream = client.begin("/", {"content-length": "5"})
        client.h2.send_data(stream, b"he", pad_length=9)
        client.h2.send_data(stream, b"llo", pad_length=0, end_stream=True)
        client.flush()
        assert (await client.answer(stream)).body == b"taken: hello"
        assert way(server).last_taken == stream


async def test_too_many_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP2_STREAMS_COUNT", 3)
    async with serving() as (desk, _, port), connected(port) as client:
        await learned(client)
        client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100
        client.h2.remote_settings.acknowledge()
        desk.holds = True
        streams = [await begin(client) for _ in range(4)]
        await eventually_ended(client, streams[3])
        assert [e.error_code for e in client.events[streams[3]] if isinstance(e, h2.events.StreamReset)] == [7]
        for at in range(3):
            desk.answer(at - 3)
        for stream in streams[:3]:
            assert (await client.answer(stream)).body == b"later"


async def test_a_stream_that_the_client_resets_is_answered_to_nobody() -> None:
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        desk.holds = True
        stream, other = await begin(client), await begin(client)
        await eventually(lambda: len(desk.taken) == 3)
        client.h2.reset_stream(stream, 8)
        client.flush()
        await eventually(lambda: not way(server).owns(stream))
        desk.answer(-2)
        desk.answer(-1)
        assert (await client.answer(other)).body == b"later"
        assert not any(isinstance(e, h2.events.ResponseReceived) for e in client.events.get(stream, ()))


@pytest.mark.parametrize("resets", [True, False])
async def test_a_handler_that_waits_for_the_client_to_go_hears_of_it(resets: bool) -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await learned(client)
        desk.holds = True
        stream = await begin(client)
        await eventually(lambda: len(desk.taken) == 2)
        desk.taken[-1].serve_by(desk.await_leaving)
        await asyncio.sleep(0.05)
        assert desk.left == 0
        if resets:
            client.h2.reset_stream(stream, 8)
            client.flush()
        else:
            await client.close()
        await eventually(lambda: desk.left == 1)


async def test_a_body_that_does_not_come_is_too_slow(impatient: None) -> None:
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client)
        stream = client.begin("/", {"content-length": "2"})
        answer = await client.answer(stream)
        assert answer.status == 408 and not way(server).is_busy
        client.h2._data_to_send += frame(DATA, 0x1, stream, b"ok")  # too late
        client.flush()
        assert (await post(client, b"go")).body == b"taken: go"


async def test_a_refusal_that_waits_for_its_window_is_whole_before_its_stream_is_reset(impatient: None) -> None:
    """Behind the reset nothing more of it may be sent (RFC 9113, 5.1)."""
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.flush()
        stream = client.begin("/", {"content-length": "2"})
        while not client.events.get(stream):
            assert await client.pump()
        await asyncio.sleep(0.1)
        assert way(server).owns(stream) and not client.ended(stream)
        client.h2.increment_flow_control_window(1_000, stream)
        client.flush()
        answer = await client.answer(stream)
        assert answer.status == 408 and answer.body.startswith(b"The body did not arrive")
        while not any(isinstance(e, h2.events.StreamReset) for e in client.events[stream]):
            assert await client.pump()


async def test_bodies_that_have_come_in_part_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP_BODIES_BYTES", 10)
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client, b"eight by")
        first, second = (client.begin("/", {"content-length": "8"}) for _ in range(2))
        for stream in (first, second):
            client.h2.send_data(stream, b"eight ")
            client.flush()
        answer = await client.answer(second)
        assert answer.status == 503 and b"too many bodies" in answer.body
        client.h2.send_data(first, b"by", end_stream=True)
        client.flush()
        assert (await client.answer(first)).body == b"taken: eight by"
        assert server._http2 is not None and server._http2.direct.budget._reserved_bytes == 0


async def test_what_comes_late_for_a_stream_that_is_over_is_not_heard_by_granian() -> None:
    """Its number is one that granian has never heard of: it would end the connection."""
    async with serving() as (_, _, port), connected(port) as client:
        await learned(client)
        stream = await begin(client)
        await client.answer(stream)
        update = frame(WINDOW_UPDATE, 0, stream, (1_000).to_bytes(4, "big"))
        client.h2._data_to_send += update + frame(RST, 0, stream, (8).to_bytes(4, "big")) + update
        client.flush()
        assert (await post(client, b"ok", "/created")).status == 201  # by granian, on the same connection
        assert (await post(client, b"go", "/other")).status == 200
        assert not [e for e in client.others if isinstance(e, h2.events.ConnectionTerminated)]


async def test_trailers_of_a_taken_stream_end_the_connection() -> None:
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client)
        stream = client.begin("/", {"content-length": "2"})
        await eventually(lambda: way(server).owns(stream))
        client.h2._data_to_send += frame(HEADERS, 0x5, stream, b"\x88")
        client.flush()
        while await client.pump():
            pass
        (goaway,) = [e for e in client.others if isinstance(e, h2.events.ConnectionTerminated)]
        assert (goaway.error_code, goaway.last_stream_id) == (1, stream)


async def test_a_window_that_overflows_ends_the_connection() -> None:
    async with serving() as (_, _, port), connected(port) as client:
        await learned(client)
        client.h2._data_to_send += frame(WINDOW_UPDATE, 0, 0, (2**31 - 1).to_bytes(4, "big"))
        client.flush()
        while await client.pump():
            pass
        (goaway,) = [e for e in client.others if isinstance(e, h2.events.ConnectionTerminated)]
        assert goaway.error_code == 3


async def test_a_server_that_stops_answers_what_it_took_and_says_so() -> None:
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        desk.holds = True
        stream = await begin(client)
        await eventually(lambda: len(desk.taken) == 2)
        stopping = asyncio.ensure_future(server.stop())
        await asyncio.sleep(0.3)
        assert not stopping.done()
        desk.answer()
        assert (await client.answer(stream)).body == b"later"
        while await client.pump():
            pass
        goaways = [e for e in client.others if isinstance(e, h2.events.ConnectionTerminated)]
        assert goaways and all(e.last_stream_id >= stream and not e.error_code for e in goaways)
        await asyncio.wait_for(stopping, 5)


async def test_a_server_that_stops_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHUTDOWN_TIMEOUT_MS", 600)
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        desk.holds = True
        await begin(client)
        await eventually(lambda: len(desk.taken) == 2)
        async with asyncio.timeout(5):
            await server.stop()
        await eventually(lambda: server.connections_count == 0)


async def test_the_window_for_bodies_is_given_back() -> None:
    body = b"x" * 9_000
    assert len(body) < MAX_BODY
    async with serving() as (_, _, port), connected(port) as client:
        await learned(client, body)
        for _ in range(2 * limits.HTTP2_CONNECTION_WINDOW_BYTES // len(body)):
            assert (await post(client, body)).body == b"taken: " + body
        assert client.h2.outbound_flow_control_window > limits.HTTP2_CONNECTION_WINDOW_BYTES // 2


async def settled(count: Callable[[], int]) -> None:
    """Until it grows no more."""
    before, now = -1, count()
    while before != now:
        await asyncio.sleep(0.3)
        before, now = now, count()


def acknowledged(client: Http2) -> list[h2.events.SettingsAcknowledged]:
    return [event for event in client.others if isinstance(event, h2.events.SettingsAcknowledged)]


async def eventually_ended(client: Http2, stream: int) -> None:
    while not client.ended(stream):
        assert await client.pump()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
