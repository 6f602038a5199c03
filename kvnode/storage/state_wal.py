"""The state's write-ahead log file, looked at beside SQLite: how much it holds, and making it durable.

Theory of operation. The state's transactions are committed with synchronous=NORMAL: their frames are written, not
fsynced. A commit with synchronous=FULL differs from that by one fsync of the same file after the last frame. So
fdatasync on a descriptor of our own makes everything committed before it as durable as a FULL commit would, and it
needs neither SQLite nor its locks: it runs on a thread while the loop goes on applying. What has left the file
was carried over by a checkpoint, which fsyncs the log before it copies, and the database before it lets the log
be reused. (SQLite locks the database and the -shm file, never the -wal, so closing this descriptor drops no lock.)

The file is never truncated while it is in use; after a full checkpoint SQLite writes over it from its start, under
new salts in the header. A frame belongs to the present round if its salts are the header's; frames are written in
order; so one look at the n-th frame, 1 us, tells whether the log holds n frames (SQLite tells only in a checkpoint).
Format: https://www.sqlite.org/fileformat2.html, section 4.1.
"""

from __future__ import annotations

import os
from pathlib import Path

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_SALTS_BYTES = 8
_HEADER_SALTS_AT = 16
_FRAME_SALTS_AT = 8


class WalFile:
    """An open -wal file. Raises OSError wherever the operating system does.

    Args:
        path: of the -wal file; SQLite has created it.
        page_bytes: the database's page size.
    """

    def __init__(self, path: Path, page_bytes: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._frame_bytes = _FRAME_HEADER_BYTES + page_bytes
        self._failed_sync: OSError | None = None
        self._checkpointed = (b"", 0)  # the salts and the number of frames at the last checkpoint

    def _salts(self) -> bytes:
        return os.pread(self._descriptor, _SALTS_BYTES, _HEADER_SALTS_AT)

    def _has_frame(self, number: int, salts: bytes) -> bool:
        at = _HEADER_BYTES + (number - 1) * self._frame_bytes + _FRAME_SALTS_AT
        return os.pread(self._descriptor, _SALTS_BYTES, at) == salts

    def grown_by(self, size_bytes: int) -> bool:
        """Whether at least `size_bytes` of frames came after those that the last checkpoint carried over."""
        salts = self._salts()
        old_salts, old_frames = self._checkpointed
        carried = old_frames if salts == old_salts else 0
        return len(salts) == _SALTS_BYTES and self._has_frame(carried + size_bytes // self._frame_bytes, salts)

    def holds(self, size_bytes: int) -> bool:
        """Whether at least `size_bytes` of frames are in the file's present round."""
        salts = self._salts()
        return len(salts) == _SALTS_BYTES and self._has_frame(size_bytes // self._frame_bytes, salts)

    def note_checkpoint(self, frames_count: int) -> None:
        """A checkpoint has carried over the first `frames_count` frames."""
        self._checkpointed = (self._salts(), frames_count)

    def sync(self) -> None:
        """Make every frame written so far durable. Blocks. One that has failed fails all later ones."""
        if self._failed_sync is not None:
            raise self._failed_sync
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed_sync = error
            raise

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
