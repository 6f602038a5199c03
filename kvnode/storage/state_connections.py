"""Connections to a state file: the one that writes, on the loop's thread, and workers on threads of their own.

A hop to a thread costs about 90 us here, more than a point read (3 us) or a whole batch of 4 rows. So the writer's
connection lives on the loop's thread and is called directly; what takes long (checkpoints, counts, scrubs, copies)
goes through a `Worker`, one hop for a whole function instead of one for each statement.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiosqlite

from kvnode.base.clock import Clock
from kvnode.base.errors import Unavailable
from kvnode.base.limits import (
    MAX_READ_TRANSACTION_MS,
    STATE_CACHE_BYTES,
    STATE_READER_CACHE_BYTES,
    STATE_READERS_COUNT,
)
from kvnode.storage.state_tables import StateTables

Result = TypeVar("Result")

PAGE_BYTES = 4_096
_BUSY_TIMEOUT_S = 1.0  # never waited for in ordinary work: one process, one writer
_STATEMENTS_COUNT = 64
_OPERATIONS_PER_CLOCK_READING = 10_000  # SQLite's virtual machine does this many in about 0.1 ms


def connect_writer(path: Path) -> sqlite3.Connection:
    """The connection that writes: WAL, NORMAL (the log is the state's durability), no checkpoint of its own.

    It may be called from other threads as long as its owner orders the calls (SQLite is built in serialized
    mode); a snapshot's copy runs on it beside the loop. Raises sqlite3.Error; then nothing stays open.
    """
    if sqlite3.threadsafety != 3:
        raise sqlite3.NotSupportedError("this SQLite was built without its serialized mode, which is needed")
    connection = sqlite3.connect(
        path,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        cached_statements=_STATEMENTS_COUNT,
        check_same_thread=False,
    )
    with _closed_on_failure(connection):
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise sqlite3.DatabaseError(f"the file system does not allow a write-ahead log (journal mode is {mode})")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA secure_delete = OFF")  # Debian's default is ON: more pages in the log
        _set_up(connection, STATE_CACHE_BYTES)
    return connection


class _Unclosed(sqlite3.Connection):
    """Ends with the last reference to it. From 3.13 on Python warns of any other that nobody closes."""

    def __del__(self) -> None:
        with suppress(sqlite3.Error):  # it was never open
            self.close()


def connect_reader(path: Path, *, immutable: bool = False, may_stay_open: bool = False) -> sqlite3.Connection:
    """A read-only connection.

    Raises sqlite3.Error; then nothing stays open.

    Args:
        immutable: for a file that nobody writes: no locks, no files beside it.
        may_stay_open: it may be left to end with the last reference to it.
    """
    uri = f"file:{quote(str(path))}?mode=ro" + ("&immutable=1" if immutable else "")
    named: dict[str, Any] = {"factory": _Unclosed} if may_stay_open else {}
    connection: sqlite3.Connection = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, **named
    )
    with _closed_on_failure(connection):
        _set_up(connection, STATE_READER_CACHE_BYTES)
    return connection


def connect_copier(path: Path) -> sqlite3.Connection:
    """The connection that checkpoints, for state_checkpoint.py alone: it leaves every fsync to its caller.

    Raises sqlite3.Error; then nothing stays open.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    with _closed_on_failure(connection):
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        _set_up(connection, STATE_READER_CACHE_BYTES)
    return connection


@contextmanager
def _closed_on_failure(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _set_up(connection: sqlite3.Connection, cache_bytes: int) -> None:
    connection.execute(f"PRAGMA cache_size = -{cache_bytes // 1_024}")
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA temp_store = MEMORY")


class Worker(aiosqlite.Connection):
    """An aiosqlite connection that runs whole functions on its thread: one hop a function.

    Use `open`, and `close` in `finally`: its thread is no daemon, and an open one keeps the process from ending.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)

    @classmethod
    async def open(cls, connector: Callable[[], sqlite3.Connection]) -> Worker:
        """Start the thread and connect on it. Raises what `connector` raises; then no thread is left."""
        worker = cls(connector)
        await worker
        return worker

    async def run(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `function(connection)` on the worker's thread. A cancelled caller does not stop the function."""
        result: Result = await self._execute(function, self._conn)  # type: ignore[no-untyped-call]
        return result


class Readers:
    """A few read-only workers on one state file; a caller waits for a free one.

    Args:
        path: the state file, which a writer has already opened.
        clock: bounds each read transaction by MAX_READ_TRANSACTION_MS, or the write-ahead log could not be reset.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._workers: list[Worker] = []
        self._free: asyncio.Queue[Worker] = asyncio.Queue()
        self._closed = False

    async def open(self) -> None:
        """Start the workers. Raises sqlite3.Error; close() is due in any case."""
        for _ in range(STATE_READERS_COUNT):
            worker = await Worker.open(lambda: connect_reader(self._path))
            self._workers.append(worker)
            self._free.put_nowait(worker)

    async def close(self) -> None:
        """Close every worker after what it is running."""
        await close_all([worker.close for worker in self._workers])
        self._workers, self._closed = [], True

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[Worker]:
        worker = await self._free.get()
        try:
            yield worker
        finally:
            self._free.put_nowait(worker)

    async def read(self, read: Callable[[StateTables], Result]) -> Result:
        """Run `read(tables)` in one read transaction off the loop.

        Raises:
            Unavailable: READ_TOO_LONG, SQLite worked longer than MAX_READ_TRANSACTION_MS on it; STATE_REPLACED, a
                snapshot has taken this file's place (or the node is stopping) while the read waited.
        """
        async with self._borrowed() as worker:
            if self._closed:
                raise Unavailable("a snapshot is replacing the state; read again", code="STATE_REPLACED", phase="read")
            return await worker.run(lambda connection: self._in_transaction(connection, read))

    def _in_transaction(self, connection: sqlite3.Connection, read: Callable[[StateTables], Result]) -> Result:
        deadline_ms = self._clock.monotonic_ms() + MAX_READ_TRANSACTION_MS
        connection.set_progress_handler(lambda: self._clock.monotonic_ms() > deadline_ms, _OPERATIONS_PER_CLOCK_READING)
        try:
            connection.execute("BEGIN")
            return read(StateTables(connection))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise Unavailable(
                    f"the read took longer than {MAX_READ_TRANSACTION_MS} ms; read a smaller range at a time",
                    code="READ_TOO_LONG",
                    phase="read",
                ) from error
            raise
        finally:
            connection.set_progress_handler(None, 0)
            if connection.in_transaction:
                connection.execute("ROLLBACK")


async def close_all(closers: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Await each closer even if one before it fails; then raise the first failure."""
    failure: BaseException | None = None
    for closer in closers:
        try:
            await closer()
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure
