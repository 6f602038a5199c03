"""The places of a listener over HTTP: when a lease is lost, and who says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from kvnode.api.queue_http.listener import Leases, Listener
from kvnode.base import limits
from kvnode.client.status import error_to_proto
from kvnode.machine.queue.errors import lease_lost
from kvnode.node.queue.consumer import node_cut_off
from kvnode.proto.kv.v1 import queue_pb2

A, B, C = (letter * 12 for letter in (b"a", b"b", b"c"))
LEASE_MS = 2_000
LATE_MS = limits.LISTEN_PING_INTERVAL_MS


class Stream:
    """The node's side: the test says what comes, and reads what was said."""

    def __init__(self) -> None:
        self.said: list[queue_pb2.ListenRequest] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.coming: asyncio.Queue[queue_pb2.ListenResponse] = asyncio.Queue()

    def take(self, request: queue_pb2.ListenRequest) -> None:
        self.said.append(request)

    async def responses(self) -> AsyncGenerator[queue_pb2.ListenResponse, None]:
        yield queue_pb2.ListenResponse(opened=queue_pb2.ListenOpened(node="a", lease_ms=LEASE_MS))
        while True:
            yield await self.coming.get()

    def finish(self) -> None:
        raise AssertionError("nothing over HTTP ends so")

    def close(self) -> None:
        pass


class Stage:
    """One listener, whose time is the test's."""

    def __init__(self, credit: int = 3) -> None:
        self.now_ms = 0.0
        self.stream = Stream()
        self.leases = Leases()
        self._listener = Listener(1, self.stream, self.leases, [], credit, lambda: self.now_ms)

    async def open(self) -> None:
        self._chunks = self._listener.chunks(await self._listener.open())
        await anext(self._chunks)
        self.stream.said.clear()

    async def tells(self, response: queue_pb2.ListenResponse | None = None) -> list[tuple[str, str]]:
        """(type, lease) of the lines that a response, if any, and the ping behind it become."""
        told = b""
        if response is not None:
            self.stream.coming.put_nowait(response)
        self.stream.coming.put_nowait(queue_pb2.ListenResponse(ping=True))
        while b"ping" not in told:
            told += await anext(self._chunks)
        lines = [json.loads(line) for line in told.splitlines()]
        return [(line["type"], line["lease"]) for line in lines if line["type"] != "ping"]

    async def delivers(self, *leases: bytes) -> None:
        response = queue_pb2.ListenResponse()
        for lease in leases:
            response.messages.add(lease=lease).payload.encoding = 1
        assert await self.tells(response) == [("message", lease.hex()) for lease in leases]

    def asked_about(self) -> list[bytes]:
        """Since it was asked last."""
        asked = [lease for request in self.stream.said for lease in request.extend]
        self.stream.said.clear()
        return asked


@pytest.fixture
async def stage() -> Stage:
    made = Stage()
    await made.open()
    return made


def failed(*leases: bytes, lost: bool = True) -> queue_pb2.ListenResponse:
    response = queue_pb2.ListenResponse()
    for lease in leases:
        response.failed.add(lease=lease, error=error_to_proto(lease_lost(lease) if lost else node_cut_off()))
    return response


async def test_a_silent_lease_is_asked_about_and_its_place_is_free_when_it_is_lost(stage: Stage) -> None:
    await stage.delivers(A)
    stage.now_ms = 1_000
    await stage.delivers(B)
    stage.now_ms = LEASE_MS + LATE_MS - 1
    assert (await stage.tells(), stage.asked_about()) == ([], [])
    stage.now_ms = LEASE_MS + LATE_MS
    assert (await stage.tells(), stage.asked_about()) == ([], [A])
    assert await stage.tells(failed(A)) == [("failed", A.hex())]
    assert [(list(said.settled), said.credit) for said in stage.stream.said] == [([A], 1)]
    stage.stream.said.clear()
    stage.now_ms += 1_000
    await stage.tells()
    assert stage.asked_about() == [B]


async def test_a_silent_lease_that_is_current_is_kept_and_asked_about_again(stage: Stage) -> None:
    """It was extended at another node; the leader's answer to that question is silence."""
    await stage.delivers(A)
    for _ in range(3):
        stage.now_ms += LEASE_MS + LATE_MS
        assert await stage.tells() == []
        assert stage.asked_about() == [A]
        assert (await stage.tells(), stage.asked_about()) == ([], [])


async def test_an_extension_counts_for_as_long_as_it_asks_for(stage: Stage) -> None:
    await stage.delivers(A, B, C)
    assert stage.leases.extend(1, A, 60_000) == 60_000
    assert stage.leases.extend(1, B, 1_000) == 1_000
    assert stage.leases.extend(1, C, 0) == LEASE_MS
    for until_ms, lease in ((1_000, B), (LEASE_MS, C), (60_000, A)):
        stage.now_ms = until_ms + LATE_MS
        await stage.tells()
        assert lease in (asked := stage.asked_about()) and (A in asked) == (lease == A)


async def test_the_time_of_a_lease_that_nobody_holds_here_is_not_known(stage: Stage) -> None:
    assert stage.leases.extend(1, A, 0) == 0
    assert stage.leases.extend(1, A, 5_000) == 5_000
    await stage.delivers(A)
    assert stage.leases.extend(2, A, 0) == 0  # of another database


async def test_only_a_lease_that_is_held_and_lost_is_called_lost(stage: Stage) -> None:
    await stage.delivers(A, B)
    stage.now_ms = LEASE_MS + LATE_MS
    await stage.tells()
    assert stage.asked_about() == [A, B]
    stage.leases.settle(1, [A], leaving=False)  # meanwhile: the leader sees the ack first
    stage.stream.said.clear()
    assert await stage.tells(failed(A)) == []
    assert await stage.tells(failed(B, lost=False)) == []  # there was no leader to ask
    assert stage.stream.said == []
    assert await stage.tells(failed(B, B)) == [("failed", B.hex())]
    assert [(list(said.settled), said.credit) for said in stage.stream.said] == [([B], 1)]
