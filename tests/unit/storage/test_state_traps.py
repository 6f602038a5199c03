"""The traps of SQLite that the state is built around: each is shown, then shown to be covered."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from kvnode.base.clock import SystemClock
from kvnode.base.errors import StateDamaged
from kvnode.storage.state import State
from kvnode.storage.state_connections import connect_copier, connect_reader, connect_writer
from kvnode.storage.state_tables import StateTables
from kvnode.storage.state_wal import WalFile
from tests.unit.storage.state_helpers import fill, flip_bit, opened, put, row

FRAME_BYTES = 24 + 4096


async def crashed(directory: Path, after: Path) -> None:
    """Leave `after` as a kill -9 of the process would leave `directory`: all files as they are, no -shm."""
    shutil.copytree(directory, after)
    for shared in after.glob("*-shm"):
        shared.unlink()


async def test_a_flipped_bit_in_the_log_drops_its_tail_and_sqlite_says_ok(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as state:
        fill(state, 1, 40)
        await state.make_durable()
        await crashed(tmp_path / "state", tmp_path / "after")
    log = tmp_path / "after" / "state-1.db-wal"
    flip_bit(log, log.stat().st_size // 2)
    shutil.copytree(tmp_path / "after", tmp_path / "plain")
    plain = sqlite3.connect(tmp_path / "plain" / "state-1.db")
    assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert 0 < plain.execute("SELECT applied_index FROM meta").fetchone()[0] < 40
    plain.close()
    with pytest.raises(StateDamaged, match=r"applied up to \d+, but 40 had been durable"):
        await State.open(tmp_path / "after", clock=SystemClock())


async def test_a_tail_that_was_never_durable_may_be_lost(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as state:
        fill(state, 1, 20)
        await state.make_durable()
        at = (tmp_path / "state" / "state-1.db-wal").stat().st_size
        fill(state, 21, 40)
        await crashed(tmp_path / "state", tmp_path / "after")
    flip_bit(tmp_path / "after" / "state-1.db-wal", at + 5 * FRAME_BYTES)
    async with opened(tmp_path / "after") as state:
        assert 20 <= state.meta.applied_index < 40
        assert await state.scrub()
        fill(state, state.meta.applied_index + 1, 40)  # the log applies them again
    async with opened(tmp_path / "state") as whole, opened(tmp_path / "after") as state:
        assert state.meta == whole.meta


async def test_a_log_that_lost_frames_behind_a_checkpoint_is_found_by_the_digest(tmp_path: Path) -> None:
    """The database has newer pages than the log's rest: rows of different times, and integrity_check says ok."""
    directory = tmp_path / "state"
    async with opened(directory) as state:
        fill(state, 1, 100)
    async with opened(directory) as state:
        rows = state.scan(b"", b"\xff", 1_000)
        for index in range(101, 141):  # values of the same length, so that no page is added
            old = rows[index * 13 % len(rows)]
            put(state, index, {old.key: old._replace(value=bytes([index]) * len(old.value))})
        await state._file.copy()  # not settled: the log still holds everything
        await crashed(directory, tmp_path / "after")
    after = tmp_path / "after"
    (after / "state-1.mark").unlink()  # the mark alone would tell as well
    flip_bit(after / "state-1.db-wal", 32 + 30 * FRAME_BYTES)
    async with opened(after) as state:
        assert state._file.tables.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert state.meta.applied_index < 140
        assert not await state.scrub()


async def test_a_flipped_bit_in_the_database_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 100)
    path = tmp_path / "state-1.db"
    flip_bit(path, path.read_bytes().index(b"100100100"))
    async with opened(tmp_path) as state:
        assert not await state.scrub()
        assert "does not match its digest" in (state.damage or "")


async def test_a_new_database_under_a_leftover_log_is_overwritten_by_it(tmp_path: Path) -> None:
    """Why an install takes a name that was never used."""
    for name, value in (("old", b"old"), ("new", b"new")):
        async with opened(tmp_path / name) as state:
            put(state, 1, {b"a": row(b"a", b"first")})
            if name == "old":
                put(state, 2, {b"a": row(b"a", value)})
                await crashed(tmp_path / name, tmp_path / "crashed")
            else:
                put(state, 9, {b"a": row(b"a", value)})
    shutil.copy(tmp_path / "new" / "state-1.db", tmp_path / "trap.db")
    shutil.copy(tmp_path / "crashed" / "state-1.db-wal", tmp_path / "trap.db-wal")
    trapped = sqlite3.connect(tmp_path / "trap.db")
    assert trapped.execute("SELECT value FROM rows").fetchone() == (b"old",)
    trapped.close()

    shutil.copy(tmp_path / "crashed" / "state-1.db-wal", tmp_path / "crashed" / "state-2.db-wal")  # a leftover
    async with opened(tmp_path / "crashed") as state:
        assert not (tmp_path / "crashed" / "state-2.db-wal").exists()
        shutil.copy(tmp_path / "crashed" / "state-1.db-wal", tmp_path / "crashed" / "state-2.db-wal")  # a later one
        state.incoming_directory.mkdir()
        received = state.incoming_directory / "received"
        shutil.copy(tmp_path / "new" / "state-1.db", received)
        meta = await state.install_snapshot(received, index=9, term=1)
        assert meta.applied_index == 9
        assert state.get(b"a") == row(b"a", b"new")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect_writer(tmp_path / "plain.db")
    yield connection
    connection.close()


def test_executemany_outside_a_transaction_commits_each_row(writer: sqlite3.Connection, tmp_path: Path) -> None:
    """Why apply begins its transaction itself: one commit for all rows and the meta row."""
    tables = StateTables(writer, create=True)
    wal = WalFile(tmp_path / "plain.db-wal", 4096)
    frames = 0
    while wal.holds((frames + 1) * FRAME_BYTES):
        frames += 1
    rows = {b"%d" % number: row(b"%d" % number) for number in range(50)}
    tables.apply(rows, applied_index=1, applied_term=1, log_time_ms=1, epoch=0)
    together = 0
    while wal.holds((frames + together + 1) * FRAME_BYTES):
        together += 1
    writer.executemany("UPDATE rows SET encoding = encoding + 1 WHERE key = ?", [(key,) for key in rows])
    each = 0
    while wal.holds((frames + together + each + 1) * FRAME_BYTES):
        each += 1
    wal.close()
    assert together < 10
    assert each == 50


async def test_the_settings_that_the_proofs_rest_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        file = state._file
        execute = file.tables.connection.execute
        read = {name: execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "mmap_size")}
        assert read == {"journal_mode": "wal", "synchronous": 1, "mmap_size": 0}
        assert execute("PRAGMA wal_autocheckpoint").fetchone()[0] == 0
        assert execute("PRAGMA journal_size_limit").fetchone()[0] == -1, (
            "the log must not be truncated under its reader"
        )
        assert execute("PRAGMA cache_size").fetchone()[0] == -16 * 1024
        assert isinstance(file._checkpointer._worker, aiosqlite.Connection)


async def test_the_log_is_not_used_again_before_the_copy_is_settled(tmp_path: Path) -> None:
    """The pin: until the database is fsynced, each copied page still stands in the log."""
    log = tmp_path / "state-1.db-wal"
    async with opened(tmp_path) as state:
        fill(state, 1, 20)
        salts = log.read_bytes()[16:24]
        await state._file.copy()
        fill(state, 21, 22)
        assert log.read_bytes()[16:24] == salts
        await state._file.settle()
        await state._file.copy()
        await state._file.settle()
        fill(state, 23, 23)
        assert log.read_bytes()[16:24] != salts


async def test_power_lost_between_copy_and_settle_loses_nothing_durable(tmp_path: Path) -> None:
    """No copied page has reached the disk: the log alone gives the state back."""
    directory = tmp_path / "state"
    async with opened(directory) as state:
        fill(state, 1, 30)
    before = (directory / "state-1.db").read_bytes()
    async with opened(directory) as state:
        fill(state, 31, 60)
        await state.make_durable()
        await state._file.copy()
        meta = state.meta
        await crashed(directory, tmp_path / "after")
    (tmp_path / "after" / "state-1.db").write_bytes(before)
    async with opened(tmp_path / "after") as state:
        assert state.meta == meta
        assert await state.scrub()


@pytest.mark.parametrize("connect", [connect_writer, connect_reader, connect_copier])
def test_a_connection_that_cannot_be_set_up_is_closed(
    connect: Callable[[Path], sqlite3.Connection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[sqlite3.Connection] = []

    class Kept(sqlite3.Connection):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Kept))
    (tmp_path / "state-1.db").write_bytes(b"This is no database. " * 1_000)
    with pytest.raises(sqlite3.DatabaseError):
        connect(tmp_path / "state-1.db")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        made[0].execute("SELECT 1")
