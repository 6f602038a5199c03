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


async def test_a_client_that_leaves_while_it_is_written_to_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """A reader that fell behind, perhaps: the write that waits for it fails, and there is nothing to report."""

    async def write_for_ever(context: aio.ServicerContext) -> None:
        while True:
            await context.write(b"x" * 1_000_000)

    server = aio.server()
    methods = {METHOD: Handlers(lambda: "here").streams(write_for_ever)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(5):
            call = channel.stream_stream(f"/test/{METHOD}")()
            await call.read()
            await asyncio.sleep(0.2)
            call.cancel()
            await asyncio.sleep(0.1)
    await server.stop(None)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
