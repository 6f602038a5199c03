"""Watches that a client does not read leave its other answers room, and do not stop one that it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import h2.events
from h2.settings import SettingCodes

from kvnode.api.http import HttpServer, Request, Response, Stream
from kvnode.api.http.http2_window import FIRST_WINDOW_BYTES, GRANT_BYTES, SharedWindow
from tests.unit.api.http.raw import Http2

CONNECTION_BYTES, STREAM_BYTES = 5 * 1_048_576, 2 * 1_048_576  # Deno's windows
FRAME_BYTES = 60_000


class Deno(Http2):
    """Gives windows back as Deno's library does: once what was read is half of what is left."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.unread: set[int] = set()
        self.left = {0: FIRST_WINDOW_BYTES}
        self.read = {0: 0}
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: STREAM_BYTES})
        self.give(0, CONNECTION_BYTES - FIRST_WINDOW_BYTES)
        self.flush()

    def give(self, stream: int, by_bytes: int) -> None:
        self.left[stream] += by_bytes
        self.h2.increment_flow_control_window(by_bytes, stream or None)

    def _take(self, event: h2.events.Event) -> None:
        if not isinstance(event, h2.events.DataReceived):
            super()._take(event)
            return
        stream, size = event.stream_id, event.flow_controlled_length
        self.events.setdefault(stream, []).append(event)
        self.left.setdefault(stream, STREAM_BYTES)
        for which in (0, stream):
            self.left[which] -= size
            if stream not in self.unread:
                self.read[which] = self.read.get(which, 0) + size
                if self.read[which] >= self.left[which] // 2 and not event.stream_ended:
                    self.give(which, self.read.pop(which))
                    self.read[which] = 0


async def serve(request: Request) -> Response | Stream:
    async def frames() -> AsyncGenerator[bytes, None]:
        for _ in range(400):  # bounded, and with turns for the loop: a client that leaves is heard of there alone
            await asyncio.sleep(0)
            yield bytes(FRAME_BYTES)

    return Stream(frames(), "x") if request.path == "/stream" else Response(200, bytes(FRAME_BYTES))


async def settled(client: Deno) -> None:
    """Until nothing more comes."""
    while True:
        try:
            async with asyncio.timeout(0.5):
                assert await client.pump()
        except TimeoutError:
            return


async def with_unread(client: Deno, count: int) -> None:
    for _ in range(count):
        client.unread.add(client.begin("/stream", end=True))
    await settled(client)


@asynccontextmanager
async def deno(unread_count: int) -> AsyncIterator[Deno]:
    """A client with so many streams that it does not read."""
    server = HttpServer(serve, "127.0.0.1:0", http2=True, take_whole=lambda request: False)
    port = await server.start()
    client = Deno(*await asyncio.open_connection("127.0.0.1", port))
    try:
        await with_unread(client, unread_count)
        async with asyncio.timeout(60):
            yield client
    finally:
        await client.close()
        await server.stop()


async def test_other_answers_come() -> None:
    async with deno(12) as client:
        for _ in range(200):
            assert len((await client.request("/")).body) == FRAME_BYTES


async def test_a_stream_that_is_read_goes_on() -> None:
    async with deno(2) as client:
        stream = client.begin("/stream", end=True)
        for count in range(1, 100):
            await client.data_of(stream, count * FRAME_BYTES)


def test_what_is_left_of_a_window() -> None:
    window = SharedWindow(lambda _: None, lambda _: None, may_share=True)
    given = []
    window.on_given = lambda: given.append(window.pool_bytes)
    assert window.has_left(1, 0), "what is not shared is not looked at"
    window.given(CONNECTION_BYTES - FIRST_WINDOW_BYTES)
    assert given == [CONNECTION_BYTES]
    room = CONNECTION_BYTES - GRANT_BYTES  # the rest is granian's
    assert window.has_left(1 / 4, room - CONNECTION_BYTES // 4)
    assert not window.has_left(1 / 4, room - CONNECTION_BYTES // 4 + 1)
    window.use(CONNECTION_BYTES // 2)
    assert window.has_left(1 / 4, 0) and not window.has_left(1 / 2, 0)
    window.given(CONNECTION_BYTES // 4)
    assert window.has_left(1 / 2, 0)
