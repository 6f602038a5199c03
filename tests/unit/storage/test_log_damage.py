"""Bytes that had been fsynced and are damaged or missing are told apart from a torn tail, in every region."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from kvnode.base.errors import LogDamaged
from kvnode.codec.entry import HardState
from kvnode.storage.log import Log
from kvnode.storage.record import read_record
from kvnode.storage.segment import segment_name
from kvnode.storage.system_disk import SystemDisk
from tests.simulation.disk import SimulatedDisk
from tests.unit.storage.log_model import DIRECTORY, SEGMENT_BYTES, entry

MARK = f"{DIRECTORY}/mark"
SEGMENTS = [f"{DIRECTORY}/{segment_name(sequence)}" for sequence in range(6)]
LAST = 20


def open_log(disk: SimulatedDisk, **options: bool):
    return Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES, **options)


async def written() -> SimulatedDisk:
    """Segments 1 to 3, of which the third is half full; 20 entries; everything synced, closed."""
    disk = SimulatedDisk(Random(1))
    log = await open_log(disk)
    for index in range(1, LAST + 1):
        await log.append([entry(index, 1, b"x" * 400)], HardState(1, 0, index - 1))
    await log.close()
    assert len([name for name in disk.list_directory(DIRECTORY) if name.endswith(".log")]) in (3, 4)
    return disk


def used_bytes(disk: SimulatedDisk, path: str) -> int:
    data, offset = disk.contents(path), 0
    while (record := read_record(data, offset)) is not None:
        offset = record.end
    return offset


def last_record_offset(disk: SimulatedDisk, path: str) -> int:
    data, offset, last = disk.contents(path), 0, 0
    while (record := read_record(data, offset)) is not None:
        offset, last = record.end, offset
    return last


async def damage_after(disk: SimulatedDisk) -> str | None:
    """Opens it; checks what a damaged log must do."""
    before = {path: disk.contents(path) for path in [*SEGMENTS, MARK] if disk.exists(path)}
    log = await open_log(disk)
    if log.damage is not None:
        with pytest.raises(LogDamaged, match="new node id"):
            await log.append([entry(log.last_index() + 1)], HardState(9, 0, 0))
        with pytest.raises(LogDamaged):
            await log.reset(100, 1)
        await log.compact(LAST)
        kept = log.entries(log.first_index(), LAST + 1, 1 << 30)
        assert [one.index for one in kept] == list(range(log.first_index(), log.last_index() + 1))
        assert before == {path: disk.contents(path) for path in before}
    await log.close()
    return log.damage


async def test_a_log_that_others_know_to_have_been_longer_is_damaged_from_then_on() -> None:
    disk = await written()
    log = await open_log(disk)
    with pytest.raises(LogDamaged, match=r"ends at index 20, .* up to 31: .* old copy.*member replace"):
        log.condemn(31)
    with pytest.raises(LogDamaged):
        await log.append([entry(LAST + 1)], HardState(9, 0, 0))
    await log.close()
    assert "up to index 31" in (await damage_after(disk) or "")


async def test_a_log_that_is_condemned_during_an_fsync_stays_so() -> None:
    disk, held = await written(), asyncio.Event()
    log = await open_log(disk)
    disk.sleep = lambda _seconds: held.wait()
    append = asyncio.ensure_future(log.append([entry(LAST + 1)], HardState(1, 0, LAST)))
    await asyncio.sleep(0)
    with pytest.raises(LogDamaged):
        log.condemn(31)
    held.set()
    with pytest.raises(LogDamaged):  # it is on the disk, and nobody is told so: its mark would be the older one
        await append
    disk.sleep = None
    await log.close()
    log = await open_log(disk.kill())
    assert "up to index 31" in (log.damage or "")
    await log.close()


@pytest.mark.parametrize("segment", [1, 2, 3])
async def test_a_flipped_bit_before_the_mark_is_damage(segment: int) -> None:
    used = used_bytes(await written(), SEGMENTS[segment])
    source = Random(segment)
    padding = 0
    for offset in [*range(200), *(source.randrange(used) for _ in range(150)), *range(used - 60, used)]:
        disk = await written()
        disk.flip_bit(SEGMENTS[segment], offset, source.randrange(8))
        if await damage_after(disk) is None:
            padding += 1
    assert padding <= 20  # only the zeros between records, which hold nothing, may flip unseen


async def test_a_flipped_bit_behind_the_end_is_cut() -> None:
    used = used_bytes(await written(), SEGMENTS[3])
    for offset in (used, used + 1, used + 40, SEGMENT_BYTES - 1):
        disk = await written()
        disk.flip_bit(SEGMENTS[3], offset, 3)
        log = await open_log(disk)
        assert log.damage is None
        assert log.last_index() == LAST
        assert not any(disk.contents(SEGMENTS[3])[used:])
        await log.append([entry(LAST + 1)], HardState(1, 0, LAST))
        await log.close()
        assert (await open_log(disk)).last_index() == LAST + 1


async def test_any_flipped_bit_in_the_mark_harms_nothing() -> None:
    for offset in (*range(44), *range(4_096, 4_096 + 44)):
        disk = await written()
        disk.flip_bit(MARK, offset, offset % 8)
        log = await open_log(disk)
        assert (log.damage, log.last_index()) == (None, LAST)
        await log.close()


async def test_a_mark_damaged_in_both_slots_or_missing_is_damage() -> None:
    disk = await written()
    disk.flip_bit(MARK, 5)
    disk.flip_bit(MARK, 4_096 + 5)
    assert "mark is missing or damaged" in str(await damage_after(disk))
    disk = await written()
    disk.remove(MARK)
    assert "mark is missing or damaged" in str(await damage_after(disk))


@pytest.mark.parametrize("segment", [1, 2, 3])
async def test_a_missing_segment_is_damage(segment: int) -> None:
    disk = await written()
    disk.remove(SEGMENTS[segment])
    assert await damage_after(disk) is not None


async def test_no_segment_left_is_damage() -> None:
    disk = await written()
    for path in SEGMENTS:
        if disk.exists(path):
            disk.remove(path)
    assert "missing" in str(await damage_after(disk))


async def test_a_swapped_pair_of_segments_is_damage() -> None:
    disk = await written()
    disk.rename(SEGMENTS[1], f"{DIRECTORY}/aside")
    disk.rename(SEGMENTS[2], SEGMENTS[1])
    disk.rename(f"{DIRECTORY}/aside", SEGMENTS[2])
    assert await damage_after(disk) is not None


async def test_a_cut_off_file_is_damage() -> None:
    disk = await written()
    disk.open(SEGMENTS[3]).truncate(used_bytes(disk, SEGMENTS[3]) - 9)
    assert await damage_after(disk) is not None


async def test_an_older_copy_of_a_segment_is_damage() -> None:
    disk = SimulatedDisk(Random(1))
    log = await open_log(disk)
    await log.append([entry(1)], HardState(1, 0, 0))
    older = disk.contents(SEGMENTS[1])
    await log.append([entry(2)], None)
    await log.close()
    disk.open(SEGMENTS[1]).write(0, older)
    assert "index 2" in str(await damage_after(disk))


async def with_old_mark(mark_bytes_ago: int) -> tuple[SimulatedDisk, int]:
    """A mark that lost its last writes in a power loss: only the records can tell."""
    disk = SimulatedDisk(Random(1))
    log = await open_log(disk)
    await log.append([entry(1)], HardState(1, 0, 0))
    mark = disk.contents(MARK)
    for index in range(2, 3 + mark_bytes_ago):
        await log.append([entry(index, 1, b"12345678")], None)  # of a size that needs no padding
    await log.close()
    disk.open(MARK).write(0, mark)
    return disk, log.last_index()


async def test_a_file_that_lost_nothing_but_the_last_padding_is_whole(tmp_path: Path) -> None:
    directory, disk = str(tmp_path), SystemDisk()
    log = await Log.open(directory, disk, segment_bytes=SEGMENT_BYTES)
    await log.append([entry(1, 1, b"x" * 401)], HardState(1, 0, 0))
    await log.close()
    segment = tmp_path / segment_name(1)
    segment.write_bytes(segment.read_bytes().rstrip(b"\0"))
    for last in (2, 3):
        log = await Log.open(directory, disk, segment_bytes=SEGMENT_BYTES)
        assert (log.damage, log.last_index()) == (None, last - 1)
        await log.append([entry(last, 1)], HardState(1, 0, 0))
        await log.close()


async def test_without_the_newest_mark_damage_before_the_last_batch_is_found() -> None:
    disk, _ = await with_old_mark(5)
    last = last_record_offset(disk, SEGMENTS[1])
    first_unmarked = used_bytes(disk, SEGMENTS[1]) - last  # records are of equal size
    for offset in range(last - 3 * first_unmarked, last - 8, 7):
        disk, _ = await with_old_mark(5)
        disk.flip_bit(SEGMENTS[1], offset)
        assert await damage_after(disk) is not None, offset


async def test_without_the_newest_mark_the_last_batch_looks_torn_and_is_cut() -> None:
    disk, last_index = await with_old_mark(5)
    disk.flip_bit(SEGMENTS[1], last_record_offset(disk, SEGMENTS[1]) + 3)
    log = await open_log(disk)
    assert (log.damage, log.last_index()) == (None, last_index - 1)


async def test_an_absent_log_is_damage_for_a_node_that_had_one() -> None:
    disk = SimulatedDisk(Random(1))
    log = await open_log(disk, must_exist=True)
    assert "already part of a cluster" in str(log.damage)
    assert (log.first_index(), log.last_index(), log.entries(1, 5, 10)) == (1, 0, [])
    await log.close()
    disk = await written()
    log = await open_log(disk, must_exist=True)
    assert log.damage is None


async def test_an_entry_that_rots_while_the_log_is_open_is_never_returned() -> None:
    disk = await written()
    log = await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES, cache_bytes=0)
    disk.flip_bit(SEGMENTS[2], disk.contents(SEGMENTS[2]).index(b"x" * 400) + 200)
    with pytest.raises(LogDamaged):
        log.entries(1, LAST + 1, 1 << 30)
    assert log.damage is not None
    with pytest.raises(LogDamaged):
        await log.append([entry(LAST + 1)], None)


@pytest.mark.parametrize("slot", [0, 4_096])
async def test_after_a_compaction_either_slot_of_the_mark_may_be_damaged(slot: int) -> None:
    disk = await written()
    log = await open_log(disk)
    await log.compact(LAST)
    first = log.first_index()
    assert first > 1
    disk.flip_bit(MARK, slot + 9)  # not closed: that would write the mark once more
    log = await open_log(disk.kill())
    assert (log.damage, log.first_index(), log.last_index()) == (None, first, LAST)


async def test_a_record_of_another_life_does_not_follow() -> None:
    """The right index at the right place, whole and well, but behind another record than it was written behind."""
    lives = []
    for life in (b"one life", b"another!"):
        disk = SimulatedDisk(Random(1))
        log = await open_log(disk)
        await log.append([entry(1, 1, life)], HardState(1, 0, 0))
        end = log.size_bytes
        if life == b"one life":
            await log.append([entry(2, 1, life)], None)
        await log.close()
        lives.append((disk, end))
    (donor, end), (disk, same_end) = lives
    assert end == same_end
    disk.open(SEGMENTS[1]).write(end, donor.contents(SEGMENTS[1])[end : end + 48])
    log = await open_log(disk)
    assert (log.damage, log.last_index()) == (None, 1)


async def test_a_log_that_was_just_made_is_there_after_a_power_loss() -> None:
    for seed in range(30):
        disk = SimulatedDisk(Random(seed))
        await open_log(disk)
        log = await open_log(disk.crash(), must_exist=True)
        assert (log.damage, log.last_index()) == (None, 0)


async def test_a_first_segment_without_its_head_is_damage_for_a_node_that_had_one() -> None:
    disk = SimulatedDisk(Random(1))
    await open_log(disk)
    young = disk.crash()  # its mark may have lost the position of the head, which was fsynced
    young.open(SEGMENTS[1]).write(0, bytes(SEGMENT_BYTES))
    assert (await open_log(young, must_exist=True)).damage is not None
