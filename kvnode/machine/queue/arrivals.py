"""Messages that are due and that only entries in flight hold: what a claim can take before the state shows it.

Theory of operation. The state finds waiting messages in order; the overlay knows rows only by their keys. So whatever
resolves a message that is due notes the key of its waiting row here, under its queue and with the entry's index. A note
is a hint, never the truth: the transaction may be rolled back, its batch discarded, the message claimed; whoever uses
it asks the overlay for the row. Once the state shows the entry, the note goes. So there are no more of them than
messages in the few entries that are under way.
"""

from __future__ import annotations

from collections.abc import Iterable

QueueId = tuple[int, str]
"""(database, name)."""


class Arrivals:
    """The notes of one term of leadership."""

    __slots__ = ("_noted",)

    def __init__(self) -> None:
        self._noted: dict[QueueId, dict[bytes, int]] = {}  # by queue: key of the waiting row, index of its entry

    def note(self, queue_id: QueueId, key: bytes, index: int) -> None:
        """The entry at `index` makes a message wait that is due."""
        noted = self._noted.setdefault(queue_id, {})
        noted.pop(key, None)  # of a batch that was discarded; notes stay in the order of their entries
        noted[key] = index

    def of(self, queue_id: QueueId) -> Iterable[bytes]:
        """Keys of waiting rows, in the order of their entries."""
        return self._noted.get(queue_id, ())

    def free(self, applied: int) -> None:
        """The state shows the entry `applied`."""
        for queue_id, noted in list(self._noted.items()):
            shown = []
            for key, index in noted.items():
                if index > applied:
                    break
                shown.append(key)
            for key in shown:
                del noted[key]
            if not noted:
                del self._noted[queue_id]
