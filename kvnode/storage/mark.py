"""The mark: a small file that names how far the log has been fsynced.

Without it a damaged last batch looks like one that was torn by a crash. It is written after each fsync of
the log and needs no fsync of its own: after a kill it is exact, after a power loss it may be some seconds
old, which only makes it claim less; then the records themselves still tell of all but the last batch.

Two slots, a sector each, are written in turn, so that damage to one leaves the other, one fsync older.
`first_sequence`, the oldest segment that must exist, is different: it is fsynced in both slots before a
segment is removed, so that a segment that is missing can be told from one that was dropped.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from kvnode.storage.disk import Disk, File

MARK_NAME = "mark"
_SLOT_OFFSETS = (0, 4_096)  # blocks of their own, so that one bad sector takes one slot
_FILE_BYTES = 8_192
_SLOT = struct.Struct("<4sQQQQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"KLMK"


class Mark(NamedTuple):
    """What the mark says. `position` is the log position before which everything is durable."""

    turn: int
    first_sequence: int
    position: int
    last_index: int


class MarkFile:
    """The open mark. All methods raise OSError as the disk does."""

    def __init__(self, file: File, mark: Mark) -> None:
        self._file = file
        self._mark = mark

    @property
    def mark(self) -> Mark:
        """What was last written."""
        return self._mark

    @classmethod
    async def create(cls, disk: Disk, path: str, first_sequence: int) -> MarkFile:
        """Make the file durably; the caller syncs the directory."""
        file = disk.open(path, create=True)
        await file.allocate(_FILE_BYTES)
        mark_file = cls(file, Mark(0, first_sequence, 0, 0))
        await mark_file.require(first_sequence)
        return mark_file

    @classmethod
    def open(cls, disk: Disk, path: str) -> MarkFile | None:
        """The mark, or None when the file is missing or neither slot proves itself."""
        try:
            file = disk.open(path)
        except FileNotFoundError:
            return None
        slots = [mark for offset in _SLOT_OFFSETS if (mark := _decode(file.read(offset, _SLOT.size + 4))) is not None]
        if not slots:
            file.close()
            return None
        return cls(file, max(slots))

    def advance(self, position: int, last_index: int) -> None:
        """Say that the log is durable up to `position`, where its last entry has `last_index`."""
        turn, first_sequence, _, _ = self._mark
        self._write(Mark(turn + 1, first_sequence, position, last_index))

    async def require(self, first_sequence: int) -> None:
        """Say durably, in both slots, that the segments from `first_sequence` on must exist."""
        for _ in _SLOT_OFFSETS:
            self._write(self._mark._replace(turn=self._mark.turn + 1, first_sequence=first_sequence))
            await self._file.sync()

    def _write(self, mark: Mark) -> None:
        slot = _SLOT.pack(_MAGIC, *mark)
        self._file.write(_SLOT_OFFSETS[mark.turn & 1], slot + _CHECKSUM.pack(crc32(slot)))
        self._mark = mark

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _decode(data: bytes) -> Mark | None:
    if len(data) != _SLOT.size + 4 or _CHECKSUM.unpack_from(data, _SLOT.size)[0] != crc32(data[: _SLOT.size]):
        return None
    magic, *fields = _SLOT.unpack_from(data)
    return Mark(*fields) if magic == _MAGIC else None
