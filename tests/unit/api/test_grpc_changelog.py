"""The serving side of a changelog stream: what the handler owes its source, however the stream ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import aio

from kvnode.api.grpc_changelog import ChangelogService
from kvnode.api.grpc_handlers import Handlers
from kvnode.proto.kv.internal.v1 import changelog_pb2


class Streams:
    """As node/changelog's Sources, and the stream that it opens at once."""

    def __init__(self) -> None:
        self.open_count = 0
        self.something = asyncio.Event()

    def refuse(self, _request: object, _refused: str) -> None:
        return None

    def open(self, _request: object) -> Streams:
        self.open_count += 1
        return self

    def close(self, _source: object) -> None:
        self.open_count -= 1

    async def next(self) -> changelog_pb2.FollowResponse:
        await self.something.wait()
        return changelog_pb2.FollowResponse()


class Call:
    """What gRPC gives to a handler; a write that it has begun does not end before `written` is set."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.requests.put_nowait(changelog_pb2.FollowRequest().SerializeToString())
        self.writing = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.written = asyncio.Event()

    async def send_initial_metadata(self, _metadata: object) -> None:
        pass

    async def read(self) -> Any:
        return await self.requests.get()

    async def write(self, _data: bytes) -> None:
        self.writing.set()
        try:
            await self.written.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.written.wait()
            raise


def follow(streams: Streams, call: Call) -> asyncio.Task[None]:
    node: Any = SimpleNamespace(changelog=streams, peers=SimpleNamespace(check_hello=lambda _hello: ""))
    handler = ChangelogService(node).handlers(Handlers(lambda: "a"))["Follow"]
    return asyncio.ensure_future(handler.stream_stream(None, call))


async def test_a_stream_is_closed_at_its_source_as_soon_as_its_replica_has_left() -> None:
    streams, call = Streams(), Call()
    streams.something.set()
    serving = follow(streams, call)
    await call.writing.wait()
    assert streams.open_count == 1
    call.requests.put_nowait(aio.EOF)
    await call.cancelled.wait()  # the handler sees that the replica has left, and waits for its two halves
    serving.cancel()  # as gRPC does when it sees it as well
    call.written.set()
    await asyncio.gather(serving, return_exceptions=True)
    await asyncio.sleep(0)
    assert streams.open_count == 0


@pytest.mark.parametrize("left", [True, False], ids=["the replica leaves", "the server stops"])
async def test_a_stream_is_closed_at_its_source_whoever_ends_it(left: bool) -> None:
    streams, call = Streams(), Call()
    serving = follow(streams, call)
    while not streams.open_count:
        await asyncio.sleep(0)
    if left:
        call.requests.put_nowait(aio.EOF)
    else:
        serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert streams.open_count == 0
