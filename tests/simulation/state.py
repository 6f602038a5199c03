"""The state of a simulated node: production's SQL in memory, with the crashes of a disk.

Theory of operation. `_tables` is what the node sees. `_disk` is what had been fsynced, an image and the applies behind
it, which nobody sees before a crash; the applies since the last fsync stand in `_tail`. A crash loses an end of the
tail of any length, because nobody knows how much of it the operating system had written: the new state is `_disk` and
a beginning of `_tail`. As on the real file, an apply is there as a whole or not at all.

Snapshots are real files, in a directory of the simulation's own, since the transfer between nodes reads them.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kvnode.base.clock import Clock
from kvnode.base.errors import StorageFailed
from kvnode.base.invariant import invariant
from kvnode.base.limits import DURABLE_APPLIED_INTERVAL_MS
from kvnode.codec.row import Row
from kvnode.storage.bounded_scan import scan_within
from kvnode.storage.snapshot import SnapshotFile, hash_file
from kvnode.storage.state_commit import CommitPace
from kvnode.storage.state_count import RangeCount
from kvnode.storage.state_errors import damaged
from kvnode.storage.state_scrub import Scrub, go_on, scrub_page
from kvnode.storage.state_tables import StateMeta, StateTables

Result = TypeVar("Result")


class _Applied(NamedTuple):
    writes: dict[bytes, Row | None]
    arguments: dict[str, Any]


class _Memory(sqlite3.Connection):
    """Ends with the last reference to it, as a process does with its memory; 3.13 warns of what nobody closes."""

    def __del__(self) -> None:
        self.close()


def _in_memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_Memory)


def _empty() -> StateTables:
    return StateTables(_in_memory(), create=True)


def _from_image(image: bytes) -> StateTables:
    connection = _in_memory()
    connection.deserialize(image)
    return StateTables(connection)


class _Disk:
    """What had been fsynced: an image (None = an empty state) and the applies behind it, in order."""

    def __init__(self, image: bytes | None = None, applied_index: int = 0) -> None:
        self._image = image
        self._behind: list[_Applied] = []
        self.applied_index = applied_index

    def take(self, applied: Sequence[_Applied]) -> None:
        """These are durable too."""
        self._behind.extend(applied)
        if applied:
            self.applied_index = applied[-1].arguments["applied_index"]

    def read(self) -> StateTables:
        """Tables of their own that hold it."""
        tables = _empty() if self._image is None else _from_image(self._image)
        for applied in self._behind:
            tables.apply(applied.writes, **applied.arguments)
        if self._behind:
            self._image, self._behind = tables.connection.serialize(), []
        return tables


class SimulatedState:
    """Has State's interface; nothing in it waits for a thread.

    Args:
        directory: for snapshot files; one a node.
        clock: the node's.
        latency_s: what an fsync takes, asked each time.
        fault: called with the operation's name before it; may raise StorageFailed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        latency_s: Callable[[], float] = lambda: 0.002,
        fault: Callable[[str], None] = lambda operation: None,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._latency_s = latency_s
        self._fault = fault
        self._tables = _empty()
        self._disk = _Disk()
        self._tail: list[_Applied] = []
        self._committed_count = 0  # of the tail
        self._pace = CommitPace(clock)
        self._exclusive = asyncio.Lock()
        self._failed: str | None = None
        self._durable_at_ms = clock.monotonic_ms()
        self._snapshot: SnapshotFile | None = None
        self.damage: str | None = None

    def crash(self, random_source: random.Random) -> SimulatedState:
        """The state that a restart finds: rolled back to any point from the last durable one to now."""
        kept = random_source.randint(0, self._committed_count)
        state = SimulatedState(self._directory, clock=self._clock, latency_s=self._latency_s, fault=self._fault)
        state._release()
        state._tables, state._disk = self._disk.read(), self._disk
        for applied in self._tail[:kept]:
            state._tables.apply(applied.writes, **applied.arguments)
        state._disk.take(self._tail[:kept])  # opening a state makes it durable
        self._release()
        return state

    def kill(self) -> SimulatedState:
        """The state that a restart finds after kill -9: the operating system has all that was committed."""
        state = SimulatedState(self._directory, clock=self._clock, latency_s=self._latency_s, fault=self._fault)
        state._release()
        state._tables, state._disk, state._tail = self._disk.read(), self._disk, self._tail[: self._committed_count]
        state._committed_count = len(state._tail)
        for applied in state._tail:
            state._tables.apply(applied.writes, **applied.arguments)
        self._release()
        return state

    def _release(self) -> None:
        self._tables.connection.close()

    def _replace(self, image: bytes) -> None:
        self._release()
        self._tables, self._tail, self._committed_count = _from_image(image), [], 0
        self._disk = _Disk(image, self.meta.applied_index)

    def commit(self) -> None:
        self._committed_count = len(self._tail)
        if not self._tables.is_committed:
            self._tables.commit()
            self._pace.committed(0)

    async def close(self) -> None:
        """What is applied stays, as in an orderly end of the process."""
        async with self._exclusive:
            self.commit()
            self._release()

    @property
    def meta(self) -> StateMeta:
        return self._tables.meta

    def get(self, key: bytes) -> Row | None:
        return self._tables.get(key)

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        return self._tables.scan(start, end, limit, reverse=reverse)

    def scan_within(
        self, start: bytes, end: bytes, limit: int, *, max_bytes: int, reverse: bool = False
    ) -> list[Row] | None:
        return scan_within(self._tables, start, end, limit, max_bytes=max_bytes, reverse=reverse)

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        return self._tables.scan_keys(start, end, limit)

    def due(self, now_ms: int, limit: int) -> list[tuple[bytes, int]]:
        return self._tables.due(now_ms, limit)

    def next_expiry(self) -> int | None:
        return self._tables.next_expiry()

    def reading(self) -> AbstractContextManager[None]:
        return self._tables.reading()

    async def read_off_loop(self, read: Callable[[StateTables], Result]) -> Result:
        await asyncio.sleep(self._latency_s())
        return read(self._tables)

    async def count(self, start: bytes, end: bytes, log_time_ms: int) -> int:
        rows = await self.read_off_loop(lambda tables: tables.scan(start, end, -1))
        return sum(row.expire_at_ms == 0 or row.expire_at_ms > log_time_ms for row in rows)

    async def count_with_meta(self, start: bytes, end: bytes) -> RangeCount:
        await asyncio.sleep(self._latency_s())
        meta = self._tables.meta
        rows = self._tables.scan(start, end, -1)
        return RangeCount(sum(row.expire_at_ms == 0 or row.expire_at_ms > meta.log_time_ms for row in rows), meta)

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
        invariant(not self._exclusive.locked(), "apply while a checkpoint or an install is under way")
        self._run("apply")
        arguments: dict[str, Any] = {
            "applied_index": applied_index,
            "applied_term": applied_term,
            "log_time_ms": log_time_ms,
            "epoch": epoch,
            "membership": membership,
        }
        meta = self._tables.apply(writes, **arguments, commit=False)
        self._tail.append(_Applied(dict(writes), arguments))
        size_bytes = sum([len(row.value) for row in writes.values() if row is not None])
        if self._pace.applied(len(writes), size_bytes) or self._tables.observer is not None:
            self.commit()
        return meta

    def _run(self, operation: str) -> None:
        if self._failed is not None:
            raise StorageFailed(self._failed)
        try:
            self._fault(operation)
        except StorageFailed as failure:
            self._failed = f"nothing is applied after a failure: {failure.message}"
            raise

    @property
    def durable_applied(self) -> int:
        return self._disk.applied_index

    @property
    def maintenance_due(self) -> bool:
        waited_ms = self._clock.monotonic_ms() - self._durable_at_ms
        return waited_ms >= DURABLE_APPLIED_INTERVAL_MS and self.durable_applied < self.meta.applied_index

    async def maintain(self) -> None:
        """A checkpoint, as hard as production's can be: apply is shut out for as long as the fsync takes."""
        if self.maintenance_due:
            async with self._exclusive:
                await self.make_durable()

    async def make_durable(self) -> None:
        self._durable_at_ms = self._clock.monotonic_ms()
        self.commit()
        until = self.meta.applied_index
        await asyncio.sleep(self._latency_s())
        self._run("sync")
        synced = [applied for applied in self._tail if applied.arguments["applied_index"] <= until]
        self._disk.take(synced)
        del self._tail[: len(synced)]
        self._committed_count -= len(synced)

    async def scrub(self) -> bool:
        self.commit()
        scrub, tables = Scrub(), self._tables

        async def read_page(after: bytes) -> Any:
            await asyncio.sleep(self._latency_s())
            return scrub_page(tables, after)

        tables.observer = scrub.observe
        try:
            await scrub.run(read_page, go_on)
        finally:
            tables.observer = None
        self.damage = scrub.verdict(tables.meta.digest)
        return self.damage is None

    @property
    def incoming_directory(self) -> Path:
        return self._directory / "incoming"

    @property
    def snapshot(self) -> SnapshotFile | None:
        return self._snapshot

    async def create_snapshot(self) -> SnapshotFile:
        await asyncio.sleep(self._latency_s())
        self._run("snapshot")
        self.commit()
        meta = self.meta
        name = f"{meta.applied_term}-{meta.applied_index}-{meta.digest % 2**64:016x}"
        path = self._directory / "snapshots" / f"{name}.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._tables.connection.serialize())
        self._snapshot = SnapshotFile(
            path=path,
            snapshot_id=name,
            index=meta.applied_index,
            term=meta.applied_term,
            log_time_ms=meta.log_time_ms,
            epoch=meta.epoch,
            size_bytes=path.stat().st_size,
            file_digest=hash_file(path),
            membership=meta.membership,
        )
        return self._snapshot

    async def install_snapshot(self, path: Path, *, index: int, term: int) -> StateMeta:
        """The switch of generations is one instant: a crash before it finds the old state, after it the new one."""
        async with self._exclusive:
            await asyncio.sleep(self._latency_s())
            self._run("install")
            image = path.read_bytes()
            received = _from_image(image)
            scrub = Scrub()
            while scrub.add(scrub_page(received, scrub.after)):
                pass
            meta, wrong = received.meta, scrub.verdict(received.meta.digest)
            received.connection.close()
            if wrong is not None or (meta.applied_index, meta.applied_term) != (index, term):
                raise damaged(path, wrong or f"it holds index {meta.applied_index}, not {index} of term {term}")
            await asyncio.sleep(self._latency_s())
            self._replace(image)
            path.unlink()
        self._snapshot = None
        return self.meta
