"""One generation of the state, open: its connections, its write-ahead log and its mark, from open to close."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable

from kvnode.base.clock import Clock
from kvnode.storage.durable_files import sync_directory
from kvnode.storage.generations import Generations
from kvnode.storage.state_connections import (
    PAGE_BYTES,
    Readers,
    Worker,
    close_all,
    connect_checkpointer,
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
        writer = connect_writer(self.path)
        self._closers.append(lambda: asyncio.to_thread(writer.close))  # the last to close also checkpoints
        self.tables = StateTables(writer)
        self._mark = DurableMark(self._mark_path)
        self._closers.append(_later(self._mark.close))
        self._refuse_lost_tail()
        self._wal = WalFile(self.path.with_name(self.path.name + "-wal"), PAGE_BYTES)
        self._closers.append(_later(self._wal.close))
        sync_directory(self.path.parent)  # the -wal file's name, which SQLite would only sync with a FULL commit
        self._checkpointer = await Worker.open(lambda: connect_checkpointer(self.path))
        self._closers.append(self._checkpointer.close)
        self._closers.append(self.readers.close)
        await self.readers.open()
        await self.make_durable()

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

    async def make_durable(self) -> None:
        """Fsync all that is applied at the call, on a thread, while the loop may go on applying."""
        applied = self.tables.meta.applied_index
        with storage_errors(self.path):
            await asyncio.to_thread(self._wal.sync)
            self._note_durable(applied)

    async def checkpoint(self) -> None:
        """Carry the write-ahead log over into the database, durably. No commit may run meanwhile (WAL-reset bug).

        A reader of an old state stops it half way; the next one goes on from there.
        """
        applied = self.tables.meta.applied_index
        with storage_errors(self.path):
            _, frames, carried = await self._checkpointer.run(_checkpoint)
            self._wal.note_checkpoint(carried)
            if frames == carried:
                self._note_durable(applied)

    def _note_durable(self, index: int) -> None:
        if index > self.durable:
            self._mark.write(index)
            self.durable = index


def _checkpoint(connection: sqlite3.Connection) -> tuple[int, int, int]:
    busy, frames, carried = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return busy, frames, carried


def _later(function: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        function()

    return call
