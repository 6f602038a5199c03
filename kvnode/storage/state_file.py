"""One generation of the state, open: its connections, its write-ahead log and its mark, from open to close."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from kvnode.base.clock import Clock
from kvnode.storage.durable_files import sync_directory
from kvnode.storage.generations import Generations
from kvnode.storage.state_checkpoint import Checkpointer
from kvnode.storage.state_commit import CommitPace
from kvnode.storage.state_connections import (
    Readers,
    close_all,
    connect_writer,
)
from kvnode.storage.state_errors import damaged, storage_errors
from kvnode.storage.state_mark import DurableMark
from kvnode.storage.state_tables import StateTables
from kvnode.storage.state_wal import WalFile


class StateFile:
    """An open generation. Use `open`; then `close` is due.

    Attributes:
        tables: on the loop's own connection, the only one that writes.
        readers: read-only workers.
        durable: the newest applied index that is known to be durable.
    """

    def __init__(self, generations: Generations, number: int, clock: Clock) -> None:
        self.number = number
        self.path = generations.path(number)
        self._clock = clock
        self._pace = CommitPace(clock)
        self.durable = 0
        self.readers = Readers(self.path, clock)
        self._mark_path = generations.mark_path(number)
        self._closers: list[Callable[[], Awaitable[object]]] = []

    @classmethod
    async def open(cls, generations: Generations, number: int, clock: Clock) -> StateFile:
        """Open a generation: recover its write-ahead log, make that durable, start its workers.

        Raises:
            StateDamaged: it cannot be read, or it lacks what had been durable.
            StorageFailed: the disk failed, or another process holds it.
        """
        file = cls(generations, number, clock)
        try:
            with storage_errors(file.path):
                await file._open()
        except BaseException:
            await file.close()
            raise
        return file

    async def _open(self) -> None:
        self._database_descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._closers.append(_later(lambda: os.close(self._database_descriptor)))  # after all connections, see below
        writer = connect_writer(self.path)
        self._closers.append(lambda: asyncio.to_thread(writer.close))  # as the last connection it also checkpoints
        self.tables = StateTables(writer)
        self._mark = DurableMark(self._mark_path)
        self._closers.append(_later(self._mark.close))
        self._refuse_lost_tail()
        page_bytes = writer.execute("PRAGMA page_size").fetchone()[0]
        self._wal = WalFile(self.path.with_name(self.path.name + "-wal"), page_bytes)
        self._closers.append(_later(self._wal.close))
        sync_directory(self.path.parent)  # the -wal file's name, which SQLite would only sync with a FULL commit
        self._checkpointer = await Checkpointer.open(self.path, self._wal, self._database_descriptor)
        self._closers.append(self._checkpointer.close)
        self._closers.append(self.readers.close)
        await self.readers.open()
        await self._write_anew()

    def _refuse_lost_tail(self) -> None:
        applied, durable = self.tables.meta.applied_index, self._mark.read()
        if applied < durable:
            raise damaged(
                self.path, f"it is applied up to {applied}, but {durable} had been durable: its -wal lost a part"
            )

    async def close(self) -> None:
        """Close everything, the writer last. What is committed stays committed."""
        closers, self._closers = self._closers[::-1], []
        with storage_errors(self.path):
            await close_all(closers)

    def wal_grown_by(self, size_bytes: int) -> bool:
        """Whether the write-ahead log grew by at least that since the last checkpoint."""
        return self._wal.grown_by(size_bytes)

    def wal_holds(self, size_bytes: int) -> bool:
        """Whether the write-ahead log holds at least that, checkpointed or not."""
        return self._wal.holds(size_bytes)

    def applied(self, rows_count: int, size_bytes: int) -> None:
        """Rows were written, with values of that size: commit, if it is time. Raises sqlite3.Error."""
        if self._pace.applied(rows_count, size_bytes):
            self.commit()

    def commit(self) -> None:
        """Commit what was applied, if it is not. Raises sqlite3.Error."""
        if not self.tables.is_committed:
            begun_ms = self._clock.monotonic_ms()
            self.tables.commit()
            self._pace.committed(self._clock.monotonic_ms() - begun_ms)

    async def make_durable(self) -> None:
        """Commit and fsync all that is applied at the call, off the loop, while the loop may go on applying."""
        with storage_errors(self.path):
            self.commit()
            applied = self.tables.meta.applied_index
            await self._checkpointer.prepare()
            self._note_durable(applied)

    async def _write_anew(self) -> None:
        """Make what the write-ahead log held durable, by writing it to the database.

        It may stand in the page cache alone: after a failed fsync the kernel holds such pages for clean, and to sync
        the log again would return without having written them (recovery.py has the same rule).
        """
        applied = self.tables.meta.applied_index
        is_whole = await self._checkpointer.copy()
        await self._checkpointer.settle()
        if is_whole:
            self._note_durable(applied)

    async def copy(self) -> None:
        """The part of a checkpoint during which nothing may be applied; `settle` is due after it."""
        with storage_errors(self.path):
            self.commit()
            applied = self.tables.meta.applied_index
            await self._checkpointer.copy()
            self._note_durable(applied)

    async def settle(self) -> None:
        """The part of a checkpoint after the copy; the loop may go on applying."""
        with storage_errors(self.path):
            await self._checkpointer.settle()

    def _note_durable(self, index: int) -> None:
        if index > self.durable:
            self._mark.write(index)
            self.durable = index


def _later(function: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        function()

    return call
