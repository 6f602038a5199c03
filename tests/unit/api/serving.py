"""Servers and channels for tests, closed at their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from grpc import aio

from kvnode.api.grpc_server import GrpcServer
from kvnode.node.channels import open_channel
from tests.unit.api.fake_node import FakeNode


class Served:
    def __init__(self, node: FakeNode, server: GrpcServer, channel: aio.Channel, address: str) -> None:
        self.node = node
        self.server = server
        self.channel = channel
        self.address = address

    async def call(self, path, request, response_type, timeout=5.0):
        raw = await self.channel.unary_unary(path)(request.SerializeToString(), timeout=timeout)
        return response_type.FromString(raw)


@asynccontextmanager
async def served(node: FakeNode | None = None, port: int = 0) -> AsyncIterator[Served]:
    node = node or FakeNode()
    server = GrpcServer(node, f"127.0.0.1:{port}")
    bound = await server.start()
    address = f"127.0.0.1:{bound}"
    try:
        async with open_channel(address, None) as channel:
            yield Served(node, server, channel, address)
    finally:
        await server.stop(0)


async def until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)
