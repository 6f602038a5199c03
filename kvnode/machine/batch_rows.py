"""A transaction of a batch, as its queue part sees it (queue/transaction.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.codec.row import Row
from kvnode.machine.queue.arrivals import QueueId
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows

if TYPE_CHECKING:
    from kvnode.machine.resolve import Batch

FACT_OVERHEAD_BYTES = 24  # tags, lengths, encoding, expiry: an upper bound, so that a batch closes early, never late
_COUNTERS_BYTES = 160  # of a queue's row without its key, at most


class BatchRows:
    """Implements TransactionRows for one transaction of a batch after the other.

    Args:
        batch: whose transactions.
    """

    __slots__ = ("_batch", "_transaction", "counters", "live", "log_time_ms", "newest", "scan_applied")

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._transaction = log_pb2.Transaction()
        self.log_time_ms = batch.log_time_ms
        self.live = batch.live
        self.newest = batch.overlay.newest
        self.counters = batch.counters.of
        self.scan_applied = batch.resolver.state.scan

    def of(self, transaction: log_pb2.Transaction) -> BatchRows:
        """Itself; facts go to that transaction from here on."""
        self._transaction = transaction
        return self

    def put(self, row: Row) -> None:
        """See TransactionRows."""
        self._batch.set_row(self._transaction, row)

    def remove(self, key: bytes) -> None:
        """See TransactionRows."""
        self._batch.delete_row(self._transaction, key)

    def put_counters(self, key: bytes, counters: rows.QueueRow, stamp: bytes) -> None:
        """See TransactionRows."""
        batch = self._batch
        if batch.counters.put(key, counters, stamp):
            batch.size_bytes += len(key) + _COUNTERS_BYTES

    def put_new(self, row: Row) -> None:
        """See TransactionRows."""
        batch = self._batch
        batch.waiting.put(row)
        batch.size_bytes += len(row.key) + FACT_OVERHEAD_BYTES

    def arrive(self, queue_id: QueueId, key: bytes) -> None:
        """See TransactionRows."""
        batch = self._batch
        batch.arrived[queue_id] = None
        batch.resolver.arrivals.note(queue_id, key, batch.index)

    def depart(self, key: bytes) -> None:
        """See TransactionRows."""
        batch = self._batch
        if not batch.waiting.remove(key):
            batch.delete_row(self._transaction, key)

    def arrived(self, queue_id: QueueId) -> list[Row]:
        """See TransactionRows."""
        batch = self._batch
        in_flight = batch.overlay.in_flight
        found = [in_flight(key) for key in batch.resolver.arrivals.of(queue_id)]
        return [row for row in found if row is not None]
