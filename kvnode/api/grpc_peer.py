"""The service kv.internal.v1.Peer: the receiving side of node/transport.py."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import grpc
from grpc import aio

from kvnode.api.forwarding import Forwarding
from kvnode.api.grpc_handlers import Handlers, parse
from kvnode.api.join import Joining
from kvnode.api.peer_lanes import Offer, PeerLanes
from kvnode.api.ports import ServedNode
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.node.message_stream import hello_to
from kvnode.node.ports import SnapshotSink
from kvnode.node.wire import decode_freshness, decode_held, decode_lease, decode_messages
from kvnode.proto.kv.internal.v1 import peer_pb2

_log = logging.getLogger(__name__)

SERVICE = "kv.internal.v1.Peer"


class PeerService:
    """Hands what peers send to the node.

    Args:
        node: the node that serves.
        adoption: answers Identify and Adopt.
        clock: read for clock samples.
        stopping: done when the node is about to stop.
        lanes: offered to those whose streams come; None = to nobody.
    """

    def __init__(
        self,
        node: ServedNode,
        adoption: Joining,
        clock: Clock,
        stopping: asyncio.Future[None],
        lanes: PeerLanes | None = None,
    ) -> None:
        self._node = node
        self._adoption = adoption
        self._clock = clock
        self._stopping = stopping
        self._lanes = lanes or PeerLanes()

    def handlers(self, build: Handlers) -> dict[str, grpc.RpcMethodHandler]:
        """Method names to handlers."""
        return {
            "Messages": build.streams(self._messages, lasting=True),
            "Forward": build.streams(self._forward),
            "InstallSnapshot": build.streams(self._install_snapshot, lasting=True),
            "Identify": build.unary(peer_pb2.IdentifyRequest, self._identify),
            "Adopt": build.unary(peer_pb2.AdoptRequest, self._adopt),
        }

    async def _messages(self, context: aio.ServicerContext) -> None:
        node = self._node
        raw = await context.read()
        if raw is aio.EOF:
            return
        hello = parse(peer_pb2.PeerBatch, raw).hello
        if refused := node.peers.check_hello(hello):
            reply = peer_pb2.PeerReply(refused=refused, hello=hello_to(node.peers, hello.node_id))
            await context.write(reply.SerializeToString())
            return
        with self._lanes.offered(partial(_take_batch, node, hello.node_id)) as offer:
            await self._take_messages(context, hello.node_id, offer)

    async def _take_messages(self, context: aio.ServicerContext, sender: int, offer: Offer) -> None:
        node = self._node
        welcome = peer_pb2.PeerReply(hello=hello_to(node.peers, sender), lane_port=offer.port, lane_token=offer.token)
        await context.write(welcome.SerializeToString())
        now_ms = self._clock.now_ms
        while (raw := await context.read()) is not aio.EOF:
            arrived_ms = now_ms()
            asked_ms = _take_batch(node, sender, raw)
            if asked_ms:
                reply = peer_pb2.PeerReply(clock_ms=arrived_ms, echo_clock_ms=asked_ms)
                await context.write(reply.SerializeToString())

    async def _forward(self, context: aio.ServicerContext) -> None:
        node = self._node
        raw = await context.read()
        if raw is aio.EOF:
            return
        hello = parse(peer_pb2.ForwardRequest, raw).hello
        if refused := node.peers.check_hello(hello):
            await context.write(peer_pb2.ForwardResponse(refused=refused).SerializeToString())
            return
        try:
            await Forwarding(node, hello, context, self._stopping).serve(self._lanes)
        finally:
            node.queues.peer_left(hello.node_id)

    async def _install_snapshot(self, context: aio.ServicerContext) -> None:
        node = self._node
        raw = await context.read()
        if raw is aio.EOF:
            return
        header = parse(peer_pb2.SnapshotChunk, raw).header
        if refused := node.peers.check_hello(header.hello):
            await context.write(peer_pb2.SnapshotProgress(error=refused).SerializeToString())
            return
        try:
            progress = await _receive_snapshot(node.snapshot_sink(), header, context)
        except KvError as error:
            _log.error("snapshot %s from %s failed: %s", header.snapshot_id, header.hello.name, error)
            progress = peer_pb2.SnapshotProgress(error=str(error))
        if progress is not None:
            await context.write(progress.SerializeToString())

    async def _identify(
        self, request: peer_pb2.IdentifyRequest, context: aio.ServicerContext
    ) -> peer_pb2.IdentifyResponse:
        del request, context
        return self._adoption.identify()

    async def _adopt(self, request: peer_pb2.AdoptRequest, context: aio.ServicerContext) -> peer_pb2.AdoptResponse:
        del context
        return await self._adoption.adopt(request)


def _take_batch(node: ServedNode, sender: int, raw: bytes) -> int:
    """Hand a batch to the node; returns the sender's clock sample, 0 without.

    Raises:
        InvalidRequest: MEMBER_REMOVED, which ends a stream that the sender will open again, and be told why it is
            refused. A leader that was removed is heard until somebody else leads: it hands over. PEER_TOO_NEW.
    """
    peers = node.peers
    if peers.has_removed(sender) and node.leader_id != sender:
        raise InvalidRequest("MEMBER_REMOVED", f"node {sender} was removed from this cluster: stop it", phase="leader")
    batch = parse(peer_pb2.PeerBatch, raw)
    if batch.HasField("hello"):
        peers.check_hello(batch.hello)
    freshness = decode_freshness(batch)
    if batch.messages or freshness is not None:
        try:
            messages = decode_messages(batch.messages)
        except ValueError as error:
            raise InvalidRequest("PEER_TOO_NEW", str(error)) from error
        peers.on_messages(sender, messages, freshness)
    if batch.held:
        peers.on_held(decode_held(batch))
    if batch.HasField("lease"):
        peers.on_lease(decode_lease(batch.lease))
    return batch.clock_ms


async def _receive_snapshot(
    sink: SnapshotSink, header: peer_pb2.SnapshotHeader, context: aio.ServicerContext
) -> peer_pb2.SnapshotProgress | None:
    """Take in a snapshot; the last word for the sender, None when the sender left before the end."""
    held = await sink.open(header)
    await context.write(peer_pb2.SnapshotProgress(held_bytes=held).SerializeToString())
    while (raw := await context.read()) is not aio.EOF:
        chunk = parse(peer_pb2.SnapshotChunk, raw)
        if chunk.data:
            if chunk.offset != held:
                raise InvalidRequest(
                    "SNAPSHOT_GAP", f"a chunk at {chunk.offset} came while {held} bytes are held: start over"
                )
            held = await sink.write(chunk.offset, chunk.data)
        if chunk.last:
            await sink.finish()
            return peer_pb2.SnapshotProgress(held_bytes=held, installed=True)
    return None
