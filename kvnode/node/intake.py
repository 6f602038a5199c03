"""The way in: operations are counted, judged against the limits, and sent on their way.

Eventual reads are answered from the state here; all else is the gateway's, which knows where the leader is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.base.invariant import InvariantViolation
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.keyspace import DEFAULT_DATABASE
from kvnode.machine.queue.validate import validate_pull
from kvnode.machine.sessions import NODES_OWN
from kvnode.machine.validate import validate_read, validate_write
from kvnode.node.calls import Call, OpenDeliver, error_message
from kvnode.node.gateway import Gateway
from kvnode.node.guard import Guard
from kvnode.node.ports import Deliver, Origin
from kvnode.node.read_batch import BatchedRead, ReadBatches
from kvnode.node.reads import Reads
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2

_STRONG = int(kv_pb2.CONSISTENCY_STRONG)
_new = tuple.__new__  # a NamedTuple in half the time


class Intake:
    """Takes in what clients and other nodes send.

    Args:
        gateway: gets what is strong.
        reads: answer what is eventual.
        batches: of small strong reads.
        view: the databases, with their limits.
        timeout_ms: of operations that name none.
        guard: around what may break the core.
        fail: told of an error that means that the core cannot be trusted.
    """

    def __init__(
        self,
        gateway: Gateway,
        reads: Reads,
        batches: ReadBatches,
        view: DirectoryView,
        stats: Stats,
        clock: Clock,
        timeout_ms: int,
        guard: Guard,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._gateway = gateway
        self._reads = reads
        self._batches = batches
        self._view = view
        self._stats = stats
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._guard = guard
        self._fail = fail

    def submit(
        self, operations: Sequence[kv_pb2.Operation], origin: Origin, deliver: Deliver, *, forwarded: bool = False
    ) -> None:
        """Take in operations; see Node.submit."""
        now = self._clock.monotonic_ms()
        self._stats.operations += len(operations)
        for operation in operations:
            timeout_ms = min(operation.timeout_ms or self._timeout_ms, limits.MAX_OPERATION_TIMEOUT_MS)
            call: Call | None = None
            try:
                if self._joins_batch(operation):
                    read = _new(BatchedRead, (operation, origin, deliver, now))
                    self._batches.join(read, timeout_ms, forwarded=forwarded)
                else:
                    call = Call(operation, origin, deliver, None, now, timeout_ms, forwarded=forwarded)
                    self._admit(call, operation)
            except KvError as error:
                self._stats.operation_errors += 1
                if call is None:
                    deliver(kv_pb2.OperationResult(id=operation.id, error=error_message(error)))
                else:
                    error.not_applied = error.not_applied and not call.sent  # of a resend: this copy was not
                    call.fail(error)
            except InvariantViolation as error:
                self._fail(error)
                return

    def submit_one(self, operation: kv_pb2.Operation, origin: Origin, deliver: Deliver) -> None:
        """Take in one operation of this node's own."""
        self.submit((operation,), origin, deliver)

    def open_session(self, deliver: OpenDeliver, owner: int, timeout_ms: int, *, forwarded: bool = False) -> None:
        """Have the leader open a session of that owner (machine/sessions.py)."""
        origin = Origin(b"", 0, owner or DEFAULT_DATABASE, own_session=owner == NODES_OWN)
        call = Call(None, origin, None, deliver, self._clock.monotonic_ms(), timeout_ms, forwarded=forwarded)
        with self._guard:
            self._gateway.route(call)

    def _joins_batch(self, operation: kv_pb2.Operation) -> bool:
        """Whether it is a small strong read, and answered here. Raises KvError: it is not valid."""
        if not operation.HasField("read") or not self._gateway.reads_here:
            return False
        read = operation.read
        if read.consistency != _STRONG or read.min_versionstamp:
            return False
        entries_count = validate_read(read)
        return entries_count is not None and entries_count <= limits.MAX_INLINE_READ_ENTRIES_COUNT

    def _admit(self, call: Call, operation: kv_pb2.Operation) -> None:
        if operation.HasField("write"):
            # The node that took it in judged it by its database's limit; that this one's view is as new is not given.
            # So it was when it was sent first: to refuse a resend would say that the first copy was not applied.
            was_judged = call.forwarded or (call.sent and call.origin.own_session)
            limit = limits.HARD_MAX_VALUE_BYTES if was_judged else self._view.max_value_bytes(call.database)
            call.is_blind = validate_write(operation.write, limit)
        elif operation.HasField("read"):
            read = operation.read
            validate_read(read)
            if read.consistency == kv_pb2.CONSISTENCY_EVENTUAL:
                self._reads.eventual(call)
                return
        elif operation.HasField("pull"):
            validate_pull(operation.pull)
        else:
            raise InvalidRequest("EMPTY_OPERATION", f"operation {operation.id} has neither read, write nor pull")
        self._gateway.route(call)
