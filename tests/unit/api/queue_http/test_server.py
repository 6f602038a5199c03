"""A listener over HTTP is closed, whatever ends its answer and however early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace

from kvnode.api.auth.authority import Authority
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.http import Stream
from kvnode.api.queue_http.server import QueueHttp
from kvnode.base.clock import SystemClock
from kvnode.proto.kv.v1 import queue_pb2
from tests.unit.api.fake_node import FakeNode

TOKEN = "a-token-of-the-tests"


class Ask:
    """A request to listen."""

    method, path = "POST", "/queues/default/mail/listen"

    def header(self, name: str) -> str:
        return f"Bearer {TOKEN}" if name == "authorization" else ""

    async def body(self, _max_bytes: int) -> bytes:
        return b"{}"


class Backend:
    """Its listeners get no messages."""

    def __init__(self) -> None:
        self.open_count = 0

    async def listen(self, *_: object) -> SimpleNamespace:
        self.open_count += 1
        return SimpleNamespace(responses=self.responses, take=lambda _request: None, close=self.close)

    async def responses(self) -> AsyncGenerator[queue_pb2.ListenResponse, None]:
        yield queue_pb2.ListenResponse(opened=queue_pb2.ListenOpened(node="a", lease_ms=1_000))
        await asyncio.get_running_loop().create_future()

    def close(self) -> None:
        self.open_count -= 1


async def ask() -> tuple[Backend, ConnectStats, Stream]:
    backend, stats = Backend(), ConnectStats()
    authority = Authority(FakeNode().directory.view, SystemClock(), static_token=TOKEN)
    answer = await QueueHttp(backend, authority, SystemClock(), stats).answer(Ask(), "listen")  # type: ignore[arg-type]
    assert isinstance(answer, Stream)
    assert backend.open_count == 1
    return backend, stats, answer


async def test_an_answer_whose_client_is_gone_before_it_begins_leaves_no_listener_behind() -> None:
    """The server over HTTP/2 closes it unasked."""
    backend, stats, answer = await ask()
    await answer.chunks.aclose()
    assert (backend.open_count, stats.listeners) == (0, 0)


async def test_the_first_line_says_that_it_listens() -> None:
    backend, stats, answer = await ask()
    assert b"opened" in await anext(answer.chunks)
    assert stats.listeners == 1
    await answer.chunks.aclose()
    assert (backend.open_count, stats.listeners) == (0, 0)
