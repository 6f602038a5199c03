"""What a durable append of the log costs, and where its fsync should wait.

    python -m bench.log_append [--directory DIR] [--count N] [--json]

For entries of 4, 16 and 64 KiB: wall time of an append with its fsync inline on the loop and on the sync
thread (p50, p99), in turn, so that a slow phase of the disk meets both; the CPU time of an append without any
fsync; the hop to the thread alone; and how long the loop was held when another task runs beside the appends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from random import Random

from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.storage.log import Log
from kvnode.storage.sync_policy import SyncPolicy
from kvnode.storage.system_disk import SystemDisk
from kvnode.storage.worker_thread import WorkerThread
from tests.simulation.disk import SimulatedDisk

SIZES_KIB = (4, 16, 64)
ROUNDS_COUNT = 4
INLINE, THREAD = float("inf"), 0.0


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def append_times(directory: str, bound_ms: float, size: int, count: int) -> list[float]:
    """Microseconds of each append."""
    log = await Log.open(directory, SystemDisk(SyncPolicy(bound_ms)))
    data, first, times = os.urandom(size), log.last_index() + 1, []
    for index in range(first, first + count):
        begun = time.perf_counter()
        await log.append([Entry(1, index, EntryKind.DATA, data)], HardState(1, 0, index - 1))
        times.append((time.perf_counter() - begun) * 1e6)
    await log.compact(first)
    await log.close()
    return times


async def cpu_of_append(size: int, count: int) -> float:
    """Median microseconds of an append whose disk does nothing but take the bytes."""
    log = await Log.open("/log", SimulatedDisk(Random(1)), segment_bytes=1 << 26)
    data, times = os.urandom(size), []
    for index in range(1, count):
        begun = time.perf_counter()
        await log.append([Entry(1, index, EntryKind.DATA, data)], HardState(1, 0, index - 1), sync=False)
        times.append((time.perf_counter() - begun) * 1e6)
    return percentile(times, 50)


async def hop_time(count: int) -> float:
    """Median microseconds of a job that does nothing, on the thread and back."""
    worker, times = WorkerThread("hop"), []
    for _ in range(count):
        begun = time.perf_counter()
        await worker.run(_nothing)
        times.append((time.perf_counter() - begun) * 1e6)
    return percentile(times, 50)


def _nothing() -> None:
    pass


async def beside_appends(directory: str, bound_ms: float, size: int, seconds: float) -> tuple[float, float, float]:
    """(appends a second, turns that others had a second, longest hold in ms) with a busy loop beside."""
    log = await Log.open(directory, SystemDisk(SyncPolicy(bound_ms)))
    data, done, turns, held = os.urandom(size), 0, 0, 0.0
    end = time.perf_counter() + seconds

    async def appends() -> None:
        nonlocal done
        while time.perf_counter() < end:
            index = log.last_index() + 1
            await log.append([Entry(1, index, EntryKind.DATA, data)], HardState(1, 0, index - 1))
            done += 1
            await asyncio.sleep(0)  # as the node's driver does: an append that syncs inline never suspends

    async def others() -> None:
        nonlocal turns, held
        last = time.perf_counter()
        while last < end:
            await asyncio.sleep(0)
            now = time.perf_counter()
            held = max(held, now - last)
            last = now
            for _ in range(200):  # some 10 us of work
                pass
            turns += 1

    await asyncio.gather(appends(), others())
    await log.close()
    return done / seconds, turns / seconds, held * 1e3


async def measure(directory: str, count: int) -> dict[str, object]:
    results: dict[str, object] = {"hop_us": round(await hop_time(2_000))}
    for size_kib in SIZES_KIB:
        times: dict[float, list[float]] = {INLINE: [], THREAD: []}
        for _ in range(ROUNDS_COUNT):
            for bound, into in times.items():
                into += await append_times(f"{directory}/log", bound, size_kib * 1024, count // ROUNDS_COUNT)
        results[f"{size_kib} KiB"] = {
            "cpu_us": round(await cpu_of_append(size_kib * 1024, 500), 1),
            **{
                f"{name}_{label}_us": round(percentile(times[bound], percent))
                for name, bound in (("inline", INLINE), ("thread", THREAD))
                for label, percent in (("p50", 50), ("p99", 99))
            },
        }
    for name, bound in (("inline", INLINE), ("thread", THREAD)):
        rate, turns, held = await beside_appends(f"{directory}/log", bound, 16_384, 3.0)
        results[f"busy loop, {name}"] = {
            "appends_per_s": round(rate), "loop_turns_per_s": round(turns), "longest_hold_ms": round(held, 1),
        }  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--directory", help="where to write; a temporary directory by default")
    parser.add_argument("--count", type=int, default=2_000, help="appends of each size and way")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop, as the node does")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="log-append-", dir=arguments.directory)
    try:
        if arguments.uvloop:
            import uvloop

            results = uvloop.run(measure(directory, arguments.count))
        else:
            results = asyncio.run(measure(directory, arguments.count))
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        print(json.dumps(results))
        return
    for name, values in results.items():
        print(f"{name:20} {values}")


if __name__ == "__main__":
    main()
