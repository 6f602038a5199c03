"""The state of a node: the rows as of the applied index, in SQLite.

Theory of operation. `apply` and point reads run on the loop's own thread, on one connection, because they are the hot
paths (a thread hop costs more than either; figures in state_tables.py and bench/state_apply.py). What takes long
runs on workers. Two duties keep the file healthy (state_duties.py): checkpoints, and
durable points. `durable_applied` is what Raft's log may be compacted up to; what is applied beyond it may be lost by a
power failure and is applied again from the log. `apply` must not be called while `maintain` or `install_snapshot` is
under way; a lock and an invariant see to it. A scrub compares rows and digest in the background.

States: open -> (failed | damaged) -> closed. After a failed write nothing more is applied: the process is expected to
end with the error. Damage is found by a scrub or at open; whoever owns the node decides what follows.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from kvnode.base.clock import Clock
from kvnode.base.errors import StorageFailed, Unavailable
from kvnode.base.invariant import invariant
from kvnode.codec.row import Row
from kvnode.storage.bounded_scan import scan_within
from kvnode.storage.durable_files import sync_directory, sync_file
from kvnode.storage.generations import Generations, create_empty_state
from kvnode.storage.snapshot import SnapshotFile, create_snapshot, remove_snapshots
from kvnode.storage.state_connections import close_all
from kvnode.storage.state_count import RangeCount, count_rows
from kvnode.storage.state_duties import Duties, run_to_end
from kvnode.storage.state_errors import damaged, storage_error, storage_errors
from kvnode.storage.state_file import StateFile
from kvnode.storage.state_scrub import Scrub, scrub_file, scrub_page
from kvnode.storage.state_tables import StateMeta, StateTables

__all__ = ["State", "StateMeta", "StateTables"]

Result = TypeVar("Result")

_SNAPSHOTS = "snapshots"
_INCOMING = "incoming"


class State:
    """The applied state in a directory. Use `open`; then `close` is due, in `finally`.

    Everything is called on one event loop; the methods without `async` return at once.
    """

    def __init__(self, generations: Generations, clock: Clock, lock_descriptor: int) -> None:
        self._generations = generations
        self._clock = clock
        self._lock_descriptor = lock_descriptor
        self._exclusive = asyncio.Lock()  # no apply while it is held
        self._copying = asyncio.Lock()  # one snapshot or scrub at a time; held while the file must not be exchanged
        self._failed: str | None = None
        self._closing = False
        self._snapshot: SnapshotFile | None = None
        self.damage: str | None = None  # what a scrub has found

    @classmethod
    async def open(cls, directory: Path, *, clock: Clock) -> State:
        """Open the state in `directory`, or make an empty one, applied index 0.

        Args:
            directory: of the state alone; made if it is missing.
            clock: for the interval of durable points and the bound of read transactions.

        Raises:
            StateDamaged: the state cannot be read, or it lacks what had been durable.
            StorageFailed: the disk is full or failed, or another process has this state open.
        """
        with storage_errors(directory):
            generations = Generations(directory)
            lock_descriptor = _lock(directory)
        state = cls(generations, clock, lock_descriptor)
        try:
            await state._open()
        except BaseException:
            os.close(lock_descriptor)
            raise
        return state

    async def _open(self) -> None:
        directory = self._generations.directory
        with storage_errors(directory):
            number = self._generations.current()
            self._generations.remove_others(number)
            if number == 0:
                fresh = directory / "empty.db"
                create_empty_state(fresh)
                self._generations.adopt(fresh, 1)
                self._generations.switch(1)
                number = 1
            remove_snapshots(directory / _SNAPSHOTS)
        self._use(await StateFile.open(self._generations, number, self._clock))

    def _use(self, file: StateFile) -> None:
        self._file = file
        self._duties = Duties(file, self._clock, self._exclusive)

    async def close(self) -> None:
        """Stop a copy that is under way, wait for what runs, close every connection."""
        self._closing = True
        async with self._copying, self._exclusive:
            try:
                await close_all([self._commit_last, self._duties.close, self._file.close])
            finally:
                if self._lock_descriptor >= 0:
                    os.close(self._lock_descriptor)
                    self._lock_descriptor = -1

    async def _commit_last(self) -> None:
        if self._failed is None:
            with storage_errors(self._file.path):
                self._file.commit()

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the node is stopping", code="STOPPING", phase="storage")

    # What machine and node read.

    @property
    def meta(self) -> StateMeta:
        """The meta row at the applied index."""
        return self._file.tables.meta

    def get(self, key: bytes) -> Row | None:
        """The row of that key, expired or not. This and the other reads raise StorageFailed if SQLite fails."""
        try:  # storage_errors would cost a fifth of the read
            return self._file.tables.get(key)
        except sqlite3.Error as error:
            raise storage_error(error, self._file.path) from error

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        """At most `limit` rows with start <= key < end in key order, or from the end; expired ones included."""
        with storage_errors(self._file.path):
            return self._file.tables.scan(start, end, limit, reverse=reverse)

    def scan_within(
        self, start: bytes, end: bytes, limit: int, *, max_bytes: int, reverse: bool = False
    ) -> list[Row] | None:
        """As `scan`; None, found out within a few rows, if the values have more than `max_bytes`."""
        with storage_errors(self._file.path):
            return scan_within(self._file.tables, start, end, limit, max_bytes=max_bytes, reverse=reverse)

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """At most `limit` keys with start <= key < end, in order."""
        with storage_errors(self._file.path):
            return self._file.tables.scan_keys(start, end, limit)

    def due(self, now_ms: int, limit: int) -> list[tuple[bytes, int]]:
        """At most `limit` (key, expire_at_ms) with expire_at_ms <= now_ms, ordered by time, then key."""
        with storage_errors(self._file.path):
            return self._file.tables.due(now_ms, limit)

    def next_expiry(self) -> int | None:
        """The earliest expire_at_ms of any row, or None when nothing expires."""
        with storage_errors(self._file.path):
            return self._file.tables.next_expiry()

    def reading(self) -> AbstractContextManager[None]:
        """One read transaction around many reads, which makes each cheaper; no await and no apply inside."""
        return self._reading()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with storage_errors(self._file.path), self._file.tables.reading():
            yield

    async def read_off_loop(self, read: Callable[[StateTables], Result]) -> Result:
        """Run `read(tables)` on a reader's thread, in one read transaction: one real state, as `tables.meta` says.

        Raises:
            Unavailable: code READ_TOO_LONG, when it takes longer than MAX_READ_TRANSACTION_MS.
            StorageFailed: the file cannot be read.
        """
        self.commit()
        file = self._file
        with storage_errors(file.path):
            return await file.readers.read(read)

    async def count(self, start: bytes, end: bytes, log_time_ms: int) -> int:
        """How many rows with start <= key < end have not expired at `log_time_ms`; off the loop.

        The count is of one state unless it takes longer than half of MAX_READ_TRANSACTION_MS (millions of rows);
        then it goes on in the state of that moment.

        Raises:
            StorageFailed: the file cannot be read.
        """
        return (await count_rows(self.read_off_loop, self._clock, start, end, log_time_ms)).count

    async def count_with_meta(self, start: bytes, end: bytes) -> RangeCount:
        """As `count`, at the log time of the state that is counted; with that state's meta row.

        Raises:
            StorageFailed: the file cannot be read.
        """
        return await count_rows(self.read_off_loop, self._clock, start, end, None)

    # Writing.

    def apply(
        self,
        writes: Mapping[bytes, Row | None],
        *,
        applied_index: int,
        applied_term: int,
        log_time_ms: int,
        epoch: int,
        membership: bytes | None = None,
    ) -> StateMeta:
        """Apply a run of entries, on the caller's thread; see StateTables.apply.

        Reads see it at once. It is committed with more that comes (state_commit.py), or before whatever needs the file.

        Raises:
            StorageFailed: the disk is full or failed; nothing was changed, and nothing more can be applied.
        """
        invariant(not self._exclusive.locked(), "apply while a checkpoint or an install is under way")
        if self._failed is not None:
            raise StorageFailed(self._failed)
        file, is_copied = self._file, self._copying.locked()  # a copy goes on only between two transactions
        with self._failing():
            meta = file.tables.apply(
                writes,
                applied_index=applied_index,
                applied_term=applied_term,
                log_time_ms=log_time_ms,
                epoch=epoch,
                membership=membership,
                commit=is_copied,
            )
            if not is_copied:
                file.applied(len(writes), sum([len(row.value) for row in writes.values() if row is not None]))
            return meta

    def commit(self) -> None:
        """Have the file show what is applied, also after a kill -9.

        Raises:
            StorageFailed: the disk is full or failed; nothing more can be applied.
        """
        if not self._file.tables.is_committed:
            with self._failing():
                self._file.commit()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            failure = storage_error(error, self._file.path)
            self._failed = f"nothing is applied after a failed write: {failure.message}"
            raise failure from error

    # Duties.

    @property
    def durable_applied(self) -> int:
        """The newest index whose effects survive a power failure; never above meta.applied_index."""
        return self._file.durable

    @property
    def maintenance_due(self) -> bool:
        """Whether `maintain` has something to do. Cheap (3 us): ask after every apply, and when idle."""
        return self._duties.due

    async def maintain(self) -> None:
        """Do what is due. Await it between two calls of `apply`, for as long as some milliseconds.

        Raises:
            StorageFailed: an fsync failed or the disk is full; the process must end.
        """
        await self._guarded(self._duties.perform())

    async def make_durable(self) -> None:
        """Raise `durable_applied` to what is applied now. `apply` may go on meanwhile.

        Raises:
            StorageFailed: the fsync failed; the process must end.
        """
        await self._guarded(self._file.make_durable())

    async def _guarded(self, work: Coroutine[object, object, Result]) -> Result:
        try:
            return await work
        except StorageFailed as failure:
            self._failed = self._failed or f"nothing is applied after a failed fsync: {failure.message}"
            raise

    async def scrub(self) -> bool:
        """Read every row from the file again and compare with the digest; off the loop, beside apply.

        Returns:
            True if all is well. Otherwise `damage` says what was found.
        """
        async with self._copying:
            self.commit()
            file, scrub = self._file, Scrub()
            file.tables.observer = scrub.observe
            try:
                await scrub.run(
                    lambda after: file.readers.read(lambda tables: scrub_page(tables, after)), self._check_open
                )
                wrong = scrub.verdict(file.tables.meta.digest)
            except sqlite3.DatabaseError as error:
                wrong = str(error)
            finally:
                file.tables.observer = None
        if wrong is not None:
            self.damage = damaged(file.path, wrong).message
        return wrong is None

    # Snapshots.

    @property
    def incoming_directory(self) -> Path:
        """Where a SnapshotReceiver is to put its file, so that an install is a rename."""
        return self._generations.directory / _INCOMING

    @property
    def snapshot(self) -> SnapshotFile | None:
        """The newest snapshot made since the state was opened."""
        return self._snapshot

    async def create_snapshot(self) -> SnapshotFile:
        """Copy the state as of one applied index, off the loop; the snapshot before it is deleted.

        Raises:
            StateDamaged: the copy does not match its digest.
            StorageFailed: the disk is full or failed; the state itself goes on.
        """
        async with self._copying:
            self.commit()
            directory = self._generations.directory / _SNAPSHOTS
            source = self._file.tables.connection
            newest = self._snapshot.path if self._snapshot else None
            self._snapshot = await create_snapshot(source, directory, newest=newest, check=self._check_open)
            return self._snapshot

    async def install_snapshot(self, path: Path, *, index: int, term: int) -> StateMeta:
        """Put the snapshot at `path` in the place of this state; the file is moved.

        The file's own digest is the receiver's to verify; here the rows are scrubbed, then the generations switched.
        A crash at any point leaves the old state or the new one.

        Args:
            path: the complete file, on the state's file system (in `incoming_directory`).
            index: of the last entry in it; above the applied index.
            term: that entry's term.

        Returns:
            The new meta row, durable.

        Raises:
            StateDamaged: the snapshot does not match its digest, or is not the one named; the old state stays.
            StorageFailed: the disk is full or failed.
        """
        async with self._copying:
            with storage_errors(path):
                meta = await scrub_file(path, self._check_open)
                if (meta.applied_index, meta.applied_term) != (index, term):
                    raise damaged(path, f"it holds index {meta.applied_index}, not {index} of term {term}")
                await asyncio.to_thread(sync_file, path)
            await run_to_end(self._alone(path))
            return self.meta

    async def _alone(self, path: Path) -> None:
        async with self._exclusive:
            await self._duties.close()
            await self._switch_to(path)

    async def _switch_to(self, path: Path) -> None:
        old, generations = self._file, self._generations
        number = old.number + 1
        with storage_errors(path):
            await asyncio.to_thread(generations.adopt, path, number)
        new = await StateFile.open(generations, number, self._clock)
        try:
            with storage_errors(generations.directory):
                await asyncio.to_thread(generations.switch, number)
        except BaseException:
            await new.close()
            raise
        self._use(new)
        self._snapshot = None
        await old.close()
        with storage_errors(generations.directory):
            remove_snapshots(generations.directory / _SNAPSHOTS)
            await asyncio.to_thread(generations.remove_others, number)


def _lock(directory: Path) -> int:
    """Take the state directory for this process; returns the descriptor that holds it."""
    descriptor = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StorageFailed(f"another process has the state in {directory} open; stop it first") from None
    sync_directory(directory)
    return descriptor
