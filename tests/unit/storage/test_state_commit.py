"""Applies share a transaction: who sees what before it is committed, when it is, and what a failure leaves."""

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from kvnode.base.errors import StorageFailed
from kvnode.base.invariant import InvariantViolation
from kvnode.base.limits import (
    MAX_LOOP_HOLD_MS,
    MAX_STATE_COMMIT_BYTES,
    MAX_STATE_COMMIT_ROWS_COUNT,
    MIN_STATE_COMMIT_ROWS_COUNT,
    STATE_COMMIT_INTERVAL_MS,
)
from kvnode.storage.state import State
from kvnode.storage.state_commit import CommitPace
from tests.unit.storage.state_helpers import ManualClock, fill, opened, put, row


def committed(directory: Path) -> int:
    """The applied index that the file shows to other connections."""
    with closing(sqlite3.connect(directory / "state-1.db")) as connection:
        return int(connection.execute("SELECT applied_index FROM meta").fetchone()[0])


def refuse_commits(state: State) -> None:
    state._file.tables.connection.execute(
        "CREATE TEMP TRIGGER full BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'no space'); END"
    )


async def test_the_loop_sees_what_is_applied_and_not_committed(tmp_path: Path) -> None:
    async with opened(tmp_path, ManualClock()) as state:
        put(state, 1, {b"a": row(b"a"), b"b": row(b"b")})
        put(state, 2, {b"b": None, b"c": row(b"c", expire_at_ms=7)}, commit=False)
        assert committed(tmp_path) == 1
        assert state.meta.applied_index == 2
        with state.reading():
            assert (state.get(b"b"), state.get(b"c")) == (None, row(b"c", expire_at_ms=7))
        assert state.scan_keys(b"", b"\xff", 9) == [b"a", b"c"], "and the read has not rolled it back"
        assert state.scan_within(b"", b"\xff", 9, max_bytes=99) == state.scan(b"", b"\xff", 9)
        assert state.next_expiry() == 7
        assert committed(tmp_path) == 1
    assert committed(tmp_path) == 2, "a close commits it"


async def keys_off_loop(state: State) -> list[bytes]:
    return await state.read_off_loop(lambda tables: tables.scan_keys(b"", b"\xff", 9))


async def copied_keys(state: State) -> list[bytes]:
    path = (await state.create_snapshot()).path
    with closing(sqlite3.connect(path)) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM rows ORDER BY key")]


async def durable_keys(state: State) -> list[bytes]:
    """What a power failure behind make_durable leaves."""
    await state.make_durable()
    assert state.durable_applied == 3
    path = state._file.path
    copy = path.with_name("copy.db")
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    with closing(sqlite3.connect(copy)) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM rows ORDER BY key")]


async def counted(state: State) -> list[bytes]:
    assert await state.count(b"", b"\xff", 0) == 3
    assert (await state.count_with_meta(b"", b"\xff"))[1].applied_index == 3
    return state.scan_keys(b"", b"\xff", 9)


async def scrubbed(state: State) -> list[bytes]:
    assert await state.scrub(), state.damage
    return state.scan_keys(b"", b"\xff", 9)


@pytest.mark.parametrize("use", [keys_off_loop, copied_keys, durable_keys, counted, scrubbed])
async def test_whatever_needs_the_file_finds_all_that_is_applied(
    tmp_path: Path, use: Callable[[State], Awaitable[list[bytes]]]
) -> None:
    async with opened(tmp_path, ManualClock()) as state:
        for index, key in enumerate((b"a", b"b", b"c"), 1):
            put(state, index, {key: row(key)}, commit=False)
        assert committed(tmp_path) == 0
        assert await use(state) == [b"a", b"b", b"c"]
        assert committed(tmp_path) == 3
        put(state, 4, {b"d": row(b"d")}, commit=False)
        assert committed(tmp_path) == 3, "and then they share a transaction again"


async def test_a_checkpoint_carries_what_was_not_committed(tmp_path: Path) -> None:
    async with opened(tmp_path, ManualClock()) as state:
        put(state, 1, {b"a": row(b"a")}, commit=False)
        await state._file.copy()
        assert state.durable_applied == 1
        await state._file.settle()
        shutil.copy(tmp_path / "state-1.db", tmp_path / "copy.db")
        with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
            assert connection.execute("SELECT key FROM rows").fetchall() == [(b"a",)]


async def test_a_copy_goes_on_while_applies_do(tmp_path: Path) -> None:
    """SQLite copies nothing while a transaction is open: with one that never ends the snapshot would not."""
    async with opened(tmp_path) as state:
        fill(state, 1, 200)
        fill(state, 201, 201, commit=False)
        copying = asyncio.ensure_future(state.create_snapshot())
        index = 201
        while not copying.done():
            index += 1
            fill(state, index, index, commit=False)
            await asyncio.sleep(0.0005)
        assert 201 <= (await copying).index <= index
        assert index < 20_000


async def test_it_is_committed_when_its_time_has_come(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as state:
        for index in range(1, 8):
            put(state, index, {b"a": row(b"a")}, commit=False)
            clock.at_ms += STATE_COMMIT_INTERVAL_MS // 4
            assert committed(tmp_path) == (5 if index >= 5 else 0)


async def test_it_is_committed_when_it_is_large(tmp_path: Path) -> None:
    async with opened(tmp_path, ManualClock()) as state:
        put(state, 1, {b"a": row(b"a", b"v" * (MAX_STATE_COMMIT_BYTES - 1))}, commit=False)
        put(state, 2, {b"b": None}, commit=False)
        assert committed(tmp_path) == 0
        put(state, 3, {b"b": row(b"b", b"v")}, commit=False)
        assert committed(tmp_path) == 3


async def test_it_is_committed_when_it_has_many_rows(tmp_path: Path) -> None:
    async with opened(tmp_path, ManualClock()) as state:
        for index in range(1, MIN_STATE_COMMIT_ROWS_COUNT):
            put(state, index, {b"a": row(b"a", b"%d" % index)}, commit=False)
        assert committed(tmp_path) == 0
        put(state, MIN_STATE_COMMIT_ROWS_COUNT, {b"a": None}, commit=False)
        assert committed(tmp_path) == MIN_STATE_COMMIT_ROWS_COUNT


async def test_what_changes_often_is_written_once(tmp_path: Path) -> None:
    clock = ManualClock()
    log = tmp_path / "state-1.db-wal"
    async with opened(tmp_path, clock) as state:
        put(state, 1, {b"a": row(b"a")})
        size = log.stat().st_size
        for index in range(2, 202):
            put(state, index, {b"a": row(b"a", b"%d" % index)}, commit=False)
        state.commit()
        assert log.stat().st_size - size < 10 * 4_096


@pytest.mark.parametrize("moment", ["apply", "read", "durable point"])
async def test_a_failed_commit_is_the_end_of_every_use(tmp_path: Path, moment: str) -> None:
    """The rows of applies before it are gone with it: nobody may read an older state than he has seen."""
    clock = ManualClock()
    state = await State.open(tmp_path, clock=clock)
    put(state, 1, {b"a": row(b"a")})
    put(state, 2, {b"a": row(b"a", b"newer")}, commit=False)
    assert state.get(b"a") == row(b"a", b"newer")
    refuse_commits(state)
    clock.at_ms += STATE_COMMIT_INTERVAL_MS
    with pytest.raises(StorageFailed, match="no space"):
        if moment == "apply":
            put(state, 3, {}, commit=False)
        elif moment == "read":
            await keys_off_loop(state)
        else:
            await state.make_durable()
    assert state.durable_applied == 0
    uses: list[Callable[[], object]] = [
        lambda: state.get(b"a"),
        lambda: state.scan(b"", b"\xff", 9),
        lambda: state.scan_within(b"", b"\xff", 9, max_bytes=99),
        lambda: state.scan_keys(b"", b"\xff", 9),
        lambda: state.due(9, 9),
        state.next_expiry,
        lambda: state.reading().__enter__(),
        lambda: put(state, 4, {}, commit=False),
    ]
    for use in uses:
        with pytest.raises(StorageFailed):
            use()
    for work in (keys_off_loop, copied_keys, counted, scrubbed, State.make_durable):
        with pytest.raises(StorageFailed):
            await work(state)  # type: ignore[operator]
    await state.close()
    async with opened(tmp_path) as state:
        assert state.meta.applied_index == 1
        assert state.get(b"a") == row(b"a")


async def test_a_failed_apply_behind_others_is_the_end_of_every_use(tmp_path: Path) -> None:
    state = await State.open(tmp_path, clock=ManualClock())
    put(state, 1, {b"a": row(b"a")}, commit=False)
    state._file.tables.connection.execute(
        "CREATE TEMP TRIGGER full BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'no space'); END"
    )
    with pytest.raises(StorageFailed, match="no space"):
        put(state, 2, {b"a": row(b"a", b"newer")}, commit=False)
    assert state.meta.applied_index == 1
    with pytest.raises(StorageFailed, match="lost what was applied"):
        state.get(b"a")
    await state.close()


async def test_nothing_is_applied_or_committed_inside_of_a_read(tmp_path: Path) -> None:
    async with opened(tmp_path, ManualClock()) as state:
        for index in (1, 2):  # without and with an open transaction
            with state.reading(), pytest.raises(InvariantViolation, match="inside of a read"):
                put(state, index, {})
            put(state, index, {}, commit=False)
        with state.reading(), pytest.raises(InvariantViolation, match="inside of a read"):
            state.commit()
        assert state.meta.applied_index == 2


def test_the_rows_of_a_commit_follow_what_commits_take() -> None:
    pace = CommitPace(ManualClock())

    def commit(took_ms: float) -> float:
        assert pace.applied(int(pace.max_rows) + 1, 0)
        pace.committed(took_ms)
        return pace.max_rows

    assert [commit(MAX_LOOP_HOLD_MS / 2) for _ in range(20)][-1] == MAX_STATE_COMMIT_ROWS_COUNT
    assert commit(MAX_LOOP_HOLD_MS * 0.9) == MAX_STATE_COMMIT_ROWS_COUNT
    assert commit(MAX_LOOP_HOLD_MS * 1.1) < MAX_STATE_COMMIT_ROWS_COUNT
    assert [commit(MAX_LOOP_HOLD_MS * 3) for _ in range(20)][-1] == MIN_STATE_COMMIT_ROWS_COUNT


def test_a_commit_of_few_rows_says_nothing_about_many() -> None:
    pace = CommitPace(ManualClock())
    pace.applied(1, 0)
    pace.committed(0.1)
    assert pace.max_rows == MIN_STATE_COMMIT_ROWS_COUNT
