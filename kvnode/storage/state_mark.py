"""A small mark beside the state: the newest applied index that is known to be durable.

A flipped bit in a write-ahead log makes SQLite drop every frame behind it without a word: the state opens as an
older one, consistent in itself. The mark tells that apart from an ordinary crash, which never loses what was
durable. It is written in place after each durable point and not fsynced: an older mark only sees less.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from struct import Struct

_MARK = Struct("<QI")


class DurableMark:
    """The mark's file. Raises OSError wherever the operating system does."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> int:
        """The marked index; 0 if there is none, or none that can be believed."""
        data = os.pread(self._descriptor, _MARK.size, 0)
        if len(data) != _MARK.size:
            return 0
        index, checksum = _MARK.unpack(data)
        return int(index) if checksum == zlib.crc32(data[:8]) else 0

    def write(self, index: int) -> None:
        """Mark `index` as durable."""
        data = index.to_bytes(8, "little")
        os.pwrite(self._descriptor, data + zlib.crc32(data).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
