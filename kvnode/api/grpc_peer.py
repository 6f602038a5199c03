"""The service kv.internal.v1.Peer: the receiving side of node/transport.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial

import grpc
from grpc import aio

from kvnode.api.grpc_handlers import Handlers, parse
from kvnode.api.join import Joining
from kvnode.api.outbox import MAX_RESULT_BYTES, Outbox
from kvnode.api.peer_lanes import Offer, PeerLanes
from kvnode.api.ports import ServedNode
from kvnode.api.pump import Pump
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.client.status import error_to_proto
from kvnode.machine.keyspace import DEFAULT_DATABASE, SYSTEM_DATABASE
from kvnode.machine.sessions import NODES_OWN
from kvnode.node.message_stream import hello_to
from kvnode.node.ports import BoundedDeliver, Origin, SnapshotSink
from kvnode.node.removal import removal_sentence
from kvnode.node.wire import decode_freshness, decode_held, decode_lease, decode_messages
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

SERVICE = "kv.internal.v1.Peer"
_RESULTS_FIELD = peer_pb2.ForwardResponse.RESULTS_FIELD_NUMBER


class PeerService:
    """Hands what peers send to the node.

    Args:
        node: the node that serves.
        adoption: answers Identify and Adopt.
        clock: read for clock samples.
        stopping: done when the node is about to stop.
        lanes: offered to those whose messages come; None = to nobody.
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
        refused = node.peers.check_hello(hello)
        await context.write(peer_pb2.ForwardResponse(refused=refused).SerializeToString())
        if refused:
            return
        outbox = Outbox(context.write, _RESULTS_FIELD)
        try:
            await Pump(outbox, self._stopping).run(partial(_take_forwarded, node, hello, context, outbox))
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


async def _take_forwarded(
    node: ServedNode, hello: peer_pb2.Hello, context: aio.ServicerContext, outbox: Outbox
) -> None:
    """Take in forwarded operations until the peer ends its half, or is removed from the cluster."""
    peers, read = node.peers, context.read
    while (raw := await read()) is not aio.EOF:
        operations = parse(peer_pb2.ForwardRequest, raw).operations
        outbox.expect(len(operations))
        if peers.has_removed(hello.node_id):
            _turn_away(operations, hello.name, node.name, outbox)
            return
        for forwarded in operations:
            if forwarded.open_session:
                owner = NODES_OWN if forwarded.own_session else forwarded.database or DEFAULT_DATABASE
                peers.on_forwarded_open(owner, partial(_deliver_opened, outbox, forwarded.call_id))
            else:
                database = SYSTEM_DATABASE if forwarded.system else forwarded.database or DEFAULT_DATABASE
                origin = Origin(forwarded.client_id, forwarded.lowest_unanswered, database, forwarded.own_session)
                deliver = BoundedDeliver(_deliver, outbox, forwarded.call_id, node.name)
                peers.on_forwarded(origin, forwarded.operation, deliver)
        if outbox.full:
            await outbox.room()


def _turn_away(operations: Iterable[peer_pb2.ForwardedOperation], sender: str, endpoint: str, outbox: Outbox) -> None:
    """Answer what a removed node forwards: its clients are to go elsewhere, also with what they have sent before."""
    for forwarded in operations:
        error = Unavailable(removal_sentence(sender), code="MEMBER_REMOVED")
        error.not_applied = not forwarded.operation.resend
        if forwarded.open_session:
            _deliver_opened(outbox, forwarded.call_id, b"", error_to_proto(error, endpoint))
        else:
            result = kv_pb2.OperationResult(id=forwarded.operation.id, error=error_to_proto(error, endpoint))
            _deliver(outbox, forwarded.call_id, endpoint, result)


def _deliver(outbox: Outbox, call_id: int, endpoint: str, result: kv_pb2.OperationResult) -> None:
    data = peer_pb2.ForwardedResult(call_id=call_id, result=result).SerializeToString()
    refused = outbox.cannot_take(len(data))
    if refused is not None and (result.HasField("read") or len(data) > MAX_RESULT_BYTES):
        result = kv_pb2.OperationResult(id=result.id, error=error_to_proto(refused, endpoint))
        data = peer_pb2.ForwardedResult(call_id=call_id, result=result).SerializeToString()
    outbox.put(data)


def _deliver_opened(outbox: Outbox, call_id: int, client_id: bytes, error: kv_pb2.Error | None) -> None:
    opened = peer_pb2.ForwardedResult(call_id=call_id, opened_client_id=client_id)
    if error is not None:
        opened.result.error.CopyFrom(error)
    outbox.put(opened.SerializeToString())


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
