"""watch over real sockets."""

from __future__ import annotations

import asyncio
import struct

import pytest

from kvnode.api.connect.ports import DatabaseMode
from kvnode.base.errors import InvalidRequest, Unavailable
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.connect.support import (
    data_headers,
    eventually,
    frame,
    path,
    serving,
    watch_bytes,
)
from tests.unit.api.http.raw import Http1, Http2


def begin(client: Http1) -> None:
    body = watch_bytes(b"k")
    head = f"POST {path('watch')} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in data_headers().items())
    client.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


def output_of(chunk: bytes) -> wire.WatchOutput:
    (size,) = struct.unpack("<I", chunk[:4])
    assert len(chunk) == size + 4
    return wire.WatchOutput.FromString(chunk[4:])


async def test_frames_pings_and_deletes_over_http_1() -> None:
    async with serving() as running:
        client = await Http1.open(running.port)
        running.backend.frames.put_nowait(frame(b"k", b"1"))
        begin(client)
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "application/octet-stream")
        first = output_of(await client.chunk())
        assert (first.status, first.keys[0].changed, first.keys[0].entry_if_changed.value) == (
            wire.SR_SUCCESS,
            True,
            b"1",
        )
        running.backend.frames.put_nowait(kv_pb2.WatchResponse(ping=True))
        assert await client.chunk() == bytes(4)
        running.backend.frames.put_nowait(frame(b"k", None))
        gone = output_of(await client.chunk()).keys[0]
        assert (gone.changed, gone.HasField("entry_if_changed")) == (True, False)
        await client.close()
        await eventually(lambda: running.backend.watching == 0)
        assert running.stats.watches == 0


async def test_frames_over_http_2_and_a_client_that_resets_the_stream() -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        running.backend.frames.put_nowait(frame(b"k", b"1"))
        stream = client.begin(path("watch"), data_headers())
        await client.send(stream, watch_bytes(b"k"))
        (size,) = struct.unpack("<I", (await client.data_of(stream, 4))[:4])
        assert len(await client.data_of(stream, size + 4)) == size + 4
        client.h2.reset_stream(stream)
        client.flush()
        await client.writer.drain()
        await eventually(lambda: running.backend.watching == 0)
        await client.close()


async def test_a_client_that_vanishes_ends_its_watch() -> None:
    async with serving() as running:
        for open_ in (Http1.open, Http2.open):
            client = await open_(running.port)
            running.backend.frames.put_nowait(frame(b"k", b"1"))
            if isinstance(client, Http1):
                begin(client)
                await client.head()
            else:
                stream = client.begin(path("watch"), data_headers())
                await client.send(stream, watch_bytes(b"k"))
                await client.data_of(stream, 4)
            client.writer.transport.abort()
            await eventually(lambda: running.backend.watching == 0)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("TOO_MANY_WATCHED_KEYS", "Too many keys watched in a single watch request."), 400),
        (Unavailable("this node serves as many watches as it may"), 503),
    ],
)
async def test_a_refused_watch_is_no_stream(error: Exception, status: int) -> None:
    async with serving() as running:
        client = await Http1.open(running.port)
        running.backend.error = error
        begin(client)
        assert (await client.answer()).status == status
        await client.close()


async def test_a_backend_that_stops_ends_the_stream_cleanly() -> None:
    async with serving() as running:
        client = await Http1.open(running.port)
        running.backend.frames.put_nowait(frame(b"k", b"1"))
        begin(client)
        await client.head()
        await client.chunk()
        running.backend.frames.put_nowait(Unavailable("the node is stopping"))
        assert await client.chunk() == b""
        await client.close()


async def test_a_database_that_is_disabled_meanwhile_says_so_and_ends() -> None:
    async with serving() as running:
        client = await Http1.open(running.port)
        running.backend.frames.put_nowait(frame(b"k", b"1"))
        begin(client)
        await client.head()
        await client.chunk()
        running.access.set_mode(DatabaseMode.DISABLED)
        assert output_of(await client.chunk()).status == wire.SR_READ_DISABLED
        assert await client.chunk() == b""
        await client.close()
        assert running.access.followers == []


async def test_a_stop_ends_watches_and_answers_what_is_under_way() -> None:
    async with serving() as running:
        watching, writing = await Http1.open(running.port), await Http2.open(running.port)
        running.backend.frames.put_nowait(frame(b"k", b"1"))
        begin(watching)
        await watching.head()
        await watching.chunk()
        running.backend.go.clear()
        stream = writing.begin(path("snapshot_read"), data_headers())
        await writing.send(stream, b"")
        await eventually(lambda: len(running.backend.reads) == 1)
        stopping = asyncio.ensure_future(running.server.stop())
        assert await asyncio.wait_for(watching.chunk(), 10) == b""
        assert await watching.closed()
        await asyncio.sleep(0.1)
        assert not stopping.done()
        running.backend.go.set()
        assert (await writing.answer(stream)).status == 200
        await asyncio.wait_for(stopping, 20)
        await watching.close()
        await writing.close()
