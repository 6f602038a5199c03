"""A listener over gRPC is closed, whatever ends its stream and however early."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from kvnode.api.grpc_listening import serve_listen
from kvnode.proto.kv.v1 import queue_pb2


class Gate:
    """Lets everybody in."""

    async def permit(self, _metadata: object) -> SimpleNamespace:
        return SimpleNamespace(use=lambda _size, write: None)


class LeavingClient:
    """Has sent its opening, and is gone before the answer to it begins."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def read(self) -> bytes:
        return queue_pb2.ListenRequest(open=queue_pb2.ListenOpen(queue="mail"), credit=1).SerializeToString()

    async def send_initial_metadata(self, _metadata: object) -> None:
        raise asyncio.CancelledError


async def test_a_client_that_leaves_before_the_answer_begins_leaves_no_listener_behind() -> None:
    """gRPC cancels the call in that moment."""
    closed: list[str] = []

    async def listen(*_: object) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: closed.append("listener"))

    stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.CancelledError):
        await serve_listen(listen, Gate(), LeavingClient(), stopping)  # type: ignore[arg-type]
    assert closed == ["listener"]
