"""Checkpoints in three parts, of which only the shortest keeps apply waiting.

Theory of operation. SQLite's own checkpoint is: fsync the write-ahead log, copy its pages into the database, fsync
the database, allow the log to be reused. Before 3.51.3 (3.50.7, 3.44.6) SQLite can corrupt the database when a
commit reuses the log while a checkpoint runs (https://www.sqlite.org/wal.html, "WAL-reset bug"), so no checkpoint
may overlap a commit. For 4 MiB of log in a state of 1,000,000 rows the three steps take 3, 5.5 and 15 ms here. The
fsyncs need no SQLite: they are done on descriptors of our own, on a thread, while apply goes on:

    prepare   beside apply:  fdatasync of the log, all that is applied until now
    copy      apply waits:   pin the log; fdatasync of what little came since; copy the pages, SQLite doing no fsync
    settle    beside apply:  fsync of the database; unpin the log

The *pin* is a read transaction that began before the copy. As long as it is open SQLite cannot reuse the log, so that
until the database has been fsynced every copied page still stands in the log too: a power failure between copy and
settle loses nothing (recovery plays the whole log again), as with SQLite's own order of fsyncs.

What apply writes during settle is not in the database yet, so under steady load the log is never reusable after
a settle and grows. When it exceeds STATE_WAL_BYTES, one copy is settled while apply waits; as it comes straight
after a settle it has little to do.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from kvnode.storage.state_connections import Worker, connect_copier, connect_reader
from kvnode.storage.state_wal import WalFile


class Checkpointer:
    """The checkpoints of one open state file. Use `open`; then `close` is due. Raises sqlite3.Error and OSError.

    Args:
        worker: on a connection of `connect_copier`.
        pin: a read-only connection of its own.
        wal: the write-ahead log.
        database_descriptor: of the database, for its fsync. It is the caller's, to be closed only after every SQLite
            connection to the file: closing it earlier drops their locks (POSIX advisory locks are the process's).
    """

    def __init__(self, worker: Worker, pin: sqlite3.Connection, wal: WalFile, database_descriptor: int) -> None:
        self._worker = worker
        self._pin = pin
        self._wal = wal
        self._database_descriptor = database_descriptor
        self._has_failed = False

    @classmethod
    async def open(cls, path: Path, wal: WalFile, database_descriptor: int) -> Checkpointer:
        """Connect to the file at `path`, which a writer has open."""
        worker = await Worker.open(lambda: connect_copier(path))
        try:
            pin = await worker.run(lambda _: connect_reader(path, may_stay_open=True))
        except BaseException:
            await worker.close()
            raise
        return cls(worker, pin, wal, database_descriptor)

    async def close(self) -> None:
        """Close after what is running. A copy that was not settled is played from the log at the next start.

        After a failed fsync the pin stays open as long as this object lives. The last connection that is closed has
        SQLite copy what is left, fsync the database once more, which now succeeds, and delete the log; and nobody
        knows what of the database is on the disk. A read-only connection does not.
        """
        try:
            if not self._has_failed:
                await self._worker.run(lambda _: self._pin.close())
        finally:
            await self._worker.close()

    async def prepare(self) -> None:
        """Make durable what the log holds now."""
        await self._worker.run(lambda _: self._wal.sync())

    async def copy(self) -> bool:
        """Copy the log into the database. No commit may run meanwhile; `settle` is due after it.

        Returns:
            Whether all of the log was copied: not while a reader needs the database as it was.
        """
        return await self._worker.run(self._copy)

    async def settle(self) -> None:
        """Make the copied pages durable, then let the log be reused."""
        await self._worker.run(self._settle)

    def _copy(self, copier: sqlite3.Connection) -> bool:
        if not self._pin.in_transaction:
            self._pin.execute("BEGIN")
        self._pin.execute("SELECT format FROM meta").fetchone()  # a read transaction begins with its first read
        self._wal.sync()
        _, frames_count, copied_count = copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._wal.note_checkpoint(copied_count)
        return bool(frames_count == copied_count)

    def _settle(self, _: sqlite3.Connection) -> None:
        try:
            os.fsync(self._database_descriptor)
        except OSError:
            self._has_failed = True
            raise
        if self._pin.in_transaction:
            self._pin.execute("ROLLBACK")
