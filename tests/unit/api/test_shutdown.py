"""How a server ends: what is owed first, what lasts afterwards, and no longer than that takes."""

from __future__ import annotations

import asyncio
import time

import pytest
from grpc import aio

from kvnode.node.message_stream import MESSAGES_METHOD
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.serving import Served, served, until
from tests.unit.api.test_grpc_kv import Client, write_of

GRACE_S = 5.0


async def peer_stream(s: Served) -> aio.StreamStreamCall:
    """A peer's stream of Raft messages, which ends only when somebody ends it."""
    call = s.channel.stream_stream(MESSAGES_METHOD)()
    hello = peer_pb2.Hello(cluster_id=s.node.cluster_id, epoch=1, node_id=9, name="nine", to_node_id=s.node.node_id)
    await call.write(peer_pb2.PeerBatch(hello=hello).SerializeToString())
    assert not peer_pb2.PeerReply.FromString(await call.read()).refused
    return call


async def stop(s: Served) -> float:
    """Stop the server; returns the seconds it took."""
    began_s = time.monotonic()
    await asyncio.wait_for(s.server.stop(GRACE_S), GRACE_S + 5)
    return time.monotonic() - began_s


async def test_an_idle_server_with_peers_and_sessions_stops_at_once() -> None:
    async with served() as s:
        peer, client = await peer_stream(s), Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen())
        await client.receive()
        assert await stop(s) < 0.5
        assert await peer.read() is aio.EOF
        with pytest.raises(aio.AioRpcError, match="NODE_STOPPING"):
            await client.call.read()


async def test_the_peers_messages_go_on_until_what_is_owed_is_answered() -> None:
    async with served() as s:
        s.node.hold = True
        peer, client = await peer_stream(s), Client(s.channel)
        operation = kv_pb2.Operation(id=1, write=write_of(b"k"))
        await client.send(open=kv_pb2.SessionOpen(), operations=[operation])
        await until(lambda: s.node.held)
        stopping = asyncio.ensure_future(stop(s))
        await asyncio.sleep(0.2)
        await peer.write(peer_pb2.PeerBatch(clock_ms=1).SerializeToString())
        reply = peer_pb2.PeerReply.FromString(await asyncio.wait_for(peer.read(), 1))
        assert reply.echo_clock_ms == 1, "an answer that waits for a peer's acknowledgement would never come"
        s.node.release()
        await client.receive()
        assert 1 in await client.results(1)
        assert await stopping < 1.0


async def test_what_is_never_answered_is_cut_after_the_grace() -> None:
    async with served() as s:
        s.node.hold = True
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen(), operations=[kv_pb2.Operation(id=1, write=write_of(b"k"))])
        await until(lambda: s.node.held)
        began_s = time.monotonic()
        await s.server.stop(0.3)
        assert 0.25 < time.monotonic() - began_s < 1.5
        client.call.cancel()
