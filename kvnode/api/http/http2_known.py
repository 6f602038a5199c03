"""Heads of requests on one connection of HTTP/2 that have come before, by the bytes that HPACK gives them.

The same bytes mean the same for as long as HPACK's tables do. A head that differs from a known one in the value of its
content-length alone is known as well: the bodies of a client's writes have many lengths.
"""

from __future__ import annotations

from kvnode.api.http.hpack import split_length
from kvnode.api.http.known_heads import KnownHead
from kvnode.base import limits


class KnownBlocks:
    """Bounded by MAX_KNOWN_BLOCKS_BYTES; what came first is forgotten first."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}
        self._forms: dict[bytes, KnownHead] = {}  # by their bytes without the length
        self._size_bytes = 0

    def find(self, block: bytes) -> KnownHead | None:
        """What a head says; None = it is not known."""
        head = self._heads.get(block)
        if head is None and self._forms and (split := split_length(block)) is not None:
            form, body_bytes = split
            alike = self._forms.get(form)
            if alike is not None and body_bytes <= limits.HTTP_READ_AHEAD_BYTES:
                head = alike.with_body_of(body_bytes)
                self._keep(self._heads, block, head)
        return head

    def add(self, block: bytes, head: KnownHead) -> None:
        """A head was parsed under the present tables."""
        self._keep(self._heads, block, head)
        split = split_length(block)
        if split is not None and split[1] == head.body_bytes:
            self._keep(self._forms, split[0], head)

    def clear(self) -> None:
        """The tables have changed."""
        self._heads, self._forms, self._size_bytes = {}, {}, 0

    def _keep(self, kept: dict[bytes, KnownHead], block: bytes, head: KnownHead) -> None:
        if block not in kept:
            self._size_bytes += len(block)
        kept[block] = head
        while self._size_bytes > limits.MAX_KNOWN_BLOCKS_BYTES:
            oldest = next(iter(self._heads), None)
            if oldest is None:  # what is too much are forms
                self.clear()
                return
            del self._heads[oldest]
            self._size_bytes -= len(oldest)
