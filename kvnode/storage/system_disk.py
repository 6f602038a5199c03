"""The machine's disk: files by pread, pwrite and fdatasync, and the choice of where a sync waits.

A sync inline stops the loop until the device answers; a sync on a thread lets the loop work meanwhile and pays
a hop (storage/sync_policy.py chooses and says by which figures). Zero-filling a new segment and syncing a
directory happen on a thread of their own, so that no append waits behind them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable

from kvnode.storage.sync_policy import SyncPolicy
from kvnode.storage.worker_thread import WorkerThread

_ZERO_CHUNK = bytes(1_048_576)


class SystemDisk:
    """Implements kvnode.storage.disk.Disk.

    Args:
        policy: where syncs wait; adaptive by default. It also holds the figures for metrics.
        observe_sync: called on the loop with the seconds of every file sync.
    """

    def __init__(
        self, policy: SyncPolicy | None = None, observe_sync: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self.policy = policy or SyncPolicy()
        self.observe_sync = observe_sync
        self._sync_thread = WorkerThread("log-sync")
        self._background_thread = WorkerThread("disk-background")

    def open(self, path: str, create: bool = False) -> SystemFile:
        """See Disk.open."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return SystemFile(self, os.open(path, flags, 0o600))

    def exists(self, path: str) -> bool:
        """See Disk.exists."""
        return os.path.exists(path)

    def list_directory(self, path: str) -> list[str]:
        """See Disk.list_directory."""
        return sorted(os.listdir(path))

    def make_directory(self, path: str) -> None:
        """See Disk.make_directory."""
        os.makedirs(path, mode=0o700, exist_ok=True)

    def rename(self, old: str, new: str) -> None:
        """See Disk.rename."""
        os.replace(old, new)

    def remove(self, path: str) -> None:
        """See Disk.remove."""
        os.remove(path)

    async def sync_directory(self, path: str) -> None:
        """See Disk.sync_directory."""
        await self._background_thread.run(lambda: _sync_directory(path))

    def lock(self, path: str) -> SystemLock:
        """See Disk.lock: flock, which ends with the process however it ends."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return SystemLock(descriptor)

    async def run_sync(self, sync: Callable[[], float]) -> None:
        """Run a sync, which says how long it took, where the policy says; for SystemFile."""
        seconds = sync() if self.policy.inline else await self._sync_thread.run(sync)
        self.policy.observe(seconds)
        self.observe_sync(seconds)

    async def fill_descriptor(self, descriptor: int, size: int) -> None:
        """Zero-fill up to `size` on the background thread; for SystemFile."""
        await self._background_thread.run(lambda: _fill(descriptor, size))


class SystemFile:
    """Implements kvnode.storage.disk.File."""

    def __init__(self, disk: SystemDisk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._failed_sync: OSError | None = None

    def read(self, offset: int, size: int) -> bytes:
        """See File.read."""
        data = os.pread(self._descriptor, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        while data:
            offset += len(data)
            size -= len(data)
            data = os.pread(self._descriptor, size, offset)
            parts.append(data)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """See File.write."""
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):  # a short write: a signal, or the disk is nearly full
            more = os.pwrite(self._descriptor, data[written:], offset + written)
            if more == 0:
                raise OSError(errno.ENOSPC, "the disk took no more bytes")
            written += more

    def size(self) -> int:
        """See File.size."""
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        """See File.truncate."""
        os.ftruncate(self._descriptor, size)

    async def allocate(self, size: int) -> None:
        """See File.allocate."""
        await self._disk.fill_descriptor(self._descriptor, size)

    async def sync(self) -> None:
        """See File.sync. One that has failed fails all later ones.

        The kernel tells of a failure once, and whoever waited for it may have been cancelled.
        """
        await self._disk.run_sync(self._timed_sync)

    def _timed_sync(self) -> float:
        if self._failed_sync is not None:
            raise self._failed_sync
        begun = time.perf_counter()
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed_sync = error
            raise
        return time.perf_counter() - begun

    def close(self) -> None:
        """See File.close. Closing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SystemLock:
    """Implements kvnode.storage.disk.DirectoryLock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """See DirectoryLock.release. Releasing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(descriptor: int, size: int) -> None:
    """Reserve the room first, so that a full disk is found before anything is written; then the zeros, synced
    chunk by chunk, so that an append's sync beside it waits behind one chunk and not behind all of them."""
    have = os.fstat(descriptor).st_size
    if size <= have:
        return
    os.posix_fallocate(descriptor, have, size - have)
    try:
        while have < size:
            have += os.pwrite(descriptor, _ZERO_CHUNK[: size - have], have)
            os.fdatasync(descriptor)
    except OSError:
        os.ftruncate(descriptor, 0)  # what was reserved and not filled must not pass for filled
        raise
    os.fsync(descriptor)
