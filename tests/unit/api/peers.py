"""A node's transport and the Peer service of another, over loopback sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvnode.api.grpc_server import GrpcServer
from kvnode.api.peer_lanes import PeerLanes
from kvnode.base.clock import Clock, SystemClock
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import Member
from kvnode.node.ports import Origin
from kvnode.node.transport import GrpcTransport
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message, MessageKind
from tests.unit.api.fake_node import FakeNode
from tests.unit.api.serving import until

PEER = 2


async def no_lanes(_self: PeerLanes, _host: str) -> None:
    pass


def append(index: int, data: bytes = b"x") -> Message:
    return Message(MessageKind.APPEND, PEER, 1, 1, index=index, entries=(Entry(1, index + 1, EntryKind.DATA, data),))


def operation(number: int, value: bytes = b"v") -> kv_pb2.Operation:
    mutation = kv_pb2.Mutation(type=1, key=b"k%d" % number, value=kv_pb2.Value(data=value, encoding=3))
    return kv_pb2.Operation(id=number, write=kv_pb2.AtomicWriteRequest(mutations=[mutation]))


class Pair:
    def __init__(self, near: FakeNode, far: FakeNode, transport: GrpcTransport, server: GrpcServer, port: int) -> None:
        self.near = near
        self.far = far
        self.transport = transport
        self.server = server
        self.port = port
        self.results: list[kv_pb2.OperationResult] = []

    def forward(self, *numbers: int, value: bytes = b"v") -> None:
        for number in numbers:
            origin = Origin(b"0123456789", number, 3, own_session=number % 2 == 0)
            self.transport.forward(PEER, origin, operation(number, value), self.results.append)


@asynccontextmanager
async def pair(clock: Clock | None = None, *, connect: bool = True) -> AsyncIterator[Pair]:
    near, far = FakeNode(1, "near"), FakeNode(PEER, "far")
    server = GrpcServer(far, "127.0.0.1:0")
    port = await server.start()
    transport = GrpcTransport(near, clock or SystemClock(), stats=near.stats)
    transport.set_members([Member(PEER, "far", "r", "d", f"127.0.0.1:{port}")])
    try:
        if connect:
            await until(lambda: transport.connected(PEER))
        yield Pair(near, far, transport, server, port)
    finally:
        async with asyncio.timeout(5):
            await transport.close()
            await server.stop(0)
