"""The seam under everything that can be torn or lost: a disk, its files, and the lock of a directory.

Production code reaches the file system only through these protocols, so that the simulator can put a disk
below it that loses what was not synced, tears writes, fails syncs and fills up. They are as narrow as the
storage layer allows: offsets are explicit, nothing is buffered, and only what waits for the device is async.

What an implementation promises, and no more:

- `File.write` reaches the operating system, not the device: it survives the death of the process, and after
  a power loss any subset of its sectors may be there.
- `File.sync` makes all writes that returned before it was called durable, the file's size included.
- Names (a created, renamed or removed file) are durable once `Disk.sync_directory` of the folder returned.
- Every error is an OSError. After a failed `sync` nothing is known about the writes it covered, not even
  when a later `sync` succeeds.
"""

from __future__ import annotations

from typing import Protocol


class File(Protocol):
    """One open file. Offsets and sizes are in bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; shorter only at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`, extending the file if it ends before. Raises OSError (ENOSPC, EIO)."""

    def size(self) -> int:
        """The length of the file."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size`, or extend it with zeros that take no room yet."""

    async def allocate(self, size: int) -> None:
        """Fill the file with zeros from its end up to `size`, room reserved and durable: a later write in it
        changes no metadata. May take long; other files can be written and synced meanwhile."""

    async def sync(self) -> None:
        """fdatasync: return when all earlier writes are durable. Raises OSError; see the module's promise."""

    def close(self) -> None:
        """Release the file. Syncs nothing."""


class DirectoryLock(Protocol):
    """A held lock; it also ends with the process that holds it."""

    def release(self) -> None:
        """Let another process in."""


class Disk(Protocol):
    """A file system. Paths are absolute or relative to the working directory, with forward slashes."""

    def open(self, path: str, create: bool = False) -> File:
        """Open for reading and writing. Raises FileNotFoundError unless `create`, which makes an empty file."""

    def exists(self, path: str) -> bool:
        """Whether a file or a directory has that name."""

    def list_directory(self, path: str) -> list[str]:
        """The names in a directory, sorted. Raises FileNotFoundError."""

    def make_directory(self, path: str) -> None:
        """Make a directory and its parents; no error if it exists."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name in one step, replacing what had it."""

    def remove(self, path: str) -> None:
        """Remove a file. Raises FileNotFoundError."""

    async def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""

    def lock(self, path: str) -> DirectoryLock:
        """Take the exclusive lock on the file `path`, creating it. Raises BlockingIOError if it is held."""
