"""What the log shows: bounds, terms, sizes, across segments and with any cache."""

from __future__ import annotations

from random import Random

import pytest

from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.storage.log import Log
from kvnode.storage.recent_entries import RecentEntries
from kvnode.storage.record import Encoder, RecordKind, find_record, read_record
from kvnode.storage.segment import segment_name, segment_sequence
from kvnode.storage.term_runs import TermRuns
from tests.simulation.disk import SimulatedDisk
from tests.unit.storage.log_model import DIRECTORY, SEGMENT_BYTES, entry

LAST = 60


@pytest.fixture(params=[0, 3_000, 1 << 20])
async def log(request: pytest.FixtureRequest) -> Log:
    """60 entries of 100 bytes over several segments, one hole of a truncation, the term changing every 10."""
    log = await Log.open(DIRECTORY, SimulatedDisk(Random(1)), segment_bytes=SEGMENT_BYTES, cache_bytes=request.param)
    for index in range(1, LAST + 1):
        await log.append([entry(index, 1 + index // 10, b"%100d" % index)], HardState(1 + index // 10, 0, 0))
        if index == 25:
            await log.append([entry(24, 3, b"%100d" % 24), entry(25, 3, b"%100d" % 25)], None)
    return log


def indexes(entries: list[Entry]) -> list[int]:
    return [one.index for one in entries]


async def test_entries_keeps_to_its_bounds(log: Log) -> None:
    for low in range(1, LAST + 1):
        for high in (low + 1, low + 7, LAST + 1, LAST + 50):
            wanted = list(range(low, min(high, LAST + 1)))
            assert indexes(log.entries(low, high, 1 << 30)) == wanted
            assert indexes(log.entries(low, high, 350)) == wanted[:3]
            assert indexes(log.entries(low, high, 300)) == wanted[:3]
            assert indexes(log.entries(low, high, 0)) == wanted[:1]
    assert log.entries(0, 5, 100) == log.entries(LAST + 1, LAST + 5, 100) == log.entries(5, 5, 100) == []
    assert all(one.data == b"%100d" % one.index for one in log.entries(1, LAST + 1, 1 << 30))


async def test_terms(log: Log) -> None:
    assert [log.term(index) for index in range(LAST + 2)] == [
        0, *(3 if index == 24 else 1 + index // 10 for index in range(1, LAST + 1)), None,
    ]  # fmt: skip


async def test_compaction_drops_whole_segments_and_keeps_the_term_before_the_first(log: Log) -> None:
    for up_to in (0, 5, 24, 40, LAST, LAST + 10):
        before = log.size_bytes
        await log.compact(up_to)
        first = log.first_index()
        assert first <= up_to + 1
        assert log.size_bytes <= before
        assert log.term(first - 1) == (1 + (first - 1) // 10 if first > 1 else 0)
        assert log.term(first - 2) is None or first == 1
        assert indexes(log.entries(first, LAST + 1, 1 << 30)) == list(range(first, LAST + 1))
    assert log.first_index() > 40


async def test_index_at_tail_bytes_leads_compaction_under_the_bound(log: Log) -> None:
    total = log.size_bytes
    assert log.index_at_tail_bytes(total) == 1
    for bound in range(total, 0, -500):
        keep_from = log.index_at_tail_bytes(bound)
        await log.compact(keep_from - 1)
        assert log.first_index() <= max(keep_from, 1)
        assert log.size_bytes <= max(bound, 2 * SEGMENT_BYTES)
    assert log.last_index() == LAST


async def test_a_hard_state_outlives_all_segments_it_was_written_in(log: Log) -> None:
    await log.append([], HardState(50, 3, 10))
    disk = log._disk
    for index in range(LAST + 1, 4 * LAST):
        await log.append([entry(index, 50, b"x" * 100)], None)
    await log.compact(4 * LAST - 2)
    await log.reset(1_000, 50)
    await log.close()
    reopened = await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES)
    assert reopened.hard_state == HardState(50, 3, 1_000)
    assert (reopened.first_index(), reopened.last_index(), reopened.term(1_000)) == (1_001, 1_000, 50)


async def test_a_commit_index_alone_costs_no_write() -> None:
    disk = SimulatedDisk(Random(1))
    log = await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES)
    await log.append([entry(1), entry(2)], HardState(1, 0, 0))
    before = disk.operations_count
    await log.append([], HardState(1, 0, 2), sync=False)
    assert disk.operations_count == before
    assert log.hard_state.commit == 2
    await log.close()
    assert (await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES)).hard_state.commit == 2


async def test_an_append_is_one_sync() -> None:
    disk = SimulatedDisk(Random(1))
    log = await Log.open(DIRECTORY, disk, segment_bytes=1 << 20)
    before = disk.syncs_count
    await log.append([entry(index) for index in range(1, 100)], HardState(1, 2, 0))
    assert disk.syncs_count == before + 1
    await log.append([entry(index, 2) for index in range(50, 100)], HardState(2, 0, 0))  # a truncation too
    assert disk.syncs_count == before + 2


async def test_a_batch_larger_than_a_segment() -> None:
    disk = SimulatedDisk(Random(1))
    log = await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES, cache_bytes=0)
    batch = [entry(index, 1, bytes([index]) * 300_000) for index in range(1, 4)]
    await log.append(batch, HardState(1, 0, 0))
    await log.append([entry(4)], None)
    assert log.entries(1, 4, 1 << 30) == batch
    await log.close()
    log = await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES)
    assert log.entries(1, 5, 1 << 30) == [*batch, entry(4)]


async def test_every_kind_of_entry_comes_back() -> None:
    disk = SimulatedDisk(Random(1))
    log = await Log.open(DIRECTORY, disk, cache_bytes=0, segment_bytes=SEGMENT_BYTES)
    entries = [Entry(1, 1 + at, kind, b"" if kind is EntryKind.NOOP else b"m") for at, kind in enumerate(EntryKind)]
    await log.append(entries, HardState(1, 0, 0))
    assert log.entries(1, 10, 1 << 30) == entries


def test_recent_entries_stay_under_their_bound_and_in_order() -> None:
    recent = RecentEntries(20_000)
    for index in range(1, 10_000):
        recent.append(entry(index, 1, b"x" * 50))
        if index % 97 == 0:
            recent.truncate(index - 1)
            recent.append(entry(index, 2, b"y"))
    first = recent.first_index()
    assert first is not None and 10_000 - first <= 20_000 // 200
    assert indexes(recent.slice(first, 10_000)) == list(range(first, 10_000))
    assert indexes(recent.slice(first + 5, first + 8)) == [first + 5, first + 6, first + 7]
    recent.truncate(0)
    assert recent.first_index() is None and recent.slice(1, 5) == []
    recent.append(entry(1, 1, b"x" * 30_000))
    assert recent.first_index() == 1


def test_recent_entries_that_were_forgotten_take_no_room() -> None:
    recent = RecentEntries(20_000)
    for _ in range(10):
        recent.clear()
        for index in range(1, 11):
            recent.append(entry(index, 1, b"x" * 1_500))
        recent.truncate(5)
        for index in range(6, 11):
            recent.append(entry(index, 2, b"x" * 1_500))
        assert recent.first_index() == 1


def test_term_runs() -> None:
    runs = TermRuns(5, 2)
    for index, term in ((6, 2), (7, 3), (8, 3), (9, 7)):
        runs.append(index, term)
    assert [runs.term(index) for index in range(4, 10)] == [None, 2, 2, 3, 3, 7]
    runs.compact(8)
    assert [runs.term(index) for index in range(7, 10)] == [None, 3, 7]
    runs.truncate(8)
    runs.append(9, 9)
    assert [runs.term(8), runs.term(9)] == [3, 9]


def test_records_behind_damage_are_found() -> None:
    encoder = Encoder(previous=7, durable=3)
    offsets = [encoder.add_entry(entry(index, 1, b"KL" * index)) for index in range(1, 6)]
    data = bytearray(encoder.finish()[0])
    first = read_record(bytes(data), 0)
    assert first is not None and (first.previous, first.durable, first.kind) == (7, 3, RecordKind.ENTRY)
    data[offsets[1] + 8] ^= 0xFF  # a length
    assert read_record(bytes(data), offsets[1]) is None
    found = find_record(bytes(data), offsets[1])
    assert found is not None and found[0] == offsets[2]
    assert find_record(bytes(data), offsets[4] + 1) is None
    assert all(read_record(bytes(data[:-9]), at) is None for at in range(offsets[4], len(data)))


def test_segment_names() -> None:
    assert segment_sequence(segment_name(17)) == 17
    assert [segment_sequence(name) for name in ("mark", "17.log", "0" * 15 + "x.log", "0" * 16)] == [None] * 4
