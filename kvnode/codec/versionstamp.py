"""Versionstamps: 10 bytes that give every commit its place in the one log.

8 bytes big-endian, of which the upper 16 bits are the epoch and the lower 48 the log index, then 2 bytes
with the transaction's order in its entry. Byte order is commit order, across epochs too.
"""

from __future__ import annotations

import struct

from kvnode.base.invariant import invariant

VERSIONSTAMP_BYTES = 10
_INDEX_BITS = 48
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_FORMAT = struct.Struct(">QH")


def versionstamp(epoch: int, index: int, order: int) -> bytes:
    """The versionstamp of transaction `order` of the entry at `index` in `epoch`."""
    invariant(0 <= epoch < 1 << 16 and 0 <= index <= _INDEX_MASK, f"epoch {epoch} or index {index} out of range")
    return _FORMAT.pack(epoch << _INDEX_BITS | index, order)


def split(stamp: bytes) -> tuple[int, int, int]:
    """(epoch, index, order) of a versionstamp of 10 bytes."""
    high, order = _FORMAT.unpack(stamp)
    return high >> _INDEX_BITS, high & _INDEX_MASK, order
