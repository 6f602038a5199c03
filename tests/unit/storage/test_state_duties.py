"""Checkpoints and durable points: when, and what they promise."""

import asyncio
import gc
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from kvnode.base.errors import StorageFailed
from kvnode.base.invariant import InvariantViolation
from kvnode.base.limits import DURABLE_APPLIED_INTERVAL_MS, STATE_CHECKPOINT_BYTES
from kvnode.storage.state import State
from kvnode.storage.state_checkpoint import Checkpointer
from tests.unit.storage.state_helpers import ManualClock, fill, opened, put, row


def wal_bytes(directory: Path) -> int:
    return (directory / "state-1.db-wal").stat().st_size


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.storage.state_duties.STATE_CHECKPOINT_BYTES", 64 * 1024)
    monkeypatch.setattr("kvnode.storage.state_duties.STATE_WAL_BYTES", 256 * 1024)


async def until_idle(state: State) -> None:
    """As the driver does, without applies between."""
    while state.maintenance_due or state._duties._beside is not None:
        await state.maintain()
        await asyncio.sleep(0.001)


async def test_durable_applied_follows_the_clock(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as state:
        put(state, 1, {b"a": row(b"a")})
        clock.at_ms += DURABLE_APPLIED_INTERVAL_MS - 1
        assert not state.maintenance_due
        clock.at_ms += 1
        assert state.maintenance_due
        assert state.durable_applied == 0
        await until_idle(state)
        assert state.durable_applied == 1
        clock.at_ms += DURABLE_APPLIED_INTERVAL_MS
        assert not state.maintenance_due, "nothing was applied since"


async def test_make_durable_covers_what_was_applied_at_the_call(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {})
        syncing = asyncio.ensure_future(state.make_durable())
        await asyncio.sleep(0)
        put(state, 2, {b"a": row(b"a")})  # apply is not shut out
        await syncing
        assert state.durable_applied == 1
        await state.make_durable()
        assert state.durable_applied == 2


async def test_a_grown_log_is_checkpointed_and_used_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        index = 0
        for _ in range(6):
            while not state.maintenance_due:
                index += 1
                fill(state, index, index, rows_count=100)
            await until_idle(state)
            assert state.durable_applied == index
        assert wal_bytes(tmp_path) < 2 * STATE_CHECKPOINT_BYTES
        assert await state.scrub()


async def test_the_log_stays_bounded_while_apply_never_rests(tmp_path: Path, small_bounds: None) -> None:
    async with opened(tmp_path) as state:
        for index in range(1, 800):
            fill(state, index, index)
            if state.maintenance_due:
                await state.maintain()
        assert wal_bytes(tmp_path) < 3 * 256 * 1024
        assert state.durable_applied > 700
        assert await state.scrub()


async def test_a_reader_of_an_old_state_delays_the_checkpoint_and_loses_nothing(
    tmp_path: Path, small_bounds: None
) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 10)
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold(tables):  # type: ignore[no-untyped-def]
            before = tables.meta.digest
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(10)
            return before, tables.load_meta().digest

        digest = state.meta.digest
        reading = asyncio.ensure_future(state.read_off_loop(hold))
        await asyncio.sleep(0.05)
        for index in range(11, 60):
            fill(state, index, index)
            if state.maintenance_due:
                await state.maintain()
        gate.set()
        assert await reading == (digest, digest)
        await until_idle(state)
        meta = state.meta
    async with opened(tmp_path) as state:
        assert state.meta == meta
        assert await state.scrub()


async def test_apply_is_shut_out_while_pages_are_copied(tmp_path: Path, small_bounds: None) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 60)
        while not state._duties._prepared:
            await state.maintain()
        while not state.maintenance_due:
            await asyncio.sleep(0.001)
        copying = asyncio.ensure_future(state.maintain())
        while not state._exclusive.locked():
            await asyncio.sleep(0)
        with pytest.raises(InvariantViolation, match="checkpoint or an install"):
            put(state, 61, {})
        await copying
        put(state, 61, {})


async def test_a_cancelled_maintain_keeps_apply_out_until_its_thread_is_done(
    tmp_path: Path, small_bounds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, copy = threading.Event(), Checkpointer._copy

    def copy_slowly(checkpoint: Checkpointer, copier: sqlite3.Connection) -> bool:
        assert may_end.wait(30)
        return copy(checkpoint, copier)

    async with opened(tmp_path) as state:
        fill(state, 1, 60)
        while not state._duties._prepared:
            await state.maintain()
        while not state.maintenance_due:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(Checkpointer, "_copy", copy_slowly)
        copying = asyncio.ensure_future(state.maintain())
        while not state._exclusive.locked():
            await asyncio.sleep(0)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert state._exclusive.locked()
        may_end.set()
        async with state._exclusive:
            pass
        put(state, 61, {})
    async with opened(tmp_path) as state:
        assert state.meta.applied_index == 61
        assert await state.scrub()


@pytest.mark.parametrize("failing", ["fdatasync", "fsync"])
async def test_a_failed_fsync_ends_apply(
    tmp_path: Path, small_bounds: None, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    state = await State.open(tmp_path, clock=ManualClock())
    try:
        fill(state, 1, 100)
        monkeypatch.setattr(os, failing, fail)
        with pytest.raises(StorageFailed, match="Input/output error"):
            await until_idle(state)
        assert state.durable_applied in ((0,) if failing == "fdatasync" else (0, 100))
        with pytest.raises(StorageFailed, match="nothing is applied after a failed fsync"):
            put(state, 101, {})
    finally:
        monkeypatch.undo()
        with pytest.raises(StorageFailed):
            await state.close()
    async with opened(tmp_path) as state:
        assert state.meta.applied_index == 100
        assert await state.scrub()


async def test_a_failed_fsync_of_the_log_fails_all_later_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of it once: a second fsync returns as if what the first has lost were on the disk."""
    state = await State.open(tmp_path, clock=ManualClock())
    put(state, 1, {b"a": row(b"a")})

    def fail(descriptor: int) -> None:
        raise OSError(5, "the device is gone")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StorageFailed):
        await state.make_durable()
    monkeypatch.undo()
    with pytest.raises(StorageFailed):
        await state.make_durable()
    assert state.durable_applied == 0
    await state.close()


async def test_the_log_outlives_a_database_whose_fsync_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would delete it when the last connection is closed, once a second fsync of the database has succeeded."""
    state = await State.open(tmp_path, clock=ManualClock())
    fill(state, 1, 20)
    await state._file.copy()

    def fail(descriptor: int) -> None:
        raise OSError(5, "the device is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFailed):
        await state._file.settle()
    monkeypatch.undo()
    held = wal_bytes(tmp_path)
    await state.close()
    del state
    gc.collect()
    assert wal_bytes(tmp_path) == held > 0
    async with opened(tmp_path) as state:
        assert state.meta.applied_index == 20
        assert await state.scrub()


async def test_what_an_open_finds_in_the_log_is_durable_by_the_database(tmp_path: Path) -> None:
    """The log's pages may be in the page cache alone, and clean there: an earlier fsync of them may have failed."""
    async with opened(tmp_path / "state") as state:
        fill(state, 1, 20)
        shutil.copytree(tmp_path / "state", tmp_path / "killed")
    async with opened(tmp_path / "killed") as state:
        assert state.durable_applied == 20
        shutil.copy(tmp_path / "killed" / "state-1.db", tmp_path / "alone.db")
    with closing(sqlite3.connect(f"file:{tmp_path}/alone.db?immutable=1", uri=True)) as database:
        assert database.execute("SELECT applied_index FROM meta").fetchone() == (20,)


async def test_point_reads_go_on_during_every_duty(tmp_path: Path, small_bounds: None) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {b"a": row(b"a")})
        reading = True

        async def read() -> int:
            count = 0
            while reading:
                assert state.get(b"a") == row(b"a")
                count += 1
                await asyncio.sleep(0)
            return count

        reader = asyncio.ensure_future(read())
        for index in range(2, 100):
            fill(state, index, index)
            if state.maintenance_due:
                await state.maintain()
        await asyncio.gather(state.create_snapshot(), state.scrub())
        reading = False
        assert await reader > 10
