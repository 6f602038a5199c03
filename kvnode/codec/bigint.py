"""JavaScript's bigint, apart from its number."""

from __future__ import annotations


class BigInt(int):
    """A Python int that stands for a JavaScript bigint, in keys and in values.

    A plain int is a JavaScript number wherever it fits one exactly, as in denokv for Python; JavaScript keeps the two
    apart, so `("a", 1)` and `("a", BigInt(1))` are different keys.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"BigInt({int(self)})"
