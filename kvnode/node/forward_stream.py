"""Operations forwarded to one peer, and their answers.

An operation is in one of two places: in the queue (it has never left this node) or in `_outstanding` (it may
have). When the stream breaks, the first kind is answered with PEER_UNREACHABLE, not applied; the second with
FORWARD_BROKEN, outcome unknown. What is forwarded while the stream is opening waits for the attempt to end,
so that a caller that tries again at once is paced by the stream's back-off.

They leave by the stream's lane once it is open (lane.py), else by the stream itself, and in the order of their coming
all the same: the first message on the lane says how many have left by the stream. Answers come by either.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from grpc import aio

from kvnode.base import limits
from kvnode.machine.sessions import NODES_OWN
from kvnode.node.laned_stream import LanedStream
from kvnode.node.message_stream import hello_to
from kvnode.node.peer_stream import RawCall
from kvnode.node.ports import Deliver, Origin, PeerHandler
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

FORWARD_METHOD = "/kv.internal.v1.Peer/Forward"

OpenDeliver = Callable[[bytes, kv_pb2.Error | None], None]


class _Forwarded(NamedTuple):
    """One operation (or, without one, the opening of a session) and where its answer goes."""

    origin: Origin
    operation: kv_pb2.Operation | None
    deliver: Deliver | None
    open_deliver: OpenDeliver | None
    size_bytes: int


class ForwardStream(LanedStream):
    """The Forward stream to `node_id`, with its lane.

    Args:
        lane_host: where the peer's lane is looked for; empty = take none, whatever is offered.
    """

    def __init__(
        self, node_id: int, peer: str, channel: aio.Channel, handler: PeerHandler, lane_host: str = ""
    ) -> None:
        super().__init__(peer, FORWARD_METHOD, channel, lane_host)
        self._filling: asyncio.Handle | None = None  # the lane takes what waits at the end of this pass
        self._streamed_count: int | None = 0  # operations that have left by the stream; None = the lane has said so
        self._node_id = node_id
        self._handler = handler
        self._queue: deque[_Forwarded] = deque()
        self._queued_bytes = 0
        self._outstanding: dict[int, _Forwarded] = {}
        self._next_call_id = 1

    def forward(self, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """Queue one operation; `deliver` is called later, never from within."""
        self._enqueue(_Forwarded(origin, operation, deliver, None, operation.ByteSize()))

    def open_session(self, owner: int, deliver: OpenDeliver) -> None:
        """Queue a request for a fresh client id of that owner."""
        self._enqueue(_Forwarded(Origin(b"", 0, owner, own_session=owner == NODES_OWN), None, None, deliver, 0))

    def _enqueue(self, item: _Forwarded) -> None:
        if (
            len(self._queue) >= limits.MAX_FORWARD_QUEUE_COUNT
            or self._queued_bytes + item.size_bytes > limits.MAX_FORWARD_QUEUE_BYTES
        ):
            reason = f"too much waits for {self._peer} (MAX_FORWARD_QUEUE_COUNT or _BYTES)"
            asyncio.get_running_loop().call_soon(fail_forwarded, item, unreachable(reason, self._peer))
            return
        self._queue.append(item)
        self._queued_bytes += item.size_bytes
        if self._lane is None:
            self._wake()
        elif self._filling is None:
            self._filling = asyncio.get_running_loop().call_soon(self._fill_lane)

    def _hello(self) -> bytes:
        return peer_pb2.ForwardRequest(hello=hello_to(self._handler, self._node_id)).SerializeToString()

    def _refusal(self, welcome: bytes) -> str:
        response = peer_pb2.ForwardResponse.FromString(welcome)
        self._lane_offer = (response.lane_port, response.lane_token)
        return response.refused

    def _went_up(self, call: RawCall) -> None:
        self._streamed_count = 0
        super()._went_up(call)

    def _by_lane(self) -> Callable[[bytes], None]:
        return self._received

    def _fill_lane(self) -> None:
        self._filling = None
        while self._lane is not None and not self._lane.is_full and (request := self._next_request()) is not None:
            if self._streamed_count is not None:
                request.behind_count, self._streamed_count = self._streamed_count, None
            self._lane.send(request.SerializeToString())

    async def _ended(self) -> None:
        """The peer has answered what it owed, perhaps by the lane, which it closes behind that."""
        if self._lane is not None and self._outstanding:
            lane, self._lane = self._lane, None  # it takes nothing more
            await lane.drained(limits.PEER_LANE_TAIL_MS / 1_000)
            lane.close()

    def _close_lane(self) -> None:
        super()._close_lane()
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None

    def _discard(self, reason: str) -> None:
        self._close_lane()
        queue, self._queue = self._queue, deque()
        outstanding, self._outstanding = self._outstanding, {}
        self._queued_bytes = 0
        if outstanding:
            error = _broken(reason, self._peer)
            for item in outstanding.values():
                fail_forwarded(item, error)
        if queue:
            error = unreachable(reason, self._peer)
            for item in queue:
                fail_forwarded(item, error)

    def _next_batch(self) -> bytes | None:
        request = self._next_request() if self._lane is None and self._streamed_count is not None else None
        if request is None:
            return None
        assert self._streamed_count is not None
        self._streamed_count += len(request.operations)
        return request.SerializeToString()

    def _next_request(self) -> peer_pb2.ForwardRequest | None:
        """What waits, up to MAX_PEER_BATCH_BYTES of it; None = nothing does."""
        queue = self._queue
        if not queue:
            return None
        request = peer_pb2.ForwardRequest()
        add = request.operations.add
        outstanding = self._outstanding
        size = count = 0
        call_id = self._next_call_id
        while queue and count < limits.MAX_FORWARD_MESSAGE_OPERATIONS_COUNT:
            if count and size + queue[0].size_bytes > limits.MAX_PEER_BATCH_BYTES:
                break
            item = queue.popleft()
            origin = item.origin
            outstanding[call_id] = item
            if item.operation is None:
                add(call_id=call_id, open_session=True, database=origin.database, own_session=origin.own_session)
            else:
                add(
                    call_id=call_id,
                    client_id=origin.client_id,
                    lowest_unanswered=origin.lowest_unanswered,
                    database=origin.database,
                    system=not origin.database,
                    own_session=origin.own_session,
                    operation=item.operation,
                )
            call_id += 1
            count += 1
            size += item.size_bytes
        self._next_call_id = call_id
        self._queued_bytes -= size
        return request

    def _received(self, reply: bytes) -> None:
        pop = self._outstanding.pop
        for forwarded in peer_pb2.ForwardResponse.FromString(reply).results:
            item = pop(forwarded.call_id, None)
            if item is None:
                continue  # answered already
            if item.deliver is not None:
                deliver_safely(item.deliver, forwarded.result)
            elif item.open_deliver is not None:
                error = forwarded.result.error if forwarded.result.HasField("error") else None
                item.open_deliver(forwarded.opened_client_id, error)


def fail_forwarded(item: _Forwarded, error: kv_pb2.Error) -> None:
    """Answer an operation with an error."""
    if item.open_deliver is not None:
        item.open_deliver(b"", error)
    elif item.deliver is not None and item.operation is not None:
        deliver_safely(item.deliver, kv_pb2.OperationResult(id=item.operation.id, error=error))


def deliver_safely(deliver: Deliver, result: kv_pb2.OperationResult) -> None:
    """Deliver, so that one receiver's error does not cost the others of the batch their answers."""
    try:
        deliver(result)
    except Exception:
        _log.exception("the receiver of a forwarded operation's result failed")


def unreachable(reason: str, peer: str) -> kv_pb2.Error:
    """The operation never left this node."""
    return kv_pb2.Error(
        code="PEER_UNREACHABLE",
        message=f"{peer} could not be reached: {reason}",
        phase="dial",
        endpoint=peer,
        not_applied=True,
    )


def _broken(reason: str, peer: str) -> kv_pb2.Error:
    return kv_pb2.Error(
        code="FORWARD_BROKEN",
        message=f"the stream to {peer} broke before the answer came: {reason}",
        phase="commit",
        endpoint=peer,
        not_applied=False,
    )
