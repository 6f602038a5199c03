"""The node's own client session: unary calls, which bring no request id, run under it.

A fresh one is opened at each start and whenever the old one has expired, so that every write that this node sends
on has a request id by which its outcome can be settled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from kvnode.base.errors import KvError, OutcomeUnknown, Unavailable
from kvnode.client.status import error_from_proto
from kvnode.machine.keyspace import DEFAULT_DATABASE
from kvnode.machine.sessions import NODES_OWN
from kvnode.node.calls import OpenDeliver, error_message
from kvnode.node.ports import Deliver, Origin
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

SESSION_LOST_CODES = frozenset({"SESSION_UNKNOWN", "SESSION_EXPIRED", "SEQUENCE_ANSWERED"})
_SETTLED_BY_RESEND = frozenset({"DEADLINE_EXCEEDED", "LEADERSHIP_LOST", "FORWARD_BROKEN"})
_new = tuple.__new__  # a NamedTuple in half the time
_GRACE_MS = 1_000  # the node answers at the deadline itself; this is only for a node that no longer ticks

_Result = TypeVar("_Result")


class _Open(Protocol):
    def __call__(self, deliver: OpenDeliver, owner: int, timeout_ms: int) -> None: ...


class OwnSession:
    """Runs single operations under one client id."""

    def __init__(
        self, submit: Callable[[kv_pb2.Operation, Origin, Deliver], None], open_call: _Open, timeout_ms: int
    ) -> None:
        self._submit = submit
        self._open_call = open_call
        self._timeout_ms = timeout_ms
        self._client_id = b""
        self._opening: asyncio.Task[None] | None = None
        self._sequence = 0
        self._unanswered: dict[int, None] = {}  # in order of their ids
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether there is a client id, under which writes can be begun."""
        return bool(self._client_id)

    def begin(self, operation: kv_pb2.Operation, database: int, deliver: Deliver) -> None:
        """Run one operation as `run` with `settle` does, without a task unless it must be sent again.

        Args:
            operation: gets its id here; a write only while the session `is_open`.
            database: number of its database.
            deliver: given the result once, possibly before this returns; a failure is a result with `error`. The
                node itself answers at the deadline.
        """
        self._sequence += 1
        sequence = operation.id = self._sequence
        if not operation.HasField("write"):
            self._submit(operation, _new(Origin, (b"", sequence, database, True)), deliver)
            return
        client_id = self._client_id

        def answered(result: kv_pb2.OperationResult) -> None:
            if result.HasField("error") and (_unsettled(result) or _session_lost(result)):
                task = asyncio.get_running_loop().create_task(
                    self._settle(operation, client_id, database, result, deliver)
                )
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)
            else:
                self._unanswered.pop(sequence, None)
                deliver(result)

        self._unanswered[sequence] = None
        try:
            origin = _new(Origin, (client_id, next(iter(self._unanswered)), database, True))
            self._submit(operation, origin, answered)
        except BaseException:
            self._unanswered.pop(sequence, None)
            raise

    async def _settle(
        self,
        operation: kv_pb2.Operation,
        client_id: bytes,
        database: int,
        result: kv_pb2.OperationResult,
        deliver: Deliver,
    ) -> None:
        """Find out what became of a write that was started, and deliver that."""
        try:
            result = await self._settled(operation, client_id, database, result)
            if _session_lost(result):
                operation.resend = False
                result = await self.run(operation, database, settle=True)
        except KvError as error:
            result = kv_pb2.OperationResult(id=operation.id, error=error_message(error))
        except Exception as error:
            _log.exception("a write could not be settled, in a way that nobody foresaw")
            unknown = OutcomeUnknown(f"internal error: {error!r}", code="INTERNAL")
            result = kv_pb2.OperationResult(id=operation.id, error=error_message(unknown))
        deliver(result)

    async def run(
        self, operation: kv_pb2.Operation, database: int = DEFAULT_DATABASE, *, settle: bool = False
    ) -> kv_pb2.OperationResult:
        """Run one operation on the database of that number. Raises KvError.

        Args:
            settle: a write that may have been applied is sent again under its request id until its outcome is
                known, however long that takes; the operation's time then only bounds the wait for a leader. What is
                still unknown after that is so for ever: its session has expired, or the node stops.
        """
        result = await self._attempt(operation, database, settle)
        if _session_lost(result):
            operation.resend = False
            result = await self._attempt(operation, database, settle)
        if result.HasField("error"):
            raise error_from_proto(result.error)
        return result

    async def open(self, owner: int, timeout_ms: int = 0) -> bytes:
        """A fresh client id, for writes of that owner (machine/sessions.py). Raises KvError."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def deliver(client_id: bytes, error: kv_pb2.Error | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(client_id)
            else:
                future.set_exception(error_from_proto(error))

        timeout_ms = timeout_ms or self._timeout_ms
        self._open_call(deliver, owner, timeout_ms)
        return await _in_time(future, timeout_ms)

    async def _attempt(self, operation: kv_pb2.Operation, database: int, settle: bool) -> kv_pb2.OperationResult:
        is_write = operation.HasField("write")
        if is_write and not self._client_id:
            await self._ensure_open(operation.timeout_ms)
        self._sequence += 1
        sequence = self._sequence
        operation.id = sequence
        if is_write:
            self._unanswered[sequence] = None
        client_id = self._client_id if is_write else b""
        try:
            result = await self._send(operation, client_id, database)
            if settle and is_write:
                return await self._settled(operation, client_id, database, result)
        finally:
            self._unanswered.pop(sequence, None)
        self._look_for_loss(client_id, result)
        return result

    async def _settled(
        self, operation: kv_pb2.Operation, client_id: bytes, database: int, result: kv_pb2.OperationResult
    ) -> kv_pb2.OperationResult:
        """Send a write again until a result says what became of it; the first is that of its first copy."""
        try:
            while _unsettled(result):
                operation.resend = True
                result = await self._send(operation, client_id, database)
        finally:
            self._unanswered.pop(operation.id, None)
        self._look_for_loss(client_id, result)
        return result

    def _look_for_loss(self, client_id: bytes, result: kv_pb2.OperationResult) -> None:
        if _session_lost(result) and self._client_id == client_id:
            self._client_id = b""  # unless another write has opened a fresh one already

    async def _send(self, operation: kv_pb2.Operation, client_id: bytes, database: int) -> kv_pb2.OperationResult:
        lowest = next(iter(self._unanswered), operation.id)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[kv_pb2.OperationResult] = loop.create_future()

        def deliver(result: kv_pb2.OperationResult) -> None:
            if not future.done():
                future.set_result(result)

        self._submit(operation, Origin(client_id, lowest, database, own_session=True), deliver)
        timeout_s = ((operation.timeout_ms or self._timeout_ms) + _GRACE_MS) / 1000
        timer = loop.call_later(timeout_s, _give_up, future)  # a third of what asyncio.wait_for costs
        try:
            return await future
        except TimeoutError:
            if operation.HasField("write"):
                raise OutcomeUnknown("no answer within the deadline", code="DEADLINE_EXCEEDED") from None
            raise KvError("DEADLINE_EXCEEDED", "no answer within the deadline; retry", phase="read") from None
        finally:
            timer.cancel()

    async def _ensure_open(self, timeout_ms: int) -> None:
        if self._opening is None or self._opening.done():
            self._opening = asyncio.get_running_loop().create_task(self._open_own(timeout_ms))
            self._opening.add_done_callback(_note_failure)
        await _in_time(asyncio.shield(self._opening), timeout_ms or self._timeout_ms)

    async def _open_own(self, timeout_ms: int) -> None:
        """The id is there when the task is done: whoever comes in between finds the one or the other."""
        self._client_id = await self.open(NODES_OWN, timeout_ms)


def _give_up(future: asyncio.Future[kv_pb2.OperationResult]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


async def _in_time(opening: asyncio.Future[_Result], timeout_ms: int) -> _Result:
    try:
        return await asyncio.wait_for(opening, (timeout_ms + _GRACE_MS) / 1000)
    except TimeoutError:
        raise Unavailable("no session could be opened within the deadline; retry", code="DEADLINE_EXCEEDED") from None


def _unsettled(result: kv_pb2.OperationResult) -> bool:
    """Whether a resend under the same id can tell what became of it."""
    error = result.error
    return result.HasField("error") and not error.not_applied and error.code in _SETTLED_BY_RESEND


def _note_failure(opening: asyncio.Task[None]) -> None:
    """Whoever still waits is told; when nobody does any more, that is no fault of the program's."""
    if not opening.cancelled():
        opening.exception()


def _session_lost(result: kv_pb2.OperationResult) -> bool:
    return result.HasField("error") and result.error.code in SESSION_LOST_CODES and result.error.not_applied
