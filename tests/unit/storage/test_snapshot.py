"""Snapshots: made beside apply, moved in chunks, installed in one instant."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvnode.base.errors import InvalidRequest, StateDamaged, StorageFailed, Unavailable
from kvnode.base.invariant import InvariantViolation
from kvnode.storage.snapshot import hash_file
from kvnode.storage.snapshot_transfer import SnapshotReader, SnapshotReceiver
from kvnode.storage.state import State
from kvnode.storage.state_mark import DurableMark
from tests.unit.storage.state_helpers import fill, flip_bit, opened, put, row


async def test_a_snapshot_is_the_state_at_one_index(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        state.apply({}, applied_index=1, applied_term=7, log_time_ms=10, epoch=3, membership=b"members")
        state.apply({b"a": row(b"a")}, applied_index=2, applied_term=8, log_time_ms=20, epoch=3)
        snapshot = await state.create_snapshot()
        assert (snapshot.index, snapshot.term, snapshot.log_time_ms, snapshot.epoch) == (2, 8, 20, 3)
        assert snapshot.membership == b"members"
        assert snapshot.size_bytes == snapshot.path.stat().st_size
        assert snapshot.file_digest == hash_file(snapshot.path)
        assert state.snapshot == snapshot


async def test_a_snapshot_beside_apply_is_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.storage.snapshot.SNAPSHOT_COPY_PAGES_COUNT", 3)
    async with opened(tmp_path / "one") as state:
        fill(state, 1, 300)
        making = asyncio.ensure_future(state.create_snapshot())
        index, seen = 300, {}
        while not making.done():
            index += 1
            fill(state, index, index)
            seen[index] = state.meta
            if state.maintenance_due:
                await state.maintain()
            await asyncio.sleep(0)
        snapshot = await making
        assert 300 < snapshot.index < index, "it was made while the state went on"
        async with opened(tmp_path / "two") as other:
            other.incoming_directory.mkdir()
            received = snapshot.path.rename(other.incoming_directory / "received")
            assert await other.install_snapshot(received, index=snapshot.index, term=1) == seen[snapshot.index]
            assert await other.scrub()
            fill(other, snapshot.index + 1, index)
            assert other.meta == state.meta


async def test_a_mark_that_an_earlier_attempt_left_says_nothing_of_what_is_installed(tmp_path: Path) -> None:
    """By its word the state that is installed now would have lost what was durable."""
    async with opened(tmp_path / "one") as state:
        fill(state, 1, 10)
        snapshot = await state.create_snapshot()
        async with opened(tmp_path / "two") as other:
            leftover = DurableMark(tmp_path / "two" / "state-2.mark")
            leftover.write(1_000)
            leftover.close()
            other.incoming_directory.mkdir()
            received = snapshot.path.rename(other.incoming_directory / "received")
            await other.install_snapshot(received, index=10, term=1)
            assert other.durable_applied == 10
    async with opened(tmp_path / "two") as other:
        assert other.meta.applied_index == 10


async def test_only_the_newest_is_kept_and_its_readers_read_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 30)
        first = await state.create_snapshot()
        reader = SnapshotReader(first)
        start = await reader.read(0, 4096)
        fill(state, 31, 60)
        second = await state.create_snapshot()
        assert list((tmp_path / "snapshots").iterdir()) == [second.path]
        rest = await reader.read(4096, first.size_bytes)
        assert await reader.read(first.size_bytes) == b""
        reader.close()
        copy = tmp_path / "copy"
        copy.write_bytes(start + rest)
        assert hash_file(copy) == first.file_digest
    async with opened(tmp_path) as state:
        assert list((tmp_path / "snapshots").iterdir()) == []
        assert state.snapshot is None


async def test_a_damaged_state_gives_no_snapshot(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 10)
        kept = await state.create_snapshot()
        state._file.tables.connection.execute("UPDATE rows SET value = x'00' WHERE key = CAST('key007' AS BLOB)")
        with pytest.raises(StateDamaged, match="does not match its digest"):
            await state.create_snapshot()
        assert list((tmp_path / "snapshots").iterdir()) == [kept.path]


async def test_stopping_does_not_wait_for_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.storage.snapshot.SNAPSHOT_COPY_PAGES_COUNT", 1)
    monkeypatch.setattr("kvnode.storage.snapshot.SNAPSHOT_COPY_PAUSE_MS", 50)
    state = await State.open(tmp_path, clock=_clock())
    fill(state, 1, 500)
    making = asyncio.ensure_future(state.create_snapshot())
    await asyncio.sleep(0.1)
    await asyncio.wait_for(state.close(), 2)
    with pytest.raises(Unavailable, match="stopping"):
        await making
    assert list((tmp_path / "snapshots").iterdir()) == []


async def test_a_cancelled_snapshot_ends_at_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnode.storage.snapshot.SNAPSHOT_COPY_PAGES_COUNT", 1)
    monkeypatch.setattr("kvnode.storage.snapshot.SNAPSHOT_COPY_PAUSE_MS", 50)
    async with opened(tmp_path) as state:
        fill(state, 1, 500)
        making = asyncio.ensure_future(state.create_snapshot())
        await asyncio.sleep(0.1)
        making.cancel()
        async with asyncio.timeout(1):
            with pytest.raises(asyncio.CancelledError):
                await making
        assert list((tmp_path / "snapshots").iterdir()) == []
        put(state, 501, {})


def _clock():  # type: ignore[no-untyped-def]
    from kvnode.base.clock import SystemClock

    return SystemClock()


# Transfer.


async def _transfer(
    source: State, directory: Path, chunk: int = 1_000, stop_after: int | None = None
) -> SnapshotReceiver:
    snapshot = source.snapshot
    assert snapshot is not None
    reader = SnapshotReader(snapshot)
    receiver = SnapshotReceiver(
        directory,
        snapshot_id=snapshot.snapshot_id,
        size_bytes=snapshot.size_bytes,
        file_digest=snapshot.file_digest,
    )
    while not receiver.complete and (stop_after is None or receiver.held_bytes < stop_after):
        await receiver.write(receiver.held_bytes, await reader.read(receiver.held_bytes, 1_000))
    reader.close()
    return receiver


async def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        fill(one, 1, 30)
        await one.create_snapshot()
        receiver = await _transfer(one, two.incoming_directory, stop_after=5_500)
        receiver.close()
        receiver.close()
        assert receiver.held_bytes == 6_000
        (two.incoming_directory / "1-1-another.part").write_bytes(b"of another snapshot")
        receiver = await _transfer(one, two.incoming_directory, stop_after=0)
        assert receiver.held_bytes == 6_000
        receiver.close()
        receiver = await _transfer(one, two.incoming_directory)
        path = await receiver.finish()
        assert list(two.incoming_directory.iterdir()) == [path]
        assert await two.install_snapshot(path, index=30, term=1) == one.meta
        assert two.scan(b"", b"\xff", 9_999) == one.scan(b"", b"\xff", 9_999)


async def test_a_chunk_out_of_place_is_refused(tmp_path: Path) -> None:
    receiver = SnapshotReceiver(tmp_path / "in", snapshot_id="1-2-ab", size_bytes=10, file_digest=b"")
    await receiver.write(0, b"01234")
    for offset, data in ((0, b"0"), (6, b"6"), (5, b"567890")):
        with pytest.raises(InvalidRequest, match="send from 5"):
            await receiver.write(offset, data)
    assert receiver.held_bytes == 5
    receiver.close()


@pytest.mark.parametrize("name", ["", "../state-1", "a/b", "x" * 200, "a.db"])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be a file's name"):
        SnapshotReceiver(tmp_path, snapshot_id=name, size_bytes=1, file_digest=b"")


async def test_what_arrives_damaged_is_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path / "one") as one:
        fill(one, 1, 30)
        await one.create_snapshot()
        receiver = await _transfer(one, tmp_path / "in")
        flip_bit(receiver.path, 9_000)
        with pytest.raises(StorageFailed, match="sent again from the start") as caught:
            await receiver.finish()
        assert caught.value.code == "SNAPSHOT_DAMAGED"
        assert list((tmp_path / "in").iterdir()) == []


async def test_more_bytes_than_announced_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"0123456789")
    receiver = SnapshotReceiver(tmp_path, snapshot_id="a", size_bytes=5, file_digest=b"")
    assert receiver.held_bytes == 0
    receiver.close()


# Install.


async def _snapshot_file(directory: Path, last: int = 40) -> Path:
    async with opened(directory / "source") as source:
        fill(source, 1, last)
        snapshot = await source.create_snapshot()
        return snapshot.path.rename(directory / "snapshot")


async def test_an_install_takes_the_place_of_the_state(tmp_path: Path) -> None:
    path = await _snapshot_file(tmp_path)
    async with opened(tmp_path / "state") as state:
        put(state, 3, {b"only here": row(b"only here")})
        meta = await state.install_snapshot(path, index=40, term=1)
        assert meta == state.meta
        assert state.durable_applied == 40
        assert state.get(b"only here") is None
        fill(state, 41, 50)
        assert await state.scrub()
        meta = state.meta
        names = {name.name for name in (tmp_path / "state").iterdir()}
        assert not any(name.startswith("state-1.") for name in names)
    async with opened(tmp_path / "state") as state:
        assert state.meta == meta


async def test_a_wrong_or_damaged_snapshot_leaves_the_old_state(tmp_path: Path) -> None:
    path = await _snapshot_file(tmp_path)
    async with opened(tmp_path / "state") as state:
        before = put(state, 3, {b"a": row(b"a")})
        with pytest.raises(StateDamaged, match="it holds index 40, not 41 of term 1"):
            await state.install_snapshot(path, index=41, term=1)
        flip_bit(path, path.read_bytes().index(b"40404040"))
        with pytest.raises(StateDamaged, match="does not match its digest"):
            await state.install_snapshot(path, index=40, term=1)
        path.write_bytes(b"no database")
        with pytest.raises(StateDamaged, match="cannot be read as a state"):
            await state.install_snapshot(path, index=40, term=1)
        assert state.meta == before
        put(state, 4, {})


async def test_apply_is_shut_out_during_an_install(tmp_path: Path) -> None:
    path = await _snapshot_file(tmp_path)
    async with opened(tmp_path / "state") as state:
        installing = asyncio.ensure_future(state.install_snapshot(path, index=40, term=1))
        while not state._exclusive.locked():
            await asyncio.sleep(0)
        with pytest.raises(InvariantViolation):
            put(state, 1, {})
        installing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await installing
        async with state._exclusive:
            assert state.meta.applied_index == 40, "an install is carried through"


async def test_reads_off_the_loop_survive_an_install(tmp_path: Path) -> None:
    path = await _snapshot_file(tmp_path)
    async with opened(tmp_path / "state") as state:
        fill(state, 1, 3)
        rows = len(state.scan(b"", b"\xff", 999))
        counts = [asyncio.ensure_future(state.count(b"", b"\xff", 0)) for _ in range(20)]
        await state.install_snapshot(path, index=40, term=1)
        for count in await asyncio.gather(*counts, return_exceptions=True):
            assert count == rows or isinstance(count, Unavailable)
        assert await state.count(b"", b"\xff", 0) == len(state.scan(b"", b"\xff", 9_999))


_KILLED = """
import asyncio, os, pathlib, signal, sys
from kvnode.base.clock import SystemClock
from kvnode.storage.state import State
from kvnode.storage.state_mark import DurableMark

directory, snapshot, deadly = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
calls = 0

def deadly_before(function):
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call

async def main():
    state = await State.open(directory, clock=SystemClock())
    for name in ("open", "fsync", "fdatasync", "replace", "unlink", "pwrite", "write"):
        setattr(os, name, deadly_before(getattr(os, name)))
    await state.install_snapshot(snapshot, index=40, term=1)
    print(calls, flush=True)
    await state.close()

asyncio.run(main())
"""


def _install_and_die(directory: Path, snapshot: Path, at: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(directory), str(snapshot), str(at)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout


async def test_an_install_killed_at_each_step_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    async with opened(tmp_path / "before") as state:
        old = put(state, 3, {b"a": row(b"a")})
    path = await _snapshot_file(tmp_path)
    content = path.read_bytes()
    connection = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    new_index = connection.execute("SELECT applied_index FROM meta").fetchone()[0]
    connection.close()
    found, step, finished = [], 0, False
    while not finished:
        step += 1
        directory = tmp_path / f"killed-{step}"
        await asyncio.to_thread(_copy_tree, tmp_path / "before", directory)
        incoming = directory / "incoming" / "received.part"
        incoming.parent.mkdir()
        incoming.write_bytes(content)
        code, _ = await asyncio.to_thread(_install_and_die, directory, incoming, step)
        finished = code == 0
        async with opened(directory) as state:
            found.append(state.meta.applied_index)
            assert state.meta == old if state.meta.applied_index == 3 else state.meta.applied_index == new_index
            assert await state.scrub()
            generations = {name.name.split(".")[0] for name in directory.glob("state-*")}
            assert len(generations) == 1, "only one generation is left"
            if state.meta.applied_index == 3:  # and the install can be done again
                incoming.write_bytes(content)
                await state.install_snapshot(incoming, index=40, term=1)
            fill(state, 41, 42)
    assert found == sorted(found), "the switch is one instant"
    assert found[0] == 3
    assert found[-1] == 40
    assert len(found) > 10


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


async def test_a_write_that_was_given_up_reaches_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread goes on when a broken stream cancels it, and descriptors are given out again."""
    begun, go, pwrite = threading.Event(), threading.Event(), os.pwrite

    def late(descriptor: int, data: memoryview, offset: int) -> int:
        begun.set()
        assert go.wait(10)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", late)
    receiver = SnapshotReceiver(tmp_path / "in", snapshot_id="one", size_bytes=6, file_digest=b"")
    writing = asyncio.ensure_future(receiver.write(0, b"chunks"))
    await asyncio.to_thread(begun.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    receiver.close()
    others = [(tmp_path / f"other{number}").open("w+b") for number in range(4)]
    go.set()
    async with asyncio.timeout(10):
        while not receiver.path.stat().st_size and not any(other.seek(0, 2) for other in others):
            await asyncio.sleep(0.01)
    for other in others:
        other.seek(0)
        assert other.read() == b""
        other.close()
    assert receiver.path.read_bytes() == b"chunks"
