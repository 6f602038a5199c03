"""The operations of a session that have not been answered: by id, by deadline, counted and weighed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from kvnode.base import limits
from kvnode.proto.kv.v1 import kv_pb2

Deliver = Callable[[kv_pb2.OperationResult], None]
"""Called once for each operation, on the loop, with the result whose id is the operation's."""

_BUCKET_MS: Final = limits.CLIENT_SWEEP_INTERVAL_MS


class PendingOperation:
    """One unanswered operation.

    `sends_count` counts the copies sent under the present client id that may have had an effect: above 0 a
    write may have been applied.

    Args:
        settle: a write that may have been applied has no deadline: only a resend can tell what became of it.
    """

    __slots__ = (
        "deadline_ms",
        "deliver",
        "id",
        "is_queued",
        "is_settled",
        "is_write",
        "last_error",
        "message",
        "needs_leader",
        "retries_count",
        "sends_count",
        "settle",
        "size_bytes",
        "timeout_ms",
    )

    def __init__(
        self,
        message: kv_pb2.Operation,
        deliver: Deliver,
        timeout_ms: int,
        deadline_ms: float,
        *,
        settle: bool = False,
    ) -> None:
        self.settle = settle
        self.id = message.id
        self.message = message
        self.deliver = deliver
        self.timeout_ms = timeout_ms
        self.deadline_ms = deadline_ms
        self.is_write = message.HasField("write")
        self.needs_leader = self.is_write or message.read.consistency != kv_pb2.CONSISTENCY_EVENTUAL
        self.size_bytes = message.ByteSize()
        self.sends_count = 0
        self.retries_count = 0
        self.is_queued = False
        self.is_settled = False
        self.last_error: kv_pb2.Error | None = None


class Load:
    """What the tables of several sessions hold together."""

    __slots__ = ("count", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0


class PendingTable:
    """Unanswered operations in the order of their ids, bounded by count and bytes.

    Deadlines are kept in buckets of a sweep's width: entering and leaving cost one dictionary operation,
    where a heap would keep every answered operation until its deadline.

    Args:
        load: kept up to date with what is held here; it bounds nothing.
    """

    def __init__(self, load: Load | None = None) -> None:
        self._load = load or Load()
        self._by_id: dict[int, PendingOperation] = {}
        self._writes: set[int] = set()
        self._buckets: dict[int, dict[int, PendingOperation]] = {}
        self._lowest = 1
        self._highest = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[PendingOperation]:
        return iter(list(self._by_id.values()))

    def get(self, operation_id: int) -> PendingOperation | None:
        """The unanswered operation of that id, or None."""
        return self._by_id.get(operation_id)

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be submitted just now."""
        return (
            len(self._by_id) >= limits.MAX_SESSION_UNANSWERED_COUNT
            or self.size_bytes >= limits.MAX_CLIENT_UNANSWERED_BYTES
            # The cluster keeps the outcomes of no more ids than this past the lowest unanswered one.
            or self._highest - self.lowest_unanswered >= limits.MAX_SESSION_UNANSWERED_COUNT - 1
        )

    @property
    def lowest_unanswered(self) -> int:
        """Every write with a smaller id has been answered; a read leaves no outcome that must be kept."""
        while self._lowest <= self._highest and self._lowest not in self._writes:
            self._lowest += 1
        return self._lowest

    def add(self, operation: PendingOperation) -> None:
        """Enter an operation; its id is above all before it."""
        self._by_id[operation.id] = operation
        self._highest = operation.id
        if operation.is_write:
            self._writes.add(operation.id)
        self.size_bytes += operation.size_bytes
        self._load.count += 1
        self._load.size_bytes += operation.size_bytes
        self._buckets.setdefault(int(operation.deadline_ms // _BUCKET_MS), {})[operation.id] = operation

    def remove(self, operation: PendingOperation) -> None:
        """Take an operation out: it is answered, or nobody waits for it any more."""
        operation.is_settled = True
        del self._by_id[operation.id]
        self._writes.discard(operation.id)
        self.size_bytes -= operation.size_bytes
        self._load.count -= 1
        self._load.size_bytes -= operation.size_bytes
        bucket = self._buckets.get(int(operation.deadline_ms // _BUCKET_MS))
        if bucket is not None:
            bucket.pop(operation.id, None)

    def postpone(self, operation: PendingOperation, now_ms: float) -> None:
        """Give an expired operation its time once more."""
        operation.deadline_ms = now_ms + operation.timeout_ms
        self._buckets.setdefault(int(operation.deadline_ms // _BUCKET_MS), {})[operation.id] = operation

    def expired(self, now_ms: float) -> list[PendingOperation]:
        """The operations whose deadline has passed; the caller removes or postpones them."""
        limit = int(now_ms // _BUCKET_MS)
        found: list[PendingOperation] = []
        for number in sorted(number for number in self._buckets if number < limit):
            found.extend(self._buckets.pop(number).values())
        return found
