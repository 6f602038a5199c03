"""The counters of queues in an entry that is being made: changed by each of its transactions, written once.

Theory of operation. Every enqueue, claim and ack changes the row of its queue, and only the last state of it is seen by
anybody outside of the entry. So a transaction's counters go to the overlay alone, where what is resolved later finds
them and where a rollback takes them back; those that still stand when the entry is closed become a fact, in the
transaction that wrote them, whose versionstamp the row has. They stay a message until then, so that an entry of 64
enqueues serializes them once: in the overlay an empty row stands in their place, and its versionstamp says for which.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvnode.codec.row import Row
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.machine.overlay import Overlay
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows

_ORDER_AT = VERSIONSTAMP_BYTES - 2  # where a versionstamp names the transaction's place in its entry
_PLAIN = 0  # the encoding of a row that is no user's value


class Counters:
    """Those of one entry.

    Args:
        overlay: where they are seen.
    """

    __slots__ = ("_overlay", "_touched", "_unwritten")

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._touched: dict[bytes, None] = {}  # keys of queues
        self._unwritten: dict[tuple[bytes, bytes], rows.QueueRow] = {}  # by key and versionstamp

    def put(self, key: bytes, counters: rows.QueueRow, stamp: bytes) -> bool:
        """The counters of a queue, not to be changed any more, as the transaction with that versionstamp leaves them.

        Returns:
            Whether they are the first of that queue, so that the entry grows by them.
        """
        is_first = key not in self._touched
        self._touched[key] = None
        self._unwritten[key, stamp] = counters
        self._overlay.put(key, Row(key, b"", _PLAIN, stamp))
        return is_first

    def of(self, row: Row) -> rows.QueueRow:
        """What the row of a queue, of the state or the overlay, means; a copy."""
        unwritten = self._unwritten.get((row.key, row.versionstamp))
        if unwritten is None:
            return rows.QueueRow.FromString(row.value)
        counters = rows.QueueRow()
        counters.CopyFrom(unwritten)
        return counters

    def close(self) -> Iterator[tuple[int, Row]]:
        """What is to be written: each row, and the place in the entry of the transaction that is to have it."""
        touched, self._touched = self._touched, {}
        for key in touched:
            placeholder = self._overlay.in_flight(key)
            if placeholder is None:
                continue  # the queue was removed
            counters = self._unwritten.get((key, placeholder.versionstamp))
            if counters is not None:  # else all that touched it was rolled back
                order = int.from_bytes(placeholder.versionstamp[_ORDER_AT:], "big")
                yield order, placeholder._replace(value=counters.SerializeToString())
        self._unwritten.clear()
