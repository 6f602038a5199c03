"""Saving what a fork cut off, and beginning anew: at each step a crash may come."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest

from kvnode.base.errors import InvalidRequest, StorageFailed
from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.storage.fork_file import ForkFiles, ForkHeader, read_fork
from kvnode.storage.log import Log
from kvnode.storage.record import Record, RecordKind, decode_hard_state, decode_segment
from kvnode.storage.rejoin import decide_to_rejoin, rejoin_if_decided
from kvnode.storage.system_disk import SystemDisk
from tests.simulation.disk import DiskStopped, SimulatedDisk
from tests.simulation.state import SimulatedState
from tests.unit.storage.log_model import end_tasks, entry
from tests.unit.storage.state_helpers import ManualClock

HEADER = ForkHeader("n1", "cluster", 1, 4, 5, 7, 123)
ENTRIES = [Entry(3, index, EntryKind.DATA, b"%d" % index) for index in (5, 6, 7)]
MEMBERSHIP = b'{"format": 1, "min_commit_dcs": 1, "members": []}'
PROMISE = HardState(7, 2, 9, 2, 77)


async def saved(disk: SimulatedDisk) -> tuple[str, bytes]:
    disk.make_directory("data")
    path = await ForkFiles(disk, "data").save(HEADER, ENTRIES)
    file = disk.open(path)
    return path, file.read(0, file.size())


async def test_a_fork_file_gives_back_what_was_saved() -> None:
    path, data = await saved(SimulatedDisk(Random(1)))
    header, entries = read_fork(data, path)
    assert header == HEADER and list(entries) == ENTRIES and path.endswith("epoch-1-from-5-to-7.fork")


async def test_a_fork_file_is_durable_once_it_is_saved() -> None:
    disk = SimulatedDisk(Random(1))
    path, data = await saved(disk)
    file = disk.crash().open(path)
    assert file.read(0, file.size()) == data


async def test_the_folder_of_fork_files_is_durable_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync_directory = SimulatedDisk.sync_directory

    async def noted(self: SimulatedDisk, path: str) -> None:
        synced.append(path)
        await sync_directory(self, path)

    monkeypatch.setattr(SimulatedDisk, "sync_directory", noted)
    await saved(SimulatedDisk(Random(1)))
    assert synced == ["data/forks", "data"]


@pytest.mark.parametrize("hurt", ["cut", "flip", "head", "other"])
async def test_a_damaged_fork_file_says_so(hurt: str) -> None:
    path, data = await saved(SimulatedDisk(Random(1)))
    spoiled = {
        "cut": data[:-40],
        "flip": data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
        "head": b"{" + data[20:],
        "other": b'{"format": 9}\n',
    }[hurt]
    with pytest.raises(InvalidRequest) as caught:
        _, entries = read_fork(spoiled, path)
        list(entries)
    assert caught.value.code == "FORK_FILE_INVALID"


class Forgetful(Random):
    """Of what was applied and not made durable a crash leaves nothing."""

    def randint(self, a: int, b: int) -> int:
        return a


def state_at(directory: Path) -> SimulatedState:
    state = SimulatedState(directory, clock=ManualClock())
    state.apply({}, applied_index=0, applied_term=0, log_time_ms=0, epoch=1, membership=b"old")
    state.apply({}, applied_index=9, applied_term=3, log_time_ms=5, epoch=1)
    return state


async def test_whenever_it_crashes_the_node_begins_anew_and_keeps_its_promises(tmp_path: Path) -> None:
    done, step = False, 0
    while not done:
        step += 1
        disk = SimulatedDisk(Random(step))
        disk.make_directory("data")
        log = await Log.open("data/log", disk, segment_bytes=4_096)
        await log.append([entry(index, 3) for index in range(1, 10)], PROMISE)
        state = state_at(tmp_path / str(step))
        await decide_to_rejoin(disk, "data", MEMBERSHIP)
        disk.stop_at = disk.operations_count + step if hasattr(disk, "operations_count") else step
        try:
            await rejoin_if_decided(disk, "data", log, state)  # type: ignore[arg-type]
            done = True
        except DiskStopped:
            pass
        disk.stop_at = None
        await end_tasks()
        disk, state = disk.crash(), state.crash(Forgetful())
        log = await Log.open("data/log", disk, segment_bytes=4_096)
        await rejoin_if_decided(disk, "data", log, state)  # type: ignore[arg-type]
        assert log.damage is None and (log.first_index(), log.last_index()) == (1, 0)
        assert log.hard_state == PROMISE._replace(commit=0)
        assert (state.meta.applied_index, state.meta.epoch, state.meta.membership) == (0, 1, MEMBERSHIP)
        assert not await rejoin_if_decided(disk, "data", log, state)  # type: ignore[arg-type]
        await log.close()
    assert step > 5, "no step was interrupted"


async def test_a_decision_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "rejoin.json").mkdir(parents=True)  # what opens and cannot be read, to root too
    disk = SystemDisk()
    log = await Log.open(str(data / "log"), disk, segment_bytes=4_096)
    with pytest.raises(StorageFailed, match=r"rejoin\.json: Is a directory; look at the disk"):
        await rejoin_if_decided(disk, str(data), log, state_at(tmp_path / "state"))  # type: ignore[arg-type]
    await log.close()


def test_hard_states_of_before_epochs_are_read() -> None:
    old = Record(0, 0, RecordKind.HARD_STATE, 0, 0, 0, 0, struct.pack("<QQQ", 7, 2, 9), 0)
    assert decode_hard_state(old) == HardState(7, 2, 9)
    head = Record(0, 0, RecordKind.SEGMENT, 0, 0, 0, 0, struct.pack("<IQQQQQ", 1, 4, 88, 7, 2, 9), 0)
    assert decode_segment(head).hard_state == HardState(7, 2, 9)
