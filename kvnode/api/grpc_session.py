"""One client's Session: many operations to a message, results as they come.

Per message the work is one parse, one submit and, per result, one serialization; operations and results are
never copied between messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from grpc import aio

from kvnode.api.auth.gate import Permit
from kvnode.api.grpc_handlers import parse, timeout_ms
from kvnode.api.outbox import MAX_RESULT_BYTES, Outbox
from kvnode.api.ports import ServedNode
from kvnode.api.pump import Pump
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.client.status import error_to_proto
from kvnode.node.ports import BoundedDeliver, Origin
from kvnode.proto.kv.v1 import kv_pb2

CLIENT_ID_BYTES = 10
_RESULTS_FIELD = kv_pb2.SessionResponse.RESULTS_FIELD_NUMBER


class Session:
    """The server side of one Session stream.

    Args:
        node: answers the operations.
        permit: what the client may do, and with which database.
        context: of the call.
        stopping: done when the node is about to stop.
    """

    def __init__(
        self, node: ServedNode, permit: Permit, context: aio.ServicerContext, stopping: asyncio.Future[None]
    ) -> None:
        self._node = node
        self._permit = permit
        self._context = context
        self._stopping = stopping
        self._outbox = Outbox(context.write, _RESULTS_FIELD)
        self._deliver = BoundedDeliver(_deliver, self._outbox, node.name)
        self._client_id = b""
        self._waiting: list[kv_pb2.SessionRequest] = []  # for the client id
        self._reading: asyncio.Future[bytes] | None = None

    async def serve(self) -> None:
        """Serve the stream to its end. Raises KvError for what ends the whole stream."""
        raw = await self._context.read()
        if raw is aio.EOF:
            return
        first = parse(kv_pb2.SessionRequest, raw)
        opening = asyncio.ensure_future(self._open(first))
        self._node.stats.sessions_open += 1
        try:
            if await Pump(self._outbox, self._stopping).run(lambda: self._serve(first, opening)):
                raise Unavailable("the node is stopping; resume the session at another one", code="NODE_STOPPING")
        finally:
            self._node.stats.sessions_open -= 1
            left = [opening, *([self._reading] if self._reading is not None else [])]
            for future in left:
                future.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _serve(self, first: kv_pb2.SessionRequest, opening: asyncio.Future[bytes]) -> None:
        """Take in messages until the client ends its half.

        A new client id is the leader's to give, and there may be none for a long time; eventual reads need none, and
        are taken in meanwhile. Whatever else comes waits.
        """
        await self._read_while_opening(first, opening)
        self._client_id = opening.result()
        opened = kv_pb2.SessionOpened(client_id=self._client_id, node=self._node.name)
        await self._outbox.announce(kv_pb2.SessionResponse(opened=opened).SerializeToString())
        for request in self._waiting:
            await self._take(request)
        self._waiting.clear()
        under_way, self._reading = self._reading, None
        if under_way is None or await self._took(await under_way):
            await self._read()

    async def _read_while_opening(self, request: kv_pb2.SessionRequest, opening: asyncio.Future[bytes]) -> None:
        """A read of the stream that is under way when the client id comes stays in `_reading`."""
        await asyncio.wait({opening}, timeout=0)  # an id that the client brought is there at once
        while True:
            if request.operations and (self._waiting or opening.done() or not _is_eventual(request)):
                self._waiting.append(request)
            else:
                await self._take(request)
            if opening.done():
                return
            if self._waiting or self._outbox.full:
                await asyncio.wait({opening})
                return
            self._reading = asyncio.ensure_future(self._context.read())
            await asyncio.wait({self._reading, opening}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                return
            raw = self._reading.result()
            if raw is aio.EOF:
                await asyncio.wait({opening})
                return
            self._reading = None
            request = self._parsed(raw)

    async def _open(self, first: kv_pb2.SessionRequest) -> bytes:
        if not first.HasField("open"):
            raise InvalidRequest("SESSION_NOT_OPENED", "the first message of a session must carry `open`")
        client_id = first.open.client_id
        if not client_id:
            return await self._node.open_session(timeout_ms(self._context), database=self._permit.database)
        if len(client_id) != CLIENT_ID_BYTES:
            raise InvalidRequest(
                "CLIENT_ID_INVALID", f"a client id has {CLIENT_ID_BYTES} bytes, this one has {len(client_id)}"
            )
        return client_id

    async def _read(self) -> None:
        read = self._context.read
        while await self._took(await read()):
            pass

    async def _took(self, raw: bytes) -> bool:
        """Take in one message; False when the client has sent its last one."""
        if raw is aio.EOF:
            return False
        await self._take(self._parsed(raw))
        if self._outbox.full:
            await self._outbox.room()
        return True

    @staticmethod
    def _parsed(raw: bytes) -> kv_pb2.SessionRequest:
        request = parse(kv_pb2.SessionRequest, raw)
        if request.HasField("open"):
            raise InvalidRequest("SESSION_OPENED_TWICE", "only the first message of a session may carry `open`")
        return request

    async def _take(self, request: kv_pb2.SessionRequest) -> None:
        operations = request.operations
        count = len(operations)
        if not count:
            return
        if count > limits.MAX_SESSION_MESSAGE_OPERATIONS_COUNT:
            raise InvalidRequest(
                "TOO_MANY_OPERATIONS",
                f"{count} operations in one message, {limits.MAX_SESSION_MESSAGE_OPERATIONS_COUNT} at most: send more "
                "messages",
            )
        self._outbox.expect(count)
        origin = Origin(self._client_id, request.lowest_unanswered, self._permit.database)
        allowed = operations if self._permit.is_plain else self._allowed(operations)
        for at in range(0, len(allowed), limits.MAX_SESSION_INTAKE_COUNT):
            if at:
                await asyncio.sleep(0)
            self._node.submit(allowed[at : at + limits.MAX_SESSION_INTAKE_COUNT], origin, self._deliver)

    def _allowed(self, operations: Sequence[kv_pb2.Operation]) -> list[kv_pb2.Operation]:
        """Those that the permit allows; the others are answered."""
        allowed = []
        for operation in operations:
            try:
                self._permit.use_for(operation)
            except KvError as error:
                refused = error_to_proto(error, self._node.name)
                # Refused is this copy; what became of an earlier one nobody has looked at.
                refused.not_applied = not operation.resend
                self._deliver(kv_pb2.OperationResult(id=operation.id, error=refused))
            else:
                allowed.append(operation)
        return allowed


def _deliver(outbox: Outbox, endpoint: str, result: kv_pb2.OperationResult) -> None:
    data = result.SerializeToString()
    refused = outbox.cannot_take(len(data))
    if refused is not None and (result.HasField("read") or len(data) > MAX_RESULT_BYTES):
        error = error_to_proto(refused, endpoint)
        data = kv_pb2.OperationResult(id=result.id, error=error).SerializeToString()
    outbox.put(data)


def _is_eventual(request: kv_pb2.SessionRequest) -> bool:
    return all(
        operation.HasField("read") and operation.read.consistency == kv_pb2.CONSISTENCY_EVENTUAL
        for operation in request.operations
    )
