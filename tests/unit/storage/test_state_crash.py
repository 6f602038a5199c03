"""kill -9 in the middle of everything: rows, digest and applied index agree, and what was durable is there."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.storage.state_helpers import fill, opened

_PROGRAM = """
import asyncio, os, pathlib, sys
from kvnode.base.clock import SystemClock
from kvnode.storage import state_duties
from kvnode.storage.state import State
from tests.unit.storage.state_helpers import fill

state_duties.STATE_CHECKPOINT_BYTES = 128 * 1024
state_duties.STATE_WAL_BYTES = 512 * 1024
state_duties.DURABLE_APPLIED_INTERVAL_MS = 20

async def main():
    state = await State.open(pathlib.Path(sys.argv[1]), clock=SystemClock())
    snapshots = asyncio.create_task(make_snapshots(state))
    index = committed = state.meta.applied_index
    while not snapshots.done():
        index += 1
        fill(state, index, index, commit=False)
        committed = index if state._file.tables.is_committed else max(committed, state.durable_applied)
        os.write(1, b"%d %d %d\\n" % (index, committed, state.durable_applied))
        if state.maintenance_due:
            await state.maintain()
        else:
            await asyncio.sleep(0)

async def make_snapshots(state):
    while True:
        await state.create_snapshot()
        await asyncio.sleep(0.01)

asyncio.run(main())
"""


def _run_and_kill(directory: Path, lifetime_s: float) -> tuple[int, int, int]:
    """Returns the last (applied, committed, durable) that the process had told before it was killed."""
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(lifetime_s)
        os.kill(process.pid, signal.SIGKILL)
        told = process.stdout.read().split(b"\n")
    complete = [line for line in told if len(line.split()) == 3][:-1]
    applied, committed, durable = map(int, complete[-1].split())
    return applied, committed, durable


@pytest.mark.parametrize("seed", range(4))
async def test_kill_9_mid_apply(tmp_path: Path, seed: int) -> None:
    lifetimes = random.Random(seed)
    for _ in range(2):
        lifetime_s = lifetimes.uniform(0.1, 0.6)
        applied, committed, durable = await asyncio.to_thread(_run_and_kill, tmp_path / "state", lifetime_s)
        async with opened(tmp_path / "state") as state:
            reached = state.meta.applied_index
            assert applied >= committed >= durable
            assert reached >= committed, "a killed process loses nothing that it had committed"
            assert state.durable_applied == reached
            assert await state.scrub(), state.damage
            assert state.meta.log_time_ms == reached * 10
            rows = state.scan(b"", b"\xff", 10_000)
        async with opened(tmp_path / f"model-{seed}-{reached}") as model:
            fill(model, 1, reached)
            assert model.scan(b"", b"\xff", 10_000) == rows
            assert model.meta.digest == state.meta.digest
