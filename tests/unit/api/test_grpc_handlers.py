"""What becomes of a call that ends in an unlucky moment."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc import aio

from kvnode.api.grpc_handlers import Handlers

METHOD = "Follow"


async def write_and_be_cancelled(context: aio.ServicerContext) -> None:
    """As a stream of a node does that stops: its first answer is still on its way."""
    writing = asyncio.ensure_future(context.write(b"x"))
    await asyncio.sleep(0)
    writing.cancel()


async def test_a_lasting_stream_whose_first_write_is_cancelled_ends_without_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = aio.server()
    methods = {METHOD: Handlers(lambda: "here").streams(write_and_be_cancelled, lasting=True)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(f"/test/{METHOD}")()
        await call.write(b"hello")
        await asyncio.sleep(0.2)
        await call.read()
        assert await asyncio.wait_for(call.code(), 5) is grpc.StatusCode.OK
    await server.stop(None)
    assert not caplog.records
