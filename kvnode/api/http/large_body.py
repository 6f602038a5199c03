"""A body that is made as its client takes it, so that neither the loop nor the memory has all of it to bear at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator


class LargeBody:
    """Taken once, piece by piece; its length is known before.

    Args:
        size_bytes: of all pieces together: more than HTTP2_UNCOUNTED_BYTES, so that it is counted until it is read.
        pieces: none of them empty. What they are made of is kept until the last one is taken, or nobody wants more.
    """

    __slots__ = ("_pieces", "_size_bytes")

    def __init__(self, size_bytes: int, pieces: Iterator[bytes]) -> None:
        self._size_bytes = size_bytes
        self._pieces = pieces

    def __len__(self) -> int:
        return self._size_bytes

    def next(self) -> bytes:
        """The next piece; empty behind the last one."""
        return next(self._pieces, b"")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Those that are left, with a pass of the loop behind each: what takes them may have room for all."""
        while piece := self.next():
            yield piece
            await asyncio.sleep(0)
