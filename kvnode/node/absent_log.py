"""What the core of a node with a damaged log is given in its place.

What is left of the log need not reach to the applied state, so the core could not even begin with it. It need not: such
a node hears nothing and says nothing to its peers (Node.start). It only stays up so that it can say what is wrong.
"""

from __future__ import annotations

from kvnode.codec.entry import Entry


class AbsentLog:
    """A log (raft.types.LogView) that begins behind the applied state and holds nothing.

    Args:
        applied: the state's applied index.
        term: of the entry there.
    """

    def __init__(self, applied: int, term: int) -> None:
        self._applied = applied
        self._term = term

    def first_index(self) -> int:
        """See LogView."""
        return self._applied + 1

    def last_index(self) -> int:
        """See LogView."""
        return self._applied

    def term(self, index: int) -> int | None:
        """See LogView."""
        return self._term if index == self._applied else None

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """See LogView."""
        del low, high, max_bytes
        return []
