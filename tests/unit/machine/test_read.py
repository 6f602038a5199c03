"""Reads: points, ranges, reverse, keys only, counts, and rows whose time has come."""

import random

from hypothesis import given
from hypothesis import strategies as st

from kvnode.base import limits
from kvnode.codec.row import Row
from kvnode.machine.keyspace import database_prefix
from kvnode.machine.read import read_ranges, read_within
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.fakes import MemoryState, point

NOW = 100


def state_of(rows, database=1):
    state = MemoryState()
    for key, expire_at_ms in rows:
        full = database_prefix(database) + key
        state.rows[full] = Row(full, b"v" + key, 3, bytes(9) + b"\1", expire_at_ms)
    return state


def ask(state, *ranges, database=1):
    response = kv_pb2.ReadResponse()
    read_ranges(state, kv_pb2.ReadRequest(ranges=ranges), database, NOW, response)
    return response.ranges


def test_a_point():
    state = state_of([(b"a", 0), (b"gone", NOW), (b"later", NOW + 1)])
    found, gone, later, absent, keys_only = ask(
        state, point(b"a"), point(b"gone"), point(b"later"), point(b"x"), point(b"a", keys_only=True)
    )
    assert found.entries[0] == kv_pb2.Entry(key=b"a", value=b"va", encoding=3, versionstamp=bytes(9) + b"\1")
    assert not gone.entries and not absent.entries
    assert later.entries[0].expire_at_ms == NOW + 1
    assert keys_only.entries[0] == kv_pb2.Entry(key=b"a", versionstamp=bytes(9) + b"\1")


def test_databases_are_apart():
    state = state_of([(b"a", 0)], database=7)
    assert not ask(state, point(b"a"))[0].entries
    assert ask(state, point(b"a"), database=7)[0].entries


@given(st.data())
def test_ranges_against_a_list(data):
    chance = random.Random(data.draw(st.integers()))
    letters = [bytes([n]) for n in range(97, 117)]
    rows = [(key, chance.choice([0, 0, NOW - 1, NOW, NOW + 1])) for key in letters if chance.random() < 0.7]
    state = state_of(rows)
    low, high = sorted(chance.choices([*letters, b""], k=2))
    limit, reverse = chance.randrange(1, 9), chance.random() < 0.5
    live = [key for key, at in rows if low <= key < high and not 0 < at <= NOW]
    page = limits.SCAN_PAGE_COUNT
    limits.SCAN_PAGE_COUNT = 3
    try:
        listed, counted = ask(
            state,
            kv_pb2.ReadRange(start=low, end=high, limit=limit, reverse=reverse),
            kv_pb2.ReadRange(start=low, end=high, count_only=True),
        )
    finally:
        limits.SCAN_PAGE_COUNT = page
    assert [entry.key for entry in listed.entries] == (live[::-1] if reverse else live)[:limit]
    assert counted.count == len(live) and not counted.entries


def within(state, max_bytes, *ranges):
    response = kv_pb2.ReadResponse()
    return read_within(state, kv_pb2.ReadRequest(ranges=ranges), 1, NOW, response, max_bytes), response.ranges


def test_a_bounded_read_says_what_it_took_and_answers_the_same():
    state = state_of([(b"a", 0), (b"b", NOW), (b"c", 0)])
    wanted = [
        point(b"a"),
        point(b"b"),
        point(b"x"),
        kv_pb2.ReadRange(start=b"a", end=b"z", limit=9),
        kv_pb2.ReadRange(start=b"a", end=b"z", limit=1, reverse=True, keys_only=True),
    ]
    took, found = within(state, 1 << 20, *wanted)
    assert found == ask(state, *wanted)
    assert took == 5 * limits.READ_RANGE_BYTES + 5 * (limits.READ_ENTRY_BYTES + 2)


def test_a_bounded_read_stops_where_it_takes_too_much():
    state = state_of([(bytes([n]), 0) for n in range(97, 107)])
    everything = kv_pb2.ReadRange(start=b"a", end=b"z", limit=10)
    exactly = limits.READ_RANGE_BYTES + 10 * (limits.READ_ENTRY_BYTES + 2)
    assert within(state, exactly, everything)[0] == exactly
    assert within(state, exactly - 1, everything)[0] is None
    gets = [point(bytes([n])) for n in range(97, 107)]
    each = limits.READ_RANGE_BYTES + limits.READ_ENTRY_BYTES + 2
    assert within(state, 10 * each, *gets)[0] == 10 * each
    took, found = within(state, 3 * each, *gets)
    assert took is None and len(found) == 4, "it went on"
    took, found = within(state, limits.READ_RANGE_BYTES + 19, everything, point(b"a"))
    assert took is None and not found[0].entries, "the values alone are too large"
