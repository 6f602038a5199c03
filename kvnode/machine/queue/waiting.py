"""The waiting rows of messages that an entry makes, due at once: written only if they outlast it.

Theory of operation. Most messages for which somebody waits are claimed in the entry that enqueues them, so that the row
that lists them as waiting would be written and removed by one entry. It goes to the overlay alone, where claims find it
and where a rollback takes back what was done to it; what still stands when the entry is closed becomes a fact, in the
transaction that put it, whose versionstamp the row has. Until then nothing is written that removes such a row either. A
row of the same key that is written, because the message came back within the entry, is none of these.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvnode.codec.row import Row
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.machine.overlay import Overlay

_ORDER_AT = VERSIONSTAMP_BYTES - 2  # where a versionstamp names the transaction's place in its entry


class WaitingRows:
    """Those of one entry.

    Args:
        overlay: where they are seen.
    """

    __slots__ = ("_overlay", "_rows")

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._rows: dict[bytes, Row] = {}

    def put(self, row: Row) -> None:
        """A message is made, and waits."""
        self._rows[row.key] = row
        self._overlay.put(row.key, row)

    def remove(self, key: bytes) -> bool:
        """It waits no longer. False: it is none of these, and nothing was done."""
        row = self._rows.get(key)
        if row is None or self._overlay.in_flight(key) is not row:
            return False
        self._overlay.put(key, None)
        return True

    def close(self) -> Iterator[tuple[int, Row]]:
        """What is to be written: each row, and the place in the entry of the transaction that is to have it."""
        rows, self._rows = self._rows, {}
        for key, row in rows.items():
            if self._overlay.in_flight(key) is row:
                yield int.from_bytes(row.versionstamp[_ORDER_AT:], "big"), row
