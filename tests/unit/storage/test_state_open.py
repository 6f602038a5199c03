"""Opening and closing, and what stands in the way."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvnode.base.clock import SystemClock
from kvnode.base.errors import StateDamaged, StorageFailed, Unavailable
from kvnode.base.invariant import InvariantViolation
from kvnode.storage.generations import CURRENT
from kvnode.storage.state import State, StateMeta
from kvnode.storage.state_errors import storage_error
from tests.unit.storage.state_helpers import fill, flip_bit, opened, put, row


async def test_a_new_directory_holds_the_empty_state(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as state:
        assert state.meta == StateMeta()
        assert state.durable_applied == 0
        assert state.next_expiry() is None
        assert not state.maintenance_due


async def test_what_was_applied_is_there_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 20)
        meta, rows = state.meta, state.scan(b"", b"\xff", 5_000)
    async with opened(tmp_path) as state:
        assert state.meta == meta
        assert state.durable_applied == 20
        assert state.scan(b"", b"\xff", 5_000) == rows
        assert await state.scrub()


async def test_no_thread_and_no_lock_outlives_close(tmp_path: Path) -> None:
    before = threading.active_count()
    async with opened(tmp_path) as state:
        put(state, 1, {})
        assert threading.active_count() > before
    workers = [thread for thread in threading.enumerate() if "asyncio" not in thread.name]
    assert len(workers) <= before
    async with opened(tmp_path):
        pass


async def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        with pytest.raises(StorageFailed, match="another process has the state in"):
            await State.open(tmp_path, clock=SystemClock())
        put(state, 1, {})


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from kvnode.base.clock import SystemClock\n"
        "from kvnode.storage.state import State\n"
        "asyncio.run(State.open(pathlib.Path(sys.argv[1]), clock=SystemClock()))\n"
    )
    async with opened(tmp_path):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 1
    assert "another process has the state" in done.stderr


async def test_a_file_that_is_no_database_is_damage(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / "state-1.db").write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(StateDamaged, match=r"state-1.db cannot be read as a state.*rebuild this node"):
        await State.open(tmp_path, clock=SystemClock())


async def test_a_torn_schema_page_is_damage(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 5)
    with (tmp_path / "state-1.db").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(StateDamaged):
        await State.open(tmp_path, clock=SystemClock())


async def test_a_damaged_current_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    flip_bit(tmp_path / CURRENT, 0)
    with pytest.raises(StateDamaged, match="CURRENT: its content"):
        await State.open(tmp_path, clock=SystemClock())


async def test_a_file_that_lost_its_bytes_is_damage(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {b"a": row(b"a")})
    (tmp_path / "state-1.db").write_bytes(b"")
    with pytest.raises(StateDamaged, match=r"no such table.*empty its data directory"):
        await State.open(tmp_path, clock=SystemClock())


async def test_a_missing_current_does_not_start_empty(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {b"a": row(b"a")})
    (tmp_path / CURRENT).unlink()
    with pytest.raises(StateDamaged, match=r"CURRENT is missing beside state-1\.db"):
        await State.open(tmp_path, clock=SystemClock())


async def test_a_missing_generation_does_not_start_empty(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {b"a": row(b"a")})
    (tmp_path / "state-1.db").unlink()
    with pytest.raises(StateDamaged, match=r"names state-1.db, which is missing"):
        await State.open(tmp_path, clock=SystemClock())


async def test_a_first_start_that_was_cut_short_begins_again(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / CURRENT).unlink()
    (tmp_path / "empty.db").write_bytes(b"half a page")
    async with opened(tmp_path) as state:
        assert state.meta == StateMeta()


async def test_a_full_disk_stops_apply_for_good_and_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        before = put(state, 1, {b"a": row(b"a")})
        connection = state._file.tables.connection
        connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(StorageFailed, match="is full") as caught:
            put(state, 2, {b"b%d" % number: row(b"b%d" % number, bytes(10_000)) for number in range(20)})
        assert caught.value.code == "DISK_FULL"
        assert state.meta == before
        assert state.scan(b"", b"\xff", 10) == [row(b"a")]
        with pytest.raises(StorageFailed, match="nothing is applied after a failed write"):
            put(state, 2, {})
    async with opened(tmp_path) as state:
        assert state.meta == before
        put(state, 2, {})


@pytest.mark.parametrize(
    ("number", "code", "remedy"),
    [
        (errno.ENOSPC, "DISK_FULL", "free some space"),
        (errno.EACCES, "STORAGE_FAILED", "let the user that this node runs as write there"),
        (errno.EIO, "STORAGE_FAILED", "look at the disk and the system's log"),
    ],
)
def test_what_the_operating_system_says_comes_with_its_remedy(number: int, code: str, remedy: str) -> None:
    error = storage_error(OSError(number, os.strerror(number), "state/CURRENT"), Path("state"))
    assert error.code == code
    assert "state/CURRENT" in error.message and remedy in error.message and "restart this node" in error.message


async def test_reads_name_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        state._file.tables.connection.execute("DROP TABLE rows")
        for read in (
            lambda: state.get(b"a"),
            lambda: state.scan(b"", b"b", 1),
            lambda: state.scan_keys(b"", b"b", 1),
            lambda: state.due(1, 1),
            state.next_expiry,
        ):
            with pytest.raises(StorageFailed, match=r"state-1\.db"):
                read()


async def test_apply_inside_of_reading_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {b"a": row(b"a")})
        with state.reading():
            assert state.get(b"a") == row(b"a")
        with pytest.raises(InvariantViolation), state.reading():
            put(state, 2, {})
        put(state, 2, {})


async def test_counts_what_has_not_expired(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {key: row(key, expire_at_ms=at) for key, at in ((b"a", 0), (b"b", 10), (b"c", 20), (b"d", 0))})
        assert await state.count(b"", b"\xff", 0) == 4
        assert await state.count(b"", b"\xff", 10) == 3
        assert await state.count(b"b", b"d", 20) == 0


async def test_a_count_of_several_pages_and_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.storage.state_count._PAGE_ROWS_COUNT", 7)
    monkeypatch.setattr("kvnode.storage.state_count.MAX_READ_TRANSACTION_MS", 0)
    async with opened(tmp_path) as state:
        put(state, 1, {b"%03d" % number: row(b"%03d" % number) for number in range(49)})
        assert await state.count(b"", b"\xff", 0) == 49
        assert await state.count(b"005", b"010", 0) == 5


async def test_reads_off_the_loop_see_one_state(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 5)
        reads = [state.read_off_loop(lambda tables: (tables.meta, tables.scan(b"", b"\xff", 9_999))) for _ in range(5)]
        assert await asyncio.gather(*reads) == [(state.meta, state.scan(b"", b"\xff", 9_999))] * 5


async def test_a_read_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.storage.state_connections.MAX_READ_TRANSACTION_MS", 20)
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    async with opened(tmp_path) as state:
        with pytest.raises(Unavailable, match="smaller range"):
            await state.read_off_loop(lambda tables: tables.connection.execute(endless).fetchone())
        assert await state.count(b"", b"\xff", 0) == 0


async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        with pytest.raises(StorageFailed, match="readonly"):
            await state.read_off_loop(lambda tables: tables.connection.execute("DELETE FROM rows"))


async def test_an_exception_on_the_loop_does_not_hang_the_process(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from kvnode.base.clock import SystemClock\n"
        "from kvnode.storage import state_file, state_mark\n"
        "from kvnode.storage.state import State\n"
        "def fail(*_): raise OSError(5, 'Input/output error')\n"
        "state_mark.DurableMark.write = fail\n"
        "async def main():\n"
        "    state = await State.open(pathlib.Path(sys.argv[1]), clock=SystemClock())\n"
        "    try:\n"
        "        state.apply({}, applied_index=1, applied_term=1, log_time_ms=1, epoch=0)\n"
        "        await state.make_durable()\n"
        "    finally:\n"
        "        await state.close()\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "Input/output error" in done.stderr


async def test_a_failed_open_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path):
        pass

    def fail(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("no reader today")

    before = threading.active_count()
    monkeypatch.setattr("kvnode.storage.state_connections.connect_reader", fail)
    with pytest.raises(StorageFailed, match="no reader today"):
        await State.open(tmp_path, clock=SystemClock())
    assert len([thread for thread in threading.enumerate() if "asyncio" not in thread.name]) <= before
    monkeypatch.undo()
    async with opened(tmp_path):
        pass
