"""The log against a model: random operations, crashes and kills, also in the middle of an operation."""

from __future__ import annotations

import asyncio
from random import Random

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvnode.codec.entry import HardState
from kvnode.storage.log import Log
from tests.simulation.disk import DiskStopped, SimulatedDisk
from tests.unit.storage.log_model import DIRECTORY, SEGMENT_BYTES, LogModel, end_tasks, entry

OPERATIONS = ("append", "append", "append", "unsynced", "conflict", "vote", "compact", "reset", "reopen")


class Run:
    """One random life of a log."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = SimulatedDisk(Random(seed + 1))
        self.model = LogModel()
        self.cache_bytes = self.random.choice((0, 2_000, 1 << 20))

    async def open(self) -> None:
        self.log = await Log.open(DIRECTORY, self.disk, segment_bytes=SEGMENT_BYTES, cache_bytes=self.cache_bytes)

    async def live(self, steps_count: int) -> None:
        await self._open_through_crashes()
        self.model.check_crashed(self.log)
        for _ in range(steps_count):
            if self.random.random() < 0.3:
                self.disk.stop_at = self.disk.operations_count + self.random.randint(1, 8)
            operation = getattr(self, "_" + self.random.choice(OPERATIONS))
            try:
                await operation()
                await asyncio.sleep(0)
                self.model.check(self.log)
                if self.disk.stop_at is not None:
                    await self._die()
            except DiskStopped:
                await self._die()
        await self.log.close()

    async def _die(self) -> None:
        """By kill or power loss; opening may be interrupted in the same way, again and again."""
        self.disk = self.disk.kill() if self.random.random() < 0.4 else self.disk.crash()
        await end_tasks()
        await self._open_through_crashes()
        self.model.check_crashed(self.log)

    async def _open_through_crashes(self) -> None:
        while True:
            if self.random.random() < 0.4:
                self.disk.stop_at = self.disk.operations_count + self.random.randint(1, 12)
            try:
                await self.open()
                self.disk.stop_at = None
                return
            except DiskStopped:
                self.disk = self.disk.kill() if self.random.random() < 0.4 else self.disk.crash()
                await end_tasks()

    def _entries(self, first: int, term: int) -> list:
        count = self.random.choice((0, 1, 1, 2, 5, 20))
        size = self.random.choice((0, 1, 7, 100, 900, 6_000))
        return [entry(first + at, term, self.random.randbytes(size)) for at in range(count)]

    def _next_hard_state(self, *, newer_term: bool = False) -> HardState:
        now = self.model.now
        if newer_term or self.random.random() < 0.2:
            return HardState(now.term + 1, self.random.choice((0, 3)), self.model.commit)
        return HardState(
            now.term, now.vote, self.random.randint(self.model.commit, max(now.last_index, self.model.commit))
        )

    async def _append(self, *, sync: bool = True) -> None:
        hard_state = self._next_hard_state() if self.random.random() < 0.5 or self.model.now.term == 0 else None
        term = (hard_state or self.model.now).term
        entries = self._entries(self.model.now.last_index + 1, term)
        self.model.append(entries, hard_state)
        await self.log.append(entries, hard_state, sync=sync)
        if sync:
            self.model.durable()

    async def _unsynced(self) -> None:
        await self._append(sync=False)

    async def _conflict(self) -> None:
        first = max(self.model.commit, self.log.first_index() - 1) + 1
        if first > self.model.now.last_index:
            return
        hard_state = self._next_hard_state(newer_term=True)
        entries = self._entries(self.random.randint(first, self.model.now.last_index), hard_state.term)
        self.model.append(entries, hard_state)
        await self.log.append(entries, hard_state)
        self.model.durable()

    async def _vote(self) -> None:
        hard_state = self._next_hard_state(newer_term=True)
        self.model.append([], hard_state)
        await self.log.append([], hard_state)
        self.model.durable()

    async def _compact(self) -> None:
        up_to = self.random.randint(0, self.model.commit)
        self.model.compacted = max(self.model.compacted, up_to)
        await self.log.compact(up_to)

    async def _reset(self) -> None:
        now = self.model.now
        index = now.last_index + self.random.randint(0, 50)
        self.model.reset(index, max(1, now.term))
        await self.log.reset(index, max(1, now.term))
        self.model.durable()

    async def _reopen(self) -> None:
        await self.log.close()
        self.model.durable()
        await self.open()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.integers(1, 30))
@example(0, 200)
@example(451029918, 4)  # a segment was dropped before the beginning of the one behind it had been fsynced
def test_any_life_matches_the_model(seed: int, steps_count: int) -> None:
    asyncio.run(Run(seed).live(steps_count))
