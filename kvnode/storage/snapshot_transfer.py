"""Moving a snapshot between nodes in chunks, so that a broken transfer goes on where it stopped.

The sender reads chunks by offset from one complete file; the receiver appends them to `<snapshot id>.part`. The id
names the very bytes, so that what an earlier attempt, or this process before a restart, has left under the same id
is the beginning of the same file. Nothing received is believed until the whole has been fsynced and hashed.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from kvnode.base.errors import InvalidRequest, StorageFailed
from kvnode.base.limits import SNAPSHOT_CHUNK_BYTES
from kvnode.storage.durable_files import sync_directory
from kvnode.storage.snapshot import SnapshotFile, hash_file
from kvnode.storage.state_errors import storage_errors

_ID = re.compile(r"[0-9A-Za-z-]{1,100}")


class SnapshotReader:
    """Chunks of a snapshot file. It reads on even when a newer snapshot has taken the file's name away.

    Raises:
        StorageFailed: the file is gone or cannot be read; ask for the newest snapshot.
    """

    def __init__(self, snapshot: SnapshotFile) -> None:
        self.snapshot = snapshot
        with storage_errors(snapshot.path):
            self._descriptor = os.open(snapshot.path, os.O_RDONLY | os.O_CLOEXEC)

    async def read(self, offset: int, size_bytes: int = SNAPSHOT_CHUNK_BYTES) -> bytes:
        """The bytes at `offset`; fewer than asked for at the end of the file, none behind it."""
        with storage_errors(self.snapshot.path):
            return await asyncio.to_thread(os.pread, self._descriptor, size_bytes, offset)

    def close(self) -> None:
        """Close the file; again is no error, because both ends of a transfer see to it. Nothing may be reading."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class SnapshotReceiver:
    """One incoming snapshot. Other unfinished ones in the directory are removed: one transfer at a time.

    Args:
        directory: State.incoming_directory; made if it is missing.
        snapshot_id: the sender's name for the bytes.
        size_bytes: of the whole file.
        file_digest: the whole file's digest, SnapshotFile.file_digest.

    Raises:
        InvalidRequest: the id cannot be a file's name.
        StorageFailed: the disk is full or failed.
    """

    def __init__(self, directory: Path, *, snapshot_id: str, size_bytes: int, file_digest: bytes) -> None:
        if not _ID.fullmatch(snapshot_id):
            raise InvalidRequest("SNAPSHOT_ID_INVALID", f"the snapshot id {snapshot_id!r} cannot be a file's name")
        self.path = directory / f"{snapshot_id}.part"
        self._size_bytes = size_bytes
        self._file_digest = file_digest
        with storage_errors(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            for other in directory.iterdir():
                if other != self.path:
                    other.unlink()
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.held_bytes = os.fstat(self._descriptor).st_size
            if self.held_bytes > size_bytes:
                os.ftruncate(self._descriptor, 0)
                self.held_bytes = 0

    @property
    def complete(self) -> bool:
        """Whether every byte is here; `finish` says whether they are the right ones."""
        return self.held_bytes == self._size_bytes

    async def write(self, offset: int, data: bytes) -> None:
        """Append a chunk.

        Raises:
            InvalidRequest: it does not begin at `held_bytes` or goes beyond the end; nothing was written.
            StorageFailed: the disk is full or failed.
        """
        if offset != self.held_bytes or offset + len(data) > self._size_bytes:
            raise InvalidRequest(
                "SNAPSHOT_OFFSET_INVALID",
                f"a chunk of {len(data)} bytes at {offset} does not follow the {self.held_bytes} bytes held "
                f"of {self._size_bytes}; send from {self.held_bytes}",
            )
        with storage_errors(self.path):
            self.held_bytes += await asyncio.to_thread(_write_all, os.dup(self._descriptor), data, offset)

    async def finish(self) -> Path:
        """Fsync and verify the whole file, and close it.

        Returns:
            The path to hand to State.install_snapshot.

        Raises:
            StorageFailed: with code SNAPSHOT_DAMAGED when the bytes are not those announced; they are deleted.
        """
        with storage_errors(self.path):
            await asyncio.to_thread(os.fsync, self._descriptor)
            self.close()
            sync_directory(self.path.parent)
            if await asyncio.to_thread(hash_file, self.path) == self._file_digest:
                return self.path
            os.unlink(self.path)
        raise StorageFailed(
            f"the snapshot {self.path.stem} arrived damaged; it was deleted and must be sent again from the start",
            code="SNAPSHOT_DAMAGED",
        )

    def close(self) -> None:
        """Stop here; what is held stays for the next attempt."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _write_all(own_descriptor: int, data: bytes, offset: int) -> int:
    """Write, and close the descriptor.

    It is its own because nobody waits for this when a broken stream cancels the write: by then the receiver may have
    closed its descriptor, and another file, the state's for one, may have been given the same number.
    """
    view, done = memoryview(data), 0
    try:
        while done < len(data):
            done += os.pwrite(own_descriptor, view[done:], offset + done)
    finally:
        os.close(own_descriptor)
    return done
