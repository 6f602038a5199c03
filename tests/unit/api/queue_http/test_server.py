"""A listener over HTTP is closed, whatever ends its answer and however early; an enqueue is answered in its time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import pytest

from kvnode.api.auth.authority import Authority
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.http import Response, Stream
from kvnode.api.queue_http.server import QueueHttp
from kvnode.base import limits
from kvnode.base.clock import SystemClock
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2
from tests.unit.api.fake_node import FakeNode

TOKEN = "a-token-of-the-tests"


class Ask:
    """A request to listen."""

    method, path = "POST", "/queues/default/mail/listen"

    def header(self, name: str) -> str:
        return f"Bearer {TOKEN}" if name == "authorization" else ""

    async def body(self, _max_bytes: int) -> bytes:
        return b"{}"


class Put(Ask):
    """A request to enqueue, with a deadline of its own."""

    path = "/queues/default/mail/messages"

    def __init__(self, timeout: str) -> None:
        self.timeout = timeout

    def header(self, name: str) -> str:
        return self.timeout if name == "x-kvnode-timeout-ms" else super().header(name)

    async def body(self, _max_bytes: int) -> bytes:
        return b'{"messages": [{"payload": "aGk=", "encoding": "bytes"}]}'


class Backend:
    """Its listeners get no messages, and its writes no answer unless there is a leader."""

    def __init__(self) -> None:
        self.open_count = 0
        self.leads = True
        self.timeouts_ms: list[int] = []

    async def write(
        self, _request: object, timeout_ms: int = limits.CONNECT_HOLD_TIMEOUT_MS, *, database: int
    ) -> kv_pb2.AtomicWriteResponse:
        assert database
        self.timeouts_ms.append(timeout_ms)
        if not self.leads:
            await asyncio.get_running_loop().create_future()
        return kv_pb2.AtomicWriteResponse(versionstamp=bytes(10))

    async def listen(self, *_: object) -> SimpleNamespace:
        self.open_count += 1
        return SimpleNamespace(responses=self.responses, take=lambda _request: None, close=self.close)

    async def responses(self) -> AsyncGenerator[queue_pb2.ListenResponse, None]:
        yield queue_pb2.ListenResponse(opened=queue_pb2.ListenOpened(node="a", lease_ms=1_000))
        await asyncio.get_running_loop().create_future()

    def close(self) -> None:
        self.open_count -= 1


def server(backend: Backend, stats: ConnectStats) -> QueueHttp:
    authority = Authority(FakeNode().directory.view, SystemClock(), static_token=TOKEN)
    return QueueHttp(backend, authority, SystemClock(), stats)  # type: ignore[arg-type]


async def put(backend: Backend, timeout: str) -> tuple[int, dict[str, object]]:
    answer = await server(backend, ConnectStats()).answer(Put(timeout), "enqueue")  # type: ignore[arg-type]
    assert isinstance(answer, Response)
    return answer.status, json.loads(answer.body)


async def ask() -> tuple[Backend, ConnectStats, Stream]:
    backend, stats = Backend(), ConnectStats()
    answer = await server(backend, stats).answer(Ask(), "listen")  # type: ignore[arg-type]
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


@pytest.mark.parametrize(("header", "timeout_ms"), [("", 30_000), ("1", 1), ("8000", 8_000), ("90000", 30_000)])
async def test_an_enqueue_waits_for_a_leader_as_long_as_its_client_does(header: str, timeout_ms: int) -> None:
    backend = Backend()
    assert (await put(backend, header))[0] == 200
    assert backend.timeouts_ms == [timeout_ms]


@pytest.mark.parametrize("header", ["0", "-1", "1.5", "soon", "9" * 20, "٣"])
async def test_a_deadline_that_is_none_is_named(header: str) -> None:
    backend = Backend()
    status, answer = await put(backend, header)
    assert (status, answer["code"], backend.timeouts_ms) == (400, "BAD_TIMEOUT", [])
    assert "x-kvnode-timeout-ms" in str(answer["message"]) and repr(header) in str(answer["message"])


async def test_what_is_not_known_when_the_client_is_about_to_leave_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "ENQUEUE_GRACE_MS", 50)
    backend = Backend()
    backend.leads = False
    status, answer = await asyncio.wait_for(put(backend, "50"), 2)
    assert (status, answer["code"], answer["retry"]) == (504, "OUTCOME_UNKNOWN", True)
