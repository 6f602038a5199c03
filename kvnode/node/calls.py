"""An operation on its way through this node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvnode.base.errors import KvError
from kvnode.node.ports import BoundedDeliver, Deliver, Origin
from kvnode.proto.kv.v1 import kv_pb2

OpenDeliver = Callable[[bytes, kv_pb2.Error | None], None]

# Errors by which nodes tell each other to send an operation again; no client sees them while there is time left.
RETRIED_CODES = frozenset({"NOT_LEADER", "PEER_UNREACHABLE", "FORWARD_BROKEN", "LEADERSHIP_LOST"})


class Call:
    """One operation, or the opening of a session, with where its answer goes.

    Args:
        operation: None when the call opens a session.
        forwarded: it came from another node and must not be forwarded again.
    """

    __slots__ = ("attempt", "database", "deadline_ms", "deliver", "done", "forwarded", "is_blind", "leased",
                 "open_deliver", "operation", "origin", "sent", "size_bytes", "started_ms")  # fmt: skip

    def __init__(
        self,
        operation: kv_pb2.Operation | None,
        origin: Origin,
        deliver: Deliver | None,
        open_deliver: OpenDeliver | None,
        started_ms: float,
        timeout_ms: int,
        *,
        forwarded: bool = False,
    ) -> None:
        self.operation = operation
        self.origin = origin
        self.database = origin.database
        self.deliver = deliver
        self.open_deliver = open_deliver
        self.started_ms = started_ms
        self.deadline_ms = started_ms + timeout_ms
        self.forwarded = forwarded
        self.is_blind = False  # a write for which no state has to be read: validate_write said so
        self.leased = False  # confirmed by the leader lease, which is looked at again before the answer
        self.sent = operation is not None and operation.resend
        self.attempt = 0
        self.done = False
        self.size_bytes = 0

    @property
    def reads_count(self) -> int:
        """How many operations it stands for (read_batch.py)."""
        return 1

    @property
    def bounded(self) -> BoundedDeliver | None:
        """Where its answer goes, if only so much can go there."""
        return self.deliver if isinstance(self.deliver, BoundedDeliver) else None

    def answer(self, result: kv_pb2.OperationResult) -> None:
        """Deliver the result, once."""
        if self.done or self.deliver is None:
            return
        self.done = True
        self.deliver(result)

    def opened(self, client_id: bytes) -> None:
        """Deliver the fresh client id, once."""
        if self.done or self.open_deliver is None:
            return
        self.done = True
        self.open_deliver(client_id, None)

    def fail(self, error: KvError) -> None:
        """Deliver the error, once."""
        if self.done:
            return
        message = error_message(error)
        if self.operation is None:
            self.done = True
            if self.open_deliver is not None:
                self.open_deliver(b"", message)
        else:
            self.answer(kv_pb2.OperationResult(id=self.operation.id, error=message))

    def mark_resend(self) -> None:
        """From here on a copy of this operation may exist elsewhere."""
        self.sent = True
        if self.operation is not None:
            self.operation.resend = True


class Answers(Protocol):
    """Where strong answers go: to the caller, or first past the primary lease (promotion/gate.py)."""

    @property
    def are_direct(self) -> bool:
        """Whether nothing stands between an answer and its caller now."""

    def answer(self, call: Call, result: kv_pb2.OperationResult) -> None:
        """Deliver a result."""

    def opened(self, call: Call, client_id: bytes) -> None:
        """Deliver a fresh client id."""


class DirectAnswers:
    """Answers that need no lease."""

    are_direct = True

    def answer(self, call: Call, result: kv_pb2.OperationResult) -> None:
        """See Answers."""
        call.answer(result)

    def opened(self, call: Call, client_id: bytes) -> None:
        """See Answers."""
        call.opened(client_id)


def error_message(error: KvError) -> kv_pb2.Error:
    """The wire form of an error; kvnode.client.status.error_from_proto is the inverse."""
    return kv_pb2.Error(
        code=error.code,
        message=error.message,
        phase=error.phase,
        endpoint=error.endpoint,
        not_applied=error.not_applied,
    )
