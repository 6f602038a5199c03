"""A failed fsync, a failed write, a full disk: the log never says that something is durable which is not."""

from __future__ import annotations

import asyncio
import errno
from random import Random

import pytest

from kvnode.base.errors import StorageFailed
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.entry import HardState
from kvnode.storage.log import Log
from tests.simulation.disk import SimulatedDisk, SimulatedFile
from tests.unit.storage.log_model import DIRECTORY, SEGMENT_BYTES, end_tasks, entry


async def opened(disk: SimulatedDisk) -> Log:
    return await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES)


@pytest.fixture
async def disk() -> SimulatedDisk:
    return SimulatedDisk(Random(3))


async def test_after_a_failed_fsync_the_log_takes_nothing_more(disk: SimulatedDisk) -> None:
    log = await opened(disk)
    await log.append([entry(1)], HardState(1, 0, 0))
    disk.fail_next_sync(".log")
    with pytest.raises(StorageFailed, match="fsync") as caught:
        await log.append([entry(2)], None)
    assert caught.value.code == "STORAGE_FAILED"
    for attempt in (log.append([entry(3)], None), log.append([], HardState(2, 1, 0)), log.reset(9, 1), log.compact(1)):
        with pytest.raises(StorageFailed, match="takes nothing more"):
            await attempt
    await log.close()


@pytest.mark.parametrize("seed", range(20))
async def test_what_a_failed_fsync_lost_is_written_again_at_the_next_start(seed: int) -> None:
    """The kernel shows such pages as they were written and takes them for clean: a bare fsync writes nothing."""
    disk = SimulatedDisk(Random(seed))
    log = await opened(disk)
    await log.append([entry(1)], HardState(1, 0, 0))
    disk.fail_next_sync(".log")
    with pytest.raises(StorageFailed):
        await log.append([entry(2)], None)
    disk = disk.kill()
    log = await opened(disk)
    assert log.last_index() == 2  # shown, hence promised
    log = await opened(disk.crash())
    assert (log.damage, log.last_index()) == (None, 2)


async def test_a_failing_mark_stops_the_log(disk: SimulatedDisk) -> None:
    log = await opened(disk)
    for index in range(1, 30):
        await log.append([entry(index, 1, b"x" * 300)], HardState(1, 0, index - 1))
    disk.fail_next_sync("mark")
    with pytest.raises(StorageFailed):
        await log.compact(20)
    with pytest.raises(StorageFailed):
        await log.append([entry(30)], None)


async def test_a_full_disk_refuses_the_append_that_needs_a_segment_and_recovers(disk: SimulatedDisk) -> None:
    log = await opened(disk)
    disk.capacity_bytes = disk.used_bytes + 100
    index = 1
    with pytest.raises(StorageFailed) as caught:
        while True:
            await log.append([entry(index, 1, b"x" * 300)], HardState(1, 0, 0))
            index += 1
    assert caught.value.code == "DISK_FULL"
    assert "disk is full" in caught.value.message
    assert (log.last_index(), log.hard_state) == (index - 1, HardState(1, 0, 0))
    with pytest.raises(StorageFailed):
        await log.append([entry(index, 1, b"x" * 300)], None)
    disk.capacity_bytes = None
    await log.append([entry(index, 1, b"x" * 300)], None)
    await log.close()
    assert (await opened(disk)).last_index() == index


async def test_a_failed_write_stops_the_log(disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await opened(disk)
    await log.append([entry(1)], HardState(1, 0, 0))

    def torn(self: SimulatedFile, offset: int, data: bytes) -> None:
        raise OSError(errno.EIO, "simulated")

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedFile, "write", torn)
        with pytest.raises(StorageFailed, match="write"):
            await log.append([entry(2)], None)
    assert log.last_index() == 1
    with pytest.raises(StorageFailed):
        await log.append([entry(2)], None)


async def test_a_disk_that_fails_at_the_start_is_named(disk: SimulatedDisk) -> None:
    disk.fail_next_sync("mark")
    with pytest.raises(StorageFailed, match="cannot open the log in /data/log"):
        await opened(disk)


async def test_a_newer_format_is_refused(disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("kvnode.storage.record.FORMAT_VERSION", 3)
        await (await opened(disk)).close()
    with pytest.raises(StorageFailed, match="format 3"):
        await opened(disk)


async def test_a_cancelled_append_leaves_a_log_that_goes_on() -> None:
    disk = SimulatedDisk(Random(1), sleep=asyncio.sleep, sync_seconds=lambda random: 0.002)
    log = await opened(disk)
    for index in range(1, 40):
        task = asyncio.create_task(log.append([entry(log.last_index() + 1, 1, b"x" * 300)], HardState(1, 0, 0)))
        await asyncio.sleep(0.0015 if index % 3 else 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await log.append([entry(log.last_index() + 1)], None)
    last = log.last_index()
    await end_tasks()
    log = await opened(disk.crash())
    assert (log.damage, log.last_index()) == (None, last)
    await log.close()


async def test_what_consensus_must_never_ask_for_stops_the_node(disk: SimulatedDisk) -> None:
    log = await opened(disk)
    await log.append([entry(1), entry(2), entry(3)], HardState(1, 5, 2))
    for entries, hard_state in (
        ([entry(5)], None),  # a gap
        ([entry(2)], None),  # over a committed entry
        ([entry(4), entry(6)], None),
        ([entry(4, 2)], None),  # of a term that was not recorded
        ([], HardState(1, 6, 2)),  # a second vote
        ([], HardState(0, 0, 2)),
    ):
        with pytest.raises(InvariantViolation):
            await log.append(entries, hard_state)
    assert (log.last_index(), log.hard_state) == (3, HardState(1, 5, 2))
