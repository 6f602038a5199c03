"""The receiving side of a Forward stream: operations that a peer sends on, and answers by the stream or its lane.

Theory of operation. A peer sends by the stream until its lane is open, from then on by the lane only. Two connections
keep no order between them, so the first message on the lane says how many operations have left by the stream, and what
the lane brings is held back until those are here. Answers leave by the lane as soon as there is one; each has the id of
its call, so it does not matter in which order they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from grpc import aio

from kvnode.api.grpc_handlers import parse
from kvnode.api.outbox import MAX_RESULT_BYTES, Outbox
from kvnode.api.peer_lanes import LaneEnd, PeerLanes
from kvnode.api.ports import ServedNode
from kvnode.api.pump import Pump
from kvnode.base.errors import Unavailable
from kvnode.client.status import error_to_proto
from kvnode.machine.keyspace import DEFAULT_DATABASE, SYSTEM_DATABASE
from kvnode.machine.sessions import NODES_OWN
from kvnode.node.ports import BoundedDeliver, Origin
from kvnode.node.removal import removal_sentence
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2

_RESULTS_FIELD = peer_pb2.ForwardResponse.RESULTS_FIELD_NUMBER


class Forwarding:
    """One Forward stream whose Hello is welcome.

    Args:
        node: answers the operations.
        hello: the peer's.
        context: of the call.
        stopping: done when the node is about to stop.
    """

    def __init__(
        self, node: ServedNode, hello: peer_pb2.Hello, context: aio.ServicerContext, stopping: asyncio.Future[None]
    ) -> None:
        self._node = node
        self._hello = hello
        self._context = context
        self._stopping = stopping
        self._outbox = Outbox(self._write, _RESULTS_FIELD)
        self._lane: LaneEnd | None = None
        self._resuming: asyncio.Task[None] | None = None  # the lane is read on when the outbox has room
        self._reader: asyncio.Task[None] | None = None
        self._streamed_count = 0  # operations that have come by the stream
        self._behind_count = 0  # so many of them come before what the lane brings
        self._early: list[peer_pb2.ForwardRequest] = []  # what the lane has brought meanwhile
        self._is_over = False  # the peer was removed from the cluster, and told

    async def serve(self, lanes: PeerLanes) -> None:
        """Welcome the peer, and serve it until it ends its half, or is removed from the cluster."""
        try:
            with lanes.offered(self._take_from_lane, self._lane_opened) as offer:
                welcome = peer_pb2.ForwardResponse(lane_port=offer.port, lane_token=offer.token)
                await self._context.write(welcome.SerializeToString())
                await Pump(self._outbox, self._stopping).run(self._read)
        except ConnectionResetError:
            pass  # the lane is gone: the peer opens another stream
        finally:
            if self._resuming is not None:
                self._resuming.cancel()

    async def _write(self, message: bytes) -> None:
        if self._lane is None:
            await self._context.write(message)
        else:
            await self._lane.answer(message)

    async def _read(self) -> None:
        self._reader = asyncio.current_task()
        try:
            while not self._is_over and (raw := await self._context.read()) is not aio.EOF:
                request = parse(peer_pb2.ForwardRequest, raw)
                self._streamed_count += len(request.operations)
                self._take(request)
                if self._early and self._streamed_count >= self._behind_count:
                    self._take_early()
                if self._outbox.full:
                    await self._outbox.room()
        except asyncio.CancelledError:
            if not self._is_over:
                raise

    def _lane_opened(self, lane: LaneEnd) -> None:
        self._lane = lane

    def _take_from_lane(self, raw: bytes) -> None:
        request = parse(peer_pb2.ForwardRequest, raw)
        self._behind_count = max(self._behind_count, request.behind_count)
        if self._early or self._streamed_count < self._behind_count:
            self._early.append(request)
            self._pause_lane(True)
        else:
            self._take(request)
            self._pace_lane()

    def _take_early(self) -> None:
        early, self._early = self._early, []
        for request in early:
            self._take(request)
        self._pause_lane(False)
        self._pace_lane()

    def _pace_lane(self) -> None:
        """Read the lane no further while too much is owed."""
        if self._outbox.full and self._resuming is None:
            self._pause_lane(True)
            self._resuming = asyncio.get_running_loop().create_task(self._resume())

    async def _resume(self) -> None:
        await self._outbox.room()
        self._resuming = None
        self._pause_lane(False)

    def _pause_lane(self, should_pause: bool) -> None:
        if self._lane is not None:
            self._lane.pause(should_pause)

    def _take(self, request: peer_pb2.ForwardRequest) -> None:
        """Hand operations to the node; their answers go to the outbox."""
        operations = request.operations
        node, outbox = self._node, self._outbox
        peers = node.peers
        outbox.expect(len(operations))
        if self._is_over or peers.has_removed(self._hello.node_id):
            _turn_away(operations, self._hello.name, node.name, outbox)
            self._end()
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

    def _end(self) -> None:
        """Nothing more is taken in; what is owed is answered, then the stream ends."""
        if not self._is_over:
            self._is_over = True
            if self._reader is not None and self._reader is not asyncio.current_task():
                self._reader.cancel()


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
