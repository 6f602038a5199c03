"""Killed, or without power, at each single step of what takes several: nothing acknowledged is ever lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import pytest

from kvnode.codec.entry import HardState
from kvnode.storage.log import Log
from tests.simulation.disk import DiskStopped, SimulatedDisk
from tests.unit.storage.log_model import DIRECTORY, SEGMENT_BYTES, LogModel, end_tasks, entry

Operation = Callable[[Log, LogModel], Awaitable[None]]


async def truncate(log: Log, model: LogModel) -> None:
    entries, hard_state = [entry(5, 2), entry(6, 2)], HardState(2, 0, 4)
    model.append(entries, hard_state)
    await log.append(entries, hard_state)


async def truncate_and_rotate(log: Log, model: LogModel) -> None:
    entries, hard_state = [entry(5, 2, b"y" * 3_500), entry(6, 2)], HardState(2, 0, 4)
    model.append(entries, hard_state)
    await log.append(entries, hard_state)


async def rotate(log: Log, model: LogModel) -> None:
    entries = [entry(model.now.last_index + 1, 1, b"y" * 3_900)]
    model.append(entries, HardState(1, 7, 4))
    await log.append(entries, HardState(1, 7, 4))


async def compact(log: Log, model: LogModel) -> None:
    model.compacted = model.commit
    await log.compact(model.commit)


async def reset(log: Log, model: LogModel) -> None:
    model.reset(100, 1)
    await log.reset(100, 1)


async def prepared(seed: int, *, segments: bool) -> tuple[SimulatedDisk, Log, LogModel]:
    disk, model = SimulatedDisk(Random(seed)), LogModel()
    log = await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES)
    for index in range(1, 40 if segments else 10):
        entries, hard_state = (
            [entry(index, 1, b"x" * 300)],
            HardState(1, 7, index - 1 if segments else min(4, index - 1)),
        )
        model.append(entries, hard_state)
        await log.append(entries, hard_state)
    model.durable()
    return disk, log, model


@pytest.mark.parametrize("power_loss", [False, True])
@pytest.mark.parametrize(
    ("operation", "segments"),
    [(truncate, False), (truncate_and_rotate, False), (rotate, False), (compact, True), (reset, False), (reset, True)],
)
async def test_killed_at_each_step(operation: Operation, segments: bool, power_loss: bool) -> None:
    finished = False
    step = 0
    while not finished:
        step += 1
        for seed in range(8 if power_loss else 1):
            disk, log, model = await prepared(seed, segments=segments)
            disk.stop_at = disk.operations_count + step
            try:
                await operation(log, model)
                model.durable()
                finished = True
            except DiskStopped:
                pass
            disk = disk.crash() if power_loss else disk.kill()
            await end_tasks()
            log = await Log.open(DIRECTORY, disk, segment_bytes=SEGMENT_BYTES)
            model.check_crashed(log)
            await log.append([entry(log.last_index() + 1, 3)], HardState(3, 0, 0))
            await log.close()
            assert (await Log.open(DIRECTORY, disk.crash(), segment_bytes=SEGMENT_BYTES)).damage is None
    assert step > 2
