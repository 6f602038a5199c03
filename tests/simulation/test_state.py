"""The simulated state is the real one, but for the disk."""

import asyncio
import inspect
import random
from pathlib import Path

import pytest

from kvnode.base.errors import StorageFailed
from kvnode.base.limits import DURABLE_APPLIED_INTERVAL_MS, STATE_COMMIT_INTERVAL_MS
from kvnode.storage.state import State
from tests.simulation.state import SimulatedState
from tests.unit.storage.state_helpers import ManualClock, fill, opened, put, row


def simulated(directory: Path, **options) -> SimulatedState:  # type: ignore[no-untyped-def]
    return SimulatedState(directory, clock=ManualClock(), latency_s=lambda: 0.0, **options)


def test_it_has_the_interface_of_the_real_state() -> None:
    for name, member in inspect.getmembers(State):
        if name.startswith("_") or name == "open":
            continue
        other = inspect.getattr_static(SimulatedState, name, None)
        assert other is not None, name
        if inspect.isfunction(member):
            assert inspect.signature(member) == inspect.signature(other), name
            assert inspect.iscoroutinefunction(member) == inspect.iscoroutinefunction(other), name


async def test_both_hold_the_same_after_the_same_applies(tmp_path: Path) -> None:
    state = simulated(tmp_path / "simulated")
    async with opened(tmp_path / "real") as real:
        for each in (state, real):
            fill(each, 1, 30)  # type: ignore[arg-type]
            put(each, 31, {b"e": row(b"e", expire_at_ms=7), b"key007": None})  # type: ignore[arg-type]
        assert state.meta == real.meta
        assert state.scan(b"", b"\xff", 9_999) == real.scan(b"", b"\xff", 9_999)
        assert await state.count(b"", b"\xff", 7) == await real.count(b"", b"\xff", 7)
        assert state.due(9, 9) == real.due(9, 9)
        assert await state.scrub()
    await state.close()


async def test_a_crash_loses_an_end_of_what_was_not_durable(tmp_path: Path) -> None:
    reached = set()
    for seed in range(40):
        state = simulated(tmp_path)
        fill(state, 1, 10)  # type: ignore[arg-type]
        await state.make_durable()
        for index in range(11, 16):
            fill(state, index, index, commit=False)  # type: ignore[arg-type]
            state._clock.at_ms += (index == 12) * STATE_COMMIT_INTERVAL_MS  # type: ignore[attr-defined]
        after = state.crash(random.Random(seed))
        index = after.meta.applied_index
        reached.add(index)
        assert after.durable_applied == index
        model = simulated(tmp_path)
        fill(model, 1, index)  # type: ignore[arg-type]
        assert after.meta == model.meta
        assert after.scan(b"", b"\xff", 9_999) == model.scan(b"", b"\xff", 9_999)
        fill(after, index + 1, 20)  # type: ignore[arg-type]
        await asyncio.gather(after.close(), model.close())
    assert reached == {10, 11, 12, 13}, "what came after was not committed"


async def test_what_was_applied_during_an_fsync_is_not_durable_with_it(tmp_path: Path) -> None:
    state = simulated(tmp_path)
    put(state, 1, {})  # type: ignore[arg-type]
    syncing = asyncio.ensure_future(state.make_durable())
    await asyncio.sleep(0)
    put(state, 2, {})  # type: ignore[arg-type]
    await syncing
    assert state.durable_applied == 1
    state._clock.at_ms += DURABLE_APPLIED_INTERVAL_MS  # type: ignore[attr-defined]
    assert state.maintenance_due
    await state.maintain()
    assert state.durable_applied == 2
    await state.close()


async def test_snapshots_go_from_one_to_another(tmp_path: Path) -> None:
    one, two = simulated(tmp_path / "one"), simulated(tmp_path / "two")
    fill(one, 1, 30)  # type: ignore[arg-type]
    snapshot = await one.create_snapshot()
    assert await two.install_snapshot(snapshot.path, index=30, term=1) == one.meta
    assert two.durable_applied == 30
    fill(one, 31, 40)  # type: ignore[arg-type]
    fill(two, 31, 40)  # type: ignore[arg-type]
    assert two.meta == one.meta
    await asyncio.gather(one.close(), two.close())


async def test_a_real_state_takes_a_simulated_snapshot(tmp_path: Path) -> None:
    state = simulated(tmp_path / "simulated")
    fill(state, 1, 30)  # type: ignore[arg-type]
    snapshot = await state.create_snapshot()
    async with opened(tmp_path / "real") as real:
        assert await real.install_snapshot(snapshot.path, index=30, term=1) == state.meta
    await state.close()


async def test_a_fault_ends_apply(tmp_path: Path) -> None:
    failing: list[str] = []

    def fault(operation: str) -> None:
        if operation in failing:
            raise StorageFailed("no space left")

    state = simulated(tmp_path, fault=fault)
    put(state, 1, {})  # type: ignore[arg-type]
    failing.append("sync")
    with pytest.raises(StorageFailed, match="no space left"):
        await state.make_durable()
    with pytest.raises(StorageFailed, match="nothing is applied after a failure"):
        put(state, 2, {})  # type: ignore[arg-type]
    assert state.crash(random.Random(1)).meta.applied_index in (0, 1)
