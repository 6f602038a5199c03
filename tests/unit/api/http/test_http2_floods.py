"""Clients of HTTP/2 that send what is of no use, or ask and take nothing: past granian they are bounded too."""

from __future__ import annotations

import asyncio
import time

import h2.events
import pytest
from h2.settings import SettingCodes

from kvnode.base import limits
from tests.unit.api.http.known_heads import serving
from tests.unit.api.http.raw import eventually
from tests.unit.api.http.test_http2_direct import (
    DATA,
    HEADERS,
    PING,
    acknowledged,
    begin,
    connected,
    frame,
    learned,
    post,
    settled,
    way,
)


async def test_frames_cost_the_same_however_many_answers_wait_for_their_windows() -> None:
    """Or some kilobytes of them, from one client, would keep the node from all else for minutes."""
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.flush()
        while not any(0 in [c.new_value for c in e.changed_settings.values()] for e in acknowledged(client)):
            assert await client.pump()
        streams = [await begin(client) for _ in range(900)]
        direct = way(server)
        await eventually(lambda: len(direct._unsent) == 900)
        none = b"\x00\x04\x00\x00\x00\x00"
        began_s = time.process_time()
        for _ in range(1_000):
            direct.window_update(0, 1)
            direct.settings(none)
            direct.acknowledged()
        assert time.process_time() - began_s < 0.1  # 0.3 s or more if each looks at all that wait
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        client.flush()
        for stream in streams:
            assert (await client.answer(stream)).body == b"taken: ok"


async def test_what_comes_behind_granians_goaway_is_not_carried_out() -> None:
    """The client is told that it was not, and so may send it again elsewhere (RFC 9113, 6.8)."""
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        desk.holds = True
        stream = await begin(client)
        await eventually(lambda: way(server).owns(stream))
        client.h2._data_to_send += frame(PING, 0, 0, b"short")
        client.flush()
        while not any(isinstance(e, h2.events.ConnectionTerminated) for e in client.others):
            assert await client.pump()
        (goaway,) = [e for e in client.others if isinstance(e, h2.events.ConnectionTerminated)]
        assert goaway.last_stream_id == stream
        count = len(desk.taken)
        await begin(client, b"no")
        await asyncio.sleep(0.1)
        assert len(desk.taken) == count and way(server).last_taken == stream
        desk.answer(body=b"held")
        assert (await client.answer(stream)).body == b"held"
        while await client.pump():
            pass


async def test_requests_that_are_reset_count_until_their_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a client that resets what it asks for has the node do any amount of it at a time."""
    monkeypatch.setattr(limits, "MAX_HTTP2_STREAMS_COUNT", 3)
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        desk.holds = True
        for _ in range(5):
            stream = await begin(client)
            client.h2.reset_stream(stream, 8)
            client.flush()
        refused = await begin(client)
        while not client.ended(refused):
            assert await client.pump()
        (reset,) = [e for e in client.events[refused] if isinstance(e, h2.events.StreamReset)]
        assert reset.error_code == 7 and len(desk.taken) == 4 and not way(server).is_busy
        for at in (1, 2, 3):
            desk.answer(at)
        desk.holds = False
        assert (await post(client, b"go")).body == b"taken: go"


@pytest.mark.parametrize("kind", ["empty", "padded", "resets", "late"])
async def test_frames_of_no_use_end_the_connection_when_they_are_too_many(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As granian ends it."""
    monkeypatch.setattr("kvnode.api.http.http2_direct._MAX_WASTED_COUNT", 50)
    async with serving() as (_, server, port), connected(port) as client:
        await learned(client)
        for _ in range(100):  # an answer in between is what tells a client that is cancelled often
            stream = client.begin("/", {"content-length": "2"})
            client.h2.reset_stream(stream, 8)
            client.flush()
            assert (await post(client, b"go")).body == b"taken: go"
        stream = await begin(client) if kind == "late" else client.begin("/", {"content-length": "2"})
        if kind == "late":
            await client.answer(stream)
        await eventually(lambda: way(server).last_taken == stream)
        for _ in range(60):
            if kind == "resets":
                client.h2.reset_stream(client.begin("/", {"content-length": "2"}), 8)
                client.flush()
            else:
                padded = kind == "padded"
                client.h2._data_to_send += frame(DATA, 0x8 * padded, stream, b"\x01\x00" if padded else b"")
        client.flush()
        while await client.pump():
            pass
        (goaway,) = [e for e in client.others if isinstance(e, h2.events.ConnectionTerminated)]
        assert goaway.error_code == 0xB


async def test_a_client_that_asks_and_does_not_read_is_not_heard_any_more() -> None:
    async with serving() as (desk, server, port), connected(port) as client:
        await learned(client)
        first = client.h2.get_next_available_stream_id()
        client.h2.send_headers(first, [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "test"),
                                       ("content-length", "2")])  # fmt: skip
        block = client.h2.data_to_send()[9:]

        def asked(numbers: range) -> bytes:
            return b"".join(
                frame(HEADERS, 0x4, first + 2 * number, block) + frame(DATA, 0x1, first + 2 * number, b"ok")
                for number in numbers
            )

        (pipe,) = server._pipes
        for sent in range(0, 1_000_000, 1_000):
            client.writer.write(asked(range(sent, sent + 1_000)))
            try:
                async with asyncio.timeout(0.5):
                    await client.writer.drain()
            except TimeoutError:  # the server is slow, or has heard enough
                await settled(lambda: len(desk.taken))
                if pipe._client._holds:
                    break
        else:
            pytest.fail("a million requests were taken from a client that reads nothing")
        seen = len(desk.taken)
        assert 1_000 < seen < sent + 1_000, "all that was asked was heard"
        await asyncio.sleep(0.2)
        assert len(desk.taken) == seen, "it is still heard"
        while len(desk.taken) <= seen:  # it reads again
            assert await client.reader.read(65_536)
