"""Which of an entry's waiters a resend is a copy of.

A resend of a write whose entry is on its way joins the first copy. They come by the thousand, when a leader was lost or
a client has given a slow node up: looked for one by one among the thousand waiters of an entry they would hold the loop
for longer than the writes themselves. So the waiters of an entry are indexed when the first resend joins it.
"""

from __future__ import annotations

from kvnode.node.calls import Call

Waiters = list[tuple[Call, object]]


class _Index:
    """The bodies of one entry's waiters by request id."""

    __slots__ = ("bodies", "indexed_count", "waiters")

    def __init__(self, waiters: Waiters) -> None:
        self.waiters = waiters
        self.bodies: dict[tuple[bytes, int], object] = {}
        self.indexed_count = 0

    def catch_up(self) -> None:
        for call, body in self.waiters[self.indexed_count :]:
            if call.operation is not None:
                self.bodies.setdefault((call.origin.client_id, call.operation.id), body)
        self.indexed_count = len(self.waiters)


class FirstCopies:
    """Of the entries that are on their way and were joined by a resend."""

    def __init__(self) -> None:
        self._of_entry: dict[int, _Index] = {}

    def body(self, index: int, waiters: Waiters, call: Call) -> object | None:
        """What the copy of `call` among the waiters of the entry at `index` will be answered; None = there is none."""
        assert call.operation is not None
        found = self._of_entry.get(index)
        if found is None or found.waiters is not waiters:
            found = self._of_entry[index] = _Index(waiters)
        if found.indexed_count < len(waiters):
            found.catch_up()
        return found.bodies.get((call.origin.client_id, call.operation.id))

    def forget(self, index: int) -> None:
        """The entry is settled, or has lost its place."""
        self._of_entry.pop(index, None)
