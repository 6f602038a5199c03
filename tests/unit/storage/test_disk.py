"""The machine's disk behind its seam, and where its syncs wait."""

from __future__ import annotations

import asyncio
import errno
import gc
import multiprocessing
import os
import threading
from pathlib import Path
from random import Random

import pytest

from kvnode.base.errors import StorageFailed
from kvnode.base.limits import SYNC_WINDOW_COUNT
from kvnode.codec.entry import HardState
from kvnode.storage.disk import Disk
from kvnode.storage.log import Log
from kvnode.storage.sync_policy import SyncPolicy
from kvnode.storage.system_disk import SystemDisk
from kvnode.storage.worker_thread import WorkerThread
from tests.simulation.disk import SimulatedDisk
from tests.unit.storage.log_model import entry


@pytest.fixture(params=["system", "simulated"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return SystemDisk() if request.param == "system" else SimulatedDisk(Random(1))


async def test_both_disks_do_the_same(disk: Disk, tmp_path: Path) -> None:
    folder = f"{tmp_path}/a/b"
    disk.make_directory(folder)
    disk.make_directory(folder)
    assert disk.exists(folder) and disk.list_directory(folder) == []
    with pytest.raises(FileNotFoundError):
        disk.open(f"{folder}/f")
    with pytest.raises(FileNotFoundError):
        disk.list_directory(f"{folder}/none")
    with pytest.raises(FileNotFoundError):
        disk.open(f"{folder}/none/f", create=True)
    file = disk.open(f"{folder}/f", create=True)
    file.write(5, b"hello")
    assert (file.size(), file.read(0, 100), file.read(6, 2), file.read(50, 4)) == (10, bytes(5) + b"hello", b"el", b"")
    file.truncate(7)
    await file.allocate(5_000_000)
    assert (file.size(), file.read(0, 8)) == (5_000_000, bytes(5) + b"he" + bytes(1))
    await file.allocate(100)
    assert file.size() == 5_000_000
    await file.sync()
    disk.open(f"{folder}/f").write(0, b"x")
    assert file.read(0, 1) == b"x"
    file.close()
    file.close()
    disk.rename(f"{folder}/f", f"{folder}/g")
    await disk.sync_directory(folder)
    assert disk.list_directory(folder) == ["g"]
    disk.remove(f"{folder}/g")
    with pytest.raises(FileNotFoundError):
        disk.remove(f"{folder}/g")


async def test_a_lock_is_exclusive(disk: Disk, tmp_path: Path) -> None:
    disk.make_directory(str(tmp_path))
    lock = disk.lock(f"{tmp_path}/lock")
    with pytest.raises(BlockingIOError):
        disk.lock(f"{tmp_path}/lock")
    lock.release()
    lock.release()
    disk.lock(f"{tmp_path}/lock").release()


def _hold(path: str, held: multiprocessing.synchronize.Event) -> None:
    lock = SystemDisk().lock(path)
    held.set()
    threading.Event().wait(30)
    lock.release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(f"{tmp_path}/lock", held))
    process.start()
    try:
        assert held.wait(20)
        with pytest.raises(BlockingIOError):
            SystemDisk().lock(f"{tmp_path}/lock")
    finally:
        process.kill()
        process.join()
    SystemDisk().lock(f"{tmp_path}/lock").release()


@pytest.mark.parametrize("bound_ms", [0, float("inf"), 2.0])
async def test_a_log_on_the_real_disk(tmp_path: Path, bound_ms: float) -> None:
    seconds: list[float] = []
    disk = SystemDisk(SyncPolicy(bound_ms), seconds.append)
    log = await Log.open(f"{tmp_path}/log", disk, segment_bytes=65_536)
    for index in range(1, 101):
        await log.append([entry(index, 1, b"x" * 5_000)], HardState(1, 0, index - 1))
    await log.compact(50)
    await log.close()
    assert len(seconds) == disk.policy.count > 100
    assert disk.policy.max_seconds == max(seconds)
    log = await Log.open(f"{tmp_path}/log", SystemDisk(), segment_bytes=65_536, must_exist=True)
    assert (log.damage, log.last_index(), log.hard_state) == (None, 100, HardState(1, 0, 99))
    assert len(log.entries(log.first_index(), 101, 1 << 30)) == 101 - log.first_index() > 49
    await log.close()


def test_the_policy_leaves_the_loop_when_one_sync_in_a_hundred_is_slow_and_comes_back() -> None:
    policy = SyncPolicy(2.0)
    assert policy.inline
    for slow_count in range(1, SYNC_WINDOW_COUNT // 100 + 2):
        policy.observe(0.005)
        assert policy.inline is (slow_count <= SYNC_WINDOW_COUNT // 100)
    for _ in range(SYNC_WINDOW_COUNT - 1):
        policy.observe(0.0002)
    assert policy.inline
    assert not SyncPolicy(0).inline


async def test_a_sync_that_failed_when_nobody_waited_for_it_any_more_fails_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells of a failed fsync once: the next one returns as if what the first has lost were on the disk."""
    log = await Log.open(f"{tmp_path}/log", SystemDisk(SyncPolicy(0)))
    begun, go_on = threading.Event(), threading.Event()
    failures = [OSError(errno.EIO, "the device is gone")]

    def fail_once(descriptor: int) -> None:
        begun.set()
        go_on.wait(10)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(os, "fdatasync", fail_once)
    append = asyncio.ensure_future(log.append([entry(1, 1, b"lost")], HardState(1, 0, 0)))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    append.cancel()
    await asyncio.gather(append, return_exceptions=True)
    go_on.set()
    with pytest.raises(StorageFailed):
        await log.append([entry(2, 1)], None)
    await log.close()


async def test_a_worker_returns_and_raises_what_its_work_does() -> None:
    worker = WorkerThread("test-worker")
    assert await worker.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    done = await asyncio.gather(*(worker.run(lambda number=number: number) for number in range(50)))
    assert done == list(range(50))
    slow = asyncio.ensure_future(worker.run(lambda: threading.Event().wait(0.05)))
    await asyncio.sleep(0)
    slow.cancel()
    assert await worker.run(lambda: "next") == "next"


async def test_a_worker_thread_ends_with_its_owner() -> None:
    worker = WorkerThread("test-worker-that-ends")
    await worker.run(lambda: None)
    thread = next(one for one in threading.enumerate() if one.name == "test-worker-that-ends")
    del worker
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


async def test_the_simulated_disk_loses_what_was_not_synced() -> None:
    survived = set()
    for seed in range(40):
        disk = SimulatedDisk(Random(seed))
        disk.make_directory("/d")
        file = disk.open("/d/f", create=True)
        file.write(0, b"a" * 2_048)
        await file.sync()
        await disk.sync_directory("/d")
        file.write(0, b"b" * 2_048)
        disk.open("/d/g", create=True)
        after = disk.crash()
        content = after.contents("/d/f")
        assert all(content[at : at + 512] in (b"a" * 512, b"b" * 512) for at in range(0, 2_048, 512))
        survived.add((content[::512], after.exists("/d/g")))
    assert len(survived) > 6
