"""The log within its bounds: by size, by age, and never beyond what the state holds durably."""

from __future__ import annotations

from random import Random
from typing import Any

from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.node.retention import Retention
from kvnode.node.settings import NodeSettings
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.storage.log import Log
from tests.simulation.disk import SimulatedDisk
from tests.unit.node.fakes import HandClock

LAST = 100
HOUR_MS = 3_600_000


class Durable:
    durable_applied = LAST


class World:
    """A log of 100 entries of about 1 KB in segments of 8 KB, one written every minute; every tenth says no time."""

    clock = HandClock()
    log: Log

    @classmethod
    async def made(cls) -> World:
        world = cls()
        world.clock = HandClock()
        world.state = Durable()
        world.log = await Log.open("/log", SimulatedDisk(Random(1)), segment_bytes=8_192)
        for index in range(1, LAST + 1):
            world.clock.pass_ms(60_000)
            time_ms = world.clock.now_ms()
            transaction = log_pb2.Transaction(client_id=bytes(1_000))
            data = log_pb2.EntryPayload(log_time_ms=time_ms, transactions=[transaction]).SerializeToString()
            entry = Entry(1, index, EntryKind.DATA, data) if index % 10 else Entry(1, index, EntryKind.NOOP, b"")
            await world.log.append([entry], HardState(1, 0, 0))
        return world

    def retention(self, **bounds: Any) -> Retention:
        settings = NodeSettings(1, "a", "r", "d", "h:1", "c", **{"log_retention_bytes": 1 << 30, **bounds})
        return Retention(settings, self.log, self.state, self.clock)


async def test_without_a_bound_that_is_met_nothing_goes() -> None:
    world = await World.made()
    await world.retention().apply()
    assert world.log.first_index() == 1
    await world.retention(log_retention_age_ms=2 * HOUR_MS).apply()
    assert world.log.first_index() == 1


async def test_what_is_older_goes_in_whole_segments() -> None:
    world = await World.made()
    starts = world.log.segment_starts()
    await world.retention(log_retention_age_ms=HOUR_MS).apply()
    first = world.log.first_index()
    assert first in starts and LAST - 60 - 10 <= first <= LAST - 60 + 1, (
        "the last hour stays, and at most a segment more"
    )
    before = [start for start in starts if start <= first]
    assert world.log.segment_starts() == starts[len(before) - 1 :]


async def test_the_stricter_bound_counts() -> None:
    world = await World.made()
    await world.retention(log_retention_age_ms=HOUR_MS, log_retention_bytes=24_576).apply()
    assert world.log.first_index() > LAST - 30
    world = await World.made()
    await world.retention(log_retention_age_ms=10 * 60_000, log_retention_bytes=90_000).apply()
    assert world.log.first_index() >= LAST - 20


async def test_what_the_state_does_not_hold_durably_stays() -> None:
    world = await World.made()
    world.state.durable_applied = 20
    await world.retention(log_retention_age_ms=60_000).apply()
    assert 1 < world.log.first_index() <= 21


async def test_a_node_that_rests_drops_what_gets_old_and_keeps_its_last_segment() -> None:
    world = await World.made()
    retention = world.retention(log_retention_age_ms=HOUR_MS)
    await retention.apply()
    first = world.log.first_index()
    world.clock.pass_ms(1_000)
    await retention.apply()
    assert world.log.first_index() == first, "it does not look every second"
    world.clock.pass_ms(10 * HOUR_MS)
    await retention.apply()
    assert world.log.first_index() == world.log.segment_starts()[-1] > first and world.log.last_index() == LAST
