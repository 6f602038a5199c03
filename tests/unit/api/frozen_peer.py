"""A process that serves a fake node with id 2 and prints its port, to be frozen from outside."""

from __future__ import annotations

import asyncio

from kvnode.api.grpc_server import GrpcServer
from tests.unit.api.fake_node import FakeNode


async def main() -> None:
    server = GrpcServer(FakeNode(2, "far"), "127.0.0.1:0")
    print(await server.start(), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
