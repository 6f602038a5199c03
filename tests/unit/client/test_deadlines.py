"""Every call ends by its own deadline, whatever the server does; and the session outlives whatever happens to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.client import Admin, Kv, open_kv, rpc
from kvnode.client.session import Session
from kvnode.client.unary import UnaryCaller
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2
from tests.unit.client.fake_server import FakeServer

TIMEOUT_MS = 400
GRACE_S = 0.6
SET = kv_pb2.AtomicWriteRequest(
    mutations=[
        kv_pb2.Mutation(
            type=kv_pb2.MUTATION_TYPE_SET,
            key=b"\x02k\x00",
            value=kv_pb2.Value(data=b"v", encoding=kv_pb2.VALUE_ENCODING_BYTES),
        )
    ]
)
GET = kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=b"\x02k\x00", end=b"\x02k\x00\x00", limit=1)])
MEMBER = admin_pb2.Member(address="127.0.0.1:1")


@pytest.fixture
async def black_hole() -> AsyncIterator[str]:
    """An address where connections are accepted and nothing is ever said."""
    taken: list[asyncio.StreamWriter] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield f"127.0.0.1:{port}"
    server.close()
    for writer in taken:
        writer.close()


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """A gRPC server that takes every call and answers none."""
    import grpc

    async def never(_requests: object, context: Any) -> None:
        await asyncio.sleep(60)

    class Silent(grpc.GenericRpcHandler):
        def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.stream_stream_rpc_method_handler(never)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Silent(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


CALLS: dict[str, Callable[[Kv], Awaitable[object]]] = {
    "set": lambda kv: kv.set(("k",), 1),
    "get": lambda kv: kv.get(("k",)),
    "eventual get": lambda kv: kv.get(("k",), consistency="eventual"),
    "count": lambda kv: kv.count(()),
    "delete_prefix": lambda kv: kv.delete_prefix(("k",)),
    "list": lambda kv: anext(aiter(kv.list(()))),
}
VERBS: dict[str, Callable[[Admin], Awaitable[object]]] = {
    "status": lambda admin: admin.status(),
    "add": lambda admin: admin.add(MEMBER),
    "replace": lambda admin: admin.replace(7, MEMBER),
    "transfer": lambda admin: admin.transfer_leadership(),
}


async def ends_in_time(call: Awaitable[object], timeout_ms: int = TIMEOUT_MS) -> KvError:
    """The error that it ends with, by its deadline."""
    began_s = time.monotonic()
    with pytest.raises(KvError) as raised:
        await asyncio.wait_for(call, 10)
    took_s = time.monotonic() - began_s
    assert took_s < timeout_ms / 1000 + GRACE_S, f"it took {took_s:.1f} s"
    return raised.value


@pytest.mark.parametrize("kind", ["black_hole", "silent"])
async def test_every_call_ends_by_its_deadline(kind: str, black_hole: str, silent: str) -> None:
    address = black_hole if kind == "black_hole" else silent
    async with open_kv(address, timeout_ms=TIMEOUT_MS) as kv:
        for name, call in CALLS.items():
            error = await ends_in_time(call(kv))
            assert error.code in ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"), (name, error)
    async with Admin([address], timeout_ms=TIMEOUT_MS, fail_fast=False) as admin:
        for name, verb in VERBS.items():
            error = await ends_in_time(verb(admin))
            assert error.code in ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"), (name, error)


async def test_calls_at_once_do_not_queue_up_for_a_dead_endpoint(black_hole: str) -> None:
    server = await FakeServer().start()
    caller = UnaryCaller([black_hole, server.address])
    began_s = time.monotonic()
    await asyncio.gather(*(caller.call(rpc.READ, GET, 10_000) for _ in range(50)))
    assert time.monotonic() - began_s < 2 * limits.CLIENT_DIAL_TIMEOUT_MS / 1000
    await caller.close()
    await server.stop()


async def test_waiting_for_room_is_within_the_deadline(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SESSION_UNANSWERED_COUNT", 4)
    async with Session([silent]) as session:
        others = [asyncio.ensure_future(session.write(SET, 30_000)) for _ in range(8)]
        await asyncio.sleep(0.05)
        assert session.is_full
        error = await ends_in_time(session.write(SET, TIMEOUT_MS))
        assert error.code == "DEADLINE_EXCEEDED" and "unanswered" in error.message and error.not_applied
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_a_channel_retired_under_a_call_does_not_cancel_its_caller() -> None:
    server = await FakeServer().start()
    caller = UnaryCaller([server.address])
    await caller.call(rpc.READ, GET, 1_000)
    server.faults.hang = True
    waiting = asyncio.ensure_future(caller.call(rpc.READ, GET, 5_000))
    await asyncio.sleep(0.1)
    channel = caller._channels.pop(server.address)
    await channel.close()
    server.faults.hang = False
    response = await asyncio.wait_for(waiting, 3)
    assert isinstance(response, kv_pb2.ReadResponse)
    await caller.close()
    await server.stop()


async def test_deadlines_are_kept_after_a_callback_forgot_another_operation(silent: str) -> None:
    async with Session([silent]) as session:
        ids: list[int] = []
        ids.append(session.submit(SET, lambda _: session.forget(ids[1]), 100))
        ids.append(session.submit(SET, lambda _: None, 100))
        await asyncio.sleep(0.3)
        assert session.unanswered_count == 0
        assert (await ends_in_time(session.write(SET, 200), 200)).code in ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")


async def test_closing_with_a_callback_that_forgets_another(silent: str) -> None:
    session = Session([silent])
    ids: list[int] = []
    ids.append(session.submit(SET, lambda _: session.forget(ids[1]), 5_000))
    ids.append(session.submit(SET, lambda _: None, 5_000))
    await asyncio.sleep(0.05)
    await session.close()
    assert session.unanswered_count == 0


async def test_a_connection_that_grpc_itself_cancels_costs_a_connection_and_not_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC raises CancelledError in whoever awaits a call that was cut on this side: nobody cancelled the task."""
    server = await FakeServer().start()
    async with Session([server.address]) as session:
        connect, cuts = session._connect, [1]

        async def cut_once() -> None:
            if cuts:
                cuts.pop()
                raise asyncio.CancelledError
            await connect()

        monkeypatch.setattr(session, "_connect", cut_once)
        response = await asyncio.wait_for(session.write(SET, 3_000), 5)
        assert response.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
    await server.stop()
