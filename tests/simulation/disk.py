"""A disk in memory that loses what a real one may lose. Seeded: the same seed, the same losses.

Theory of operation. A file has two contents: what a reader sees (the page cache) and what is on the device.
A write changes the first and notes the sectors it touched; a sync copies to the device the sectors that were
touched before it began. The names of a directory are kept in the same way, a list of pending changes beside
the durable ones. `crash` gives the disk that a power loss leaves: any subset of the sectors not synced, any
subset of the pending names, the file's old or new length. `kill` gives the disk that the death of the process
leaves: everything written, synced or not. A failed sync does what Linux does: the sectors are lost for the
device but stay visible, and count as clean from then on.

Faults are methods and attributes: fail_next_sync, capacity_bytes, sync_seconds, flip_bit, stop_at (the disk
dies at the n-th operation from then on, for tests that kill at each step).
"""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Awaitable, Callable
from random import Random

SECTOR_BYTES = 512


class DiskStopped(BaseException):
    """The process that used this disk is dead, or dies at this operation."""


class _Inode:
    """A file's contents: `seen` by readers, `kept` by the device, and the sectors in which they differ."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.kept = bytearray()
        self.dirty: set[int] = set()

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if len(self.seen) < end:
            self.seen.extend(bytes(end - len(self.seen)))
        self.seen[offset:end] = data
        self.dirty.update(range(offset // SECTOR_BYTES, (end + SECTOR_BYTES - 1) // SECTOR_BYTES))

    def resize(self, size: int) -> None:
        if size < len(self.seen):
            del self.seen[size:]
        else:
            self.seen.extend(bytes(size - len(self.seen)))

    def sector(self, sector: int) -> bytes:
        return bytes(self.seen[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])

    def keep(self, sectors: dict[int, bytes], size: int) -> None:
        """The device takes this length and these sectors."""
        del self.kept[size:]
        self.kept.extend(bytes(size - len(self.kept)))
        for sector, content in sectors.items():
            start = sector * SECTOR_BYTES
            content = content[: max(0, size - start)]
            self.kept[start : start + len(content)] = content

    def after_crash(self, random: Random) -> _Inode:
        survivor = _Inode()
        survivor.kept = bytearray(self.kept)
        if self.dirty or len(self.seen) != len(self.kept):
            chance = random.choice((0.0, 0.5, 0.9, 1.0))
            sectors = {sector: self.sector(sector) for sector in sorted(self.dirty) if random.random() < chance}
            survivor.keep(sectors, random.choice((len(self.seen), len(self.kept))))
        survivor.seen = bytearray(survivor.kept)
        return survivor

    def after_kill(self) -> _Inode:
        survivor = _Inode()
        survivor.seen, survivor.kept, survivor.dirty = bytearray(self.seen), bytearray(self.kept), set(self.dirty)
        return survivor


_Names = dict[str, _Inode]


class SimulatedDisk:
    """Implements kvnode.storage.disk.Disk.

    Args:
        random: decides what a crash leaves and how long a sync takes.
        sleep: awaited for the time a sync takes, in seconds; None: syncs take none and do not yield.
        sync_seconds: the time of the next sync.
        capacity_bytes: the sum of all file lengths may not exceed this; None: no bound.
    """

    def __init__(
        self,
        random: Random,
        *,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        sync_seconds: Callable[[Random], float] = lambda random: random.uniform(0.0001, 0.001),
        capacity_bytes: int | None = None,
    ) -> None:
        self.random = random
        self.sleep = sleep
        self.sync_seconds = sync_seconds
        self.capacity_bytes = capacity_bytes
        self.operations_count = 0
        self.syncs_count = 0
        self.stop_at: int | None = None
        self.stopped = False
        self._names: _Names = {}
        self._kept_names: _Names = {}
        self._pending: list[tuple[str, _Inode | None]] = []  # name changes in order; None = removed
        self._directories: set[str] = {"/", ".", ""}
        self._locked: set[str] = set()
        self._failing_syncs: list[tuple[str, int]] = []

    # Disk.

    def open(self, path: str, create: bool = False) -> SimulatedFile:
        self.step()
        inode = self._names.get(path)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            if posixpath.dirname(path) not in self._directories:
                raise FileNotFoundError(errno.ENOENT, "no such directory", posixpath.dirname(path))
            inode = _Inode()
            self._set(path, inode)
        return SimulatedFile(self, path, inode)

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._directories

    def list_directory(self, path: str) -> list[str]:
        self.step()
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        prefix = path.rstrip("/") + "/"
        paths = [*self._names, *self._directories]
        return sorted({one[len(prefix) :].split("/")[0] for one in paths if one.startswith(prefix) and one != prefix})

    def make_directory(self, path: str) -> None:
        """Directories are durable at once: their loss would only look like a fresh disk."""
        self.step()
        while path not in self._directories:
            self._directories.add(path)
            path = posixpath.dirname(path)

    def rename(self, old: str, new: str) -> None:
        self.step()
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", old)
        inode = self._names[old]
        self._set(new, inode)
        self._set(old, None)

    def remove(self, path: str) -> None:
        self.step()
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._set(path, None)

    async def sync_directory(self, path: str) -> None:
        self.step()
        begun = [change for change in self._pending if posixpath.dirname(change[0]) == path]
        await self.take_time()
        for change in begun:
            if change in self._pending:  # another sync, begun later, may have been faster
                self._pending.remove(change)
                _change(self._kept_names, *change)
        self.step()

    def lock(self, path: str) -> SimulatedLock:
        self.step()
        if path in self._locked:
            raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", path)
        self._locked.add(path)
        return SimulatedLock(self._locked, path)

    # What befalls it.

    def crash(self) -> SimulatedDisk:
        """The disk after a power loss now; this one is dead."""
        survivor = self._successor()
        survivor._kept_names = dict(self._kept_names)
        chance = self.random.choice((0.0, 0.5, 1.0))
        for path, inode in self._pending:
            if self.random.random() < chance:
                _change(survivor._kept_names, path, inode)
        inodes = {id(inode): inode.after_crash(self.random) for inode in survivor._kept_names.values()}
        survivor._kept_names = {path: inodes[id(inode)] for path, inode in survivor._kept_names.items()}
        survivor._names = dict(survivor._kept_names)
        return survivor

    def kill(self) -> SimulatedDisk:
        """The disk after the death of the process now: nothing is lost; this object is dead."""
        survivor = self._successor()
        every = [*self._names.values(), *self._kept_names.values(), *(inode for _, inode in self._pending if inode)]
        inodes = {id(inode): inode.after_kill() for inode in every}
        survivor._names = {path: inodes[id(inode)] for path, inode in self._names.items()}
        survivor._kept_names = {path: inodes[id(inode)] for path, inode in self._kept_names.items()}
        survivor._pending = [(path, inodes[id(inode)] if inode else None) for path, inode in self._pending]
        return survivor

    def fail_next_sync(self, path_part: str = "", error_number: int = errno.EIO) -> None:
        """The next sync of a file whose path holds `path_part` fails, and its unsynced sectors are lost."""
        self._failing_syncs.append((path_part, error_number))

    def flip_bit(self, path: str, offset: int, bit: int = 0) -> None:
        """Damage a file, on the device and for readers."""
        inode = self._names[path]
        for content in (inode.seen, inode.kept):
            if offset < len(content):
                content[offset] ^= 1 << bit

    def contents(self, path: str) -> bytes:
        """What a reader sees."""
        return bytes(self._names[path].seen)

    @property
    def used_bytes(self) -> int:
        """The sum of all file lengths."""
        return sum(len(inode.seen) for inode in self._names.values())

    # For its files.

    def step(self) -> None:
        """Count an operation; raises DiskStopped when the process is or becomes dead."""
        self.operations_count += 1
        if self.stop_at is not None and self.operations_count >= self.stop_at:
            self.stopped = True
        if self.stopped:
            raise DiskStopped("the simulated process is dead")

    async def take_time(self) -> None:
        self.syncs_count += 1
        if self.sleep is not None:
            await self.sleep(self.sync_seconds(self.random))

    def sync_error(self, path: str) -> OSError | None:
        for at, (part, number) in enumerate(self._failing_syncs):
            if part in path:
                del self._failing_syncs[at]
                return OSError(number, "simulated sync failure", path)
        return None

    def check_room(self, growth: int, path: str) -> None:
        if growth > 0 and self.capacity_bytes is not None and self.used_bytes + growth > self.capacity_bytes:
            raise OSError(errno.ENOSPC, "no space left on the simulated disk", path)

    def _set(self, path: str, inode: _Inode | None) -> None:
        _change(self._names, path, inode)
        self._pending.append((path, inode))

    def _successor(self) -> SimulatedDisk:
        self.stopped = True
        survivor = SimulatedDisk(
            self.random, sleep=self.sleep, sync_seconds=self.sync_seconds, capacity_bytes=self.capacity_bytes
        )
        survivor._directories = set(self._directories)
        return survivor


class SimulatedFile:
    """Implements kvnode.storage.disk.File."""

    def __init__(self, disk: SimulatedDisk, path: str, inode: _Inode) -> None:
        self._disk = disk
        self._path = path
        self._inode: _Inode | None = inode

    def _open(self) -> _Inode:
        self._disk.step()
        if self._inode is None:
            raise OSError(errno.EBADF, "the file is closed", self._path)
        return self._inode

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._open().seen[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        inode = self._open()
        self._disk.check_room(offset + len(data) - len(inode.seen), self._path)
        inode.write(offset, data)

    def size(self) -> int:
        return len(self._open().seen)

    def truncate(self, size: int) -> None:
        self._open().resize(size)

    async def allocate(self, size: int) -> None:
        inode = self._open()
        have = len(inode.seen)
        if size > have:
            self._disk.check_room(size - have, self._path)
            inode.write(have, bytes(size - have))
        await self.sync()

    async def sync(self) -> None:
        inode = self._open()
        size, sectors = len(inode.seen), {sector: inode.sector(sector) for sector in inode.dirty}
        await self._disk.take_time()
        self._disk.step()
        error = self._disk.sync_error(self._path)
        if error is None:
            inode.keep(sectors, size)
        inode.dirty.difference_update(sector for sector in sectors if inode.sector(sector) == sectors[sector])
        if error is not None:
            raise error  # what it should have written is lost for the device, and clean for the kernel

    def close(self) -> None:
        self._inode = None


class SimulatedLock:
    """Implements kvnode.storage.disk.DirectoryLock."""

    def __init__(self, locked: set[str], path: str) -> None:
        self._locked = locked
        self._path = path

    def release(self) -> None:
        self._locked.discard(self._path)


def _change(names: _Names, path: str, inode: _Inode | None) -> None:
    if inode is None:
        names.pop(path, None)
    else:
        names[path] = inode
