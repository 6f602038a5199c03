"""Nodes and gateways that reach others only through an HTTP proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from kvnode.api.grpc_server import GrpcServer
from kvnode.base import egress
from kvnode.base.clock import SystemClock
from kvnode.base.errors import KvError
from kvnode.client.session import Session
from kvnode.codec.membership import Member
from kvnode.node.peer_calls import identify
from kvnode.node.transport import GrpcTransport
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.fake_node import FakeNode
from tests.unit.api.peers import PEER, append, operation
from tests.unit.api.serving import until


class Proxy:
    """Answers CONNECT; `allows` says which targets."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.allows: Callable[[str], bool] = lambda target: True
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.targets.append(target)
        if not self.allows(target):
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers.append(far_writer)
        writer.write(b"HTTP/1.1 200 OK\r\nVia: a proxy\r\n\r\n")
        for task in (self._copy(reader, far_writer), self._copy(far_reader, writer)):
            self._tasks.add(asyncio.ensure_future(task))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except OSError:
            pass
        writer.close()

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    egress.use_proxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield proxy
    egress.use_proxy("")
    server.close()
    await proxy.close()


@pytest.fixture
async def far() -> AsyncIterator[tuple[FakeNode, str]]:
    node = FakeNode(PEER, "far")
    server = GrpcServer(node, "127.0.0.1:0")
    port = await server.start()
    yield node, f"127.0.0.1:{port}"
    async with asyncio.timeout(5):
        await server.stop(0)


@asynccontextmanager
async def transport_to(address: str) -> AsyncIterator[GrpcTransport]:
    near = FakeNode(1, "near")
    transport = GrpcTransport(near, SystemClock(), stats=near.stats)
    transport.set_members([Member(PEER, "far", "r", "d", address)])
    yield transport
    async with asyncio.timeout(5):
        await transport.close()


async def test_streams_and_lanes_of_a_peer_go_through_the_proxy(proxy: Proxy, far: tuple[FakeNode, str]) -> None:
    node, address = far
    async with transport_to(address) as transport:
        await until(lambda: transport.has_lane(PEER))
        transport.send(PEER, [append(1)], None)
        await until(lambda: node.messages)
        assert proxy.targets[0] == address
        assert len(proxy.targets) == 3, "one connection of gRPC, and a lane of each stream"


async def test_a_proxy_that_lets_no_lane_pass_leaves_the_messages_to_the_stream(
    proxy: Proxy, far: tuple[FakeNode, str], caplog: pytest.LogCaptureFixture
) -> None:
    node, address = far
    proxy.allows = lambda target: target == address
    caplog.set_level("INFO")
    async with transport_to(address) as transport:
        await until(lambda: "the egress proxy answered HTTP/1.1 403 Forbidden" in caplog.text)
        assert transport.connected(PEER) and not transport.has_lane(PEER)
        transport.send(PEER, [append(1)], None)
        await until(lambda: node.messages)


async def test_calls_and_clients_go_through_the_proxy(proxy: Proxy, far: tuple[FakeNode, str]) -> None:
    _, address = far
    assert (await identify(address)) is not None
    async with Session([address]) as session:
        await session.write(operation(1).write, 5_000)
    assert proxy.targets == [address, address]


async def test_a_proxy_that_refuses_is_named(proxy: Proxy, far: tuple[FakeNode, str]) -> None:
    proxy.allows = lambda target: False
    with pytest.raises(KvError, match="403"):
        await identify(far[1])
    async with Session([far[1]], fail_fast=True) as session:
        with pytest.raises(KvError, match="403"):
            await session.read(kv_pb2.ReadRequest(), 5_000)
