"""What the state costs: ways to write a batch, and the state as it is.

    python -m bench.state_apply [--rows 50000] [--seconds 4] [--directory /var/tmp]

Two tables. The first compares ways to write the same batches (digest upkeep included), which is how the one in
kvnode/storage/state_tables.py was chosen. The second measures the state itself under random overwrites with its
duties beside it, then reads, a scrub, a snapshot and a restart, with the lag that the loop sees meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from kvnode.base.clock import SystemClock
from kvnode.codec.row import Row
from kvnode.storage import state_tables
from kvnode.storage.state import State
from kvnode.storage.state_connections import Worker, connect_writer
from kvnode.storage.state_digest import row_digest
from kvnode.storage.state_tables import StateTables

BATCHES = (1, 16, 64, 256)
VALUE_BYTES = 256
_CHECKPOINT_EVERY_ROWS = 4_096
_UPSERT = state_tables._UPSERT.removesuffix(" WHERE gone(rows.digest) IS NULL")
_CONFLICT = _UPSERT[_UPSERT.index("ON CONFLICT") :]
# A fixed set of chunk sizes, so that the statement cache holds every statement whatever the batches are.
_LOOKUPS = tuple(
    (size, f"SELECT key, digest FROM rows WHERE key IN ({', '.join('?' * size)})") for size in (256, 64, 16, 4, 1)
)


def key(number: int) -> bytes:
    return b"\0\0\0\1\x02key%010d\0" % number


def batch(numbers: Sequence[int]) -> dict[bytes, Row]:
    return {key(each): Row(key(each), os.urandom(VALUE_BYTES), 1, bytes(10), 0) for each in numbers}


class Executemany(StateTables):
    """One SELECT ... IN for the old digests, executemany of an upsert."""

    def _put(self, stored: list[tuple[object, ...]]) -> None:
        self.connection.executemany(_UPSERT, stored)

    def _old(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        at, left = 0, len(keys)
        for size, lookup in _LOOKUPS:
            while left >= size:
                found += self.connection.execute(lookup, keys[at : at + size]).fetchall()
                at, left = at + size, left - size
        return found

    def _write(self, writes: Any, index: int) -> int:
        stored = [(*row, row_digest(row)) for row in writes.values()]
        old = self._old(list(writes))
        self._put(stored)
        new = state_tables.digest_sum([row[5] for row in stored])
        return new - state_tables.digest_sum([digest for _, digest in old])


class Replace(Executemany):
    """executemany of REPLACE."""

    def _put(self, stored: list[tuple[object, ...]]) -> None:
        self.connection.executemany("REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)", stored)


class ManyValues(Executemany):
    """One INSERT statement of many VALUES."""

    def _put(self, stored: list[tuple[object, ...]]) -> None:
        values = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(stored))
        self.connection.execute(f"INSERT INTO rows VALUES {values} {_CONFLICT}", [x for row in stored for x in row])


class SelectEach(Executemany):
    """A SELECT for each old digest."""

    def _old(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        select = "SELECT key, digest FROM rows WHERE key = ?"
        return [found for each in keys for found in self.connection.execute(select, (each,))]


def numbers(rows: int, size: int, append: bool, rng: random.Random) -> Callable[[int], Sequence[int]]:
    if append:
        return lambda turn: range(rows + turn * size, rows + (turn + 1) * size)
    return lambda turn: rng.sample(range(rows), size)


def prepare(directory: Path, rows: int) -> sqlite3.Connection:
    for leftover in directory.glob("way.db*"):
        leftover.unlink()
    connection = connect_writer(directory / "way.db")
    tables = StateTables(connection, create=True)
    for at in range(0, rows, 1_000):
        arguments = {"applied_index": at + 1, "applied_term": 1, "log_time_ms": 1, "epoch": 0}
        tables.apply(batch(range(at, min(rows, at + 1_000))), **arguments)  # type: ignore[arg-type]
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return connection


async def time_way(way: type[StateTables], hop: str, directory: Path, rows: int, size: int, append: bool) -> float:
    """Median microseconds a row. `hop`: inline, one (a thread hop a batch) or three (BEGIN, batch, COMMIT apart)."""
    connection = prepare(directory, rows)
    tables = way(connection)
    worker = await Worker.open(lambda: connection)
    pick, took = numbers(rows, size, append, random.Random(1)), []
    try:
        for turn in range(max(30, 6_000 // size)):
            if turn % max(1, _CHECKPOINT_EVERY_ROWS // size) == 0:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            writes = batch(pick(turn))
            arguments = {"applied_index": rows + turn + 2, "applied_term": 1, "log_time_ms": 1, "epoch": 0}

            def apply(_: object, writes: Any = writes, arguments: Any = arguments) -> object:
                return tables.apply(writes, **arguments)

            begun = time.perf_counter()
            if hop == "inline":
                apply(None)
            else:
                for extra in range(0 if hop == "one" else 2):
                    await worker.run(lambda _, extra=extra: extra)  # type: ignore[misc]
                await worker.run(apply)
            took.append((time.perf_counter() - begun) / size * 1e6)
    finally:
        await worker.close()
    return statistics.median(took)


async def compare_ways(directory: Path, rows: int) -> None:
    ways: list[tuple[str, type[StateTables], str]] = [
        ("inline, upsert that tells (shipped)", StateTables, "inline"),
        ("inline, executemany upsert", Executemany, "inline"),
        ("inline, executemany REPLACE", Replace, "inline"),
        ("inline, INSERT of many VALUES", ManyValues, "inline"),
        ("inline, a SELECT for each old digest", SelectEach, "inline"),
        ("aiosqlite, one hop a batch", StateTables, "one"),
        ("aiosqlite, three hops a batch", StateTables, "three"),
    ]
    for append in (False, True):
        print(f"\n{'appended keys' if append else 'overwrites of random keys'}: us a row at batches of {BATCHES}")
        for name, way, hop in ways:
            figures = [await time_way(way, hop, directory, rows, size, append) for size in BATCHES]
            print(f"  {name:38}", *(f"{figure:7.1f}" for figure in figures), flush=True)


def quantiles(values: Sequence[float]) -> str:
    ordered = sorted(values) or [0.0]
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {statistics.median(ordered):.2f}, p99 {p99:.2f}, max {ordered[-1]:.2f} ms"


async def with_lag(name: str, work: Awaitable[Any]) -> None:
    """Await `work` and print how long it took and how late the loop woke a sleeper meanwhile."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append((time.perf_counter() - begun) * 1e3 - 1)

    watcher = asyncio.ensure_future(watch())
    begun = time.perf_counter()
    try:
        await work
    finally:
        watcher.cancel()
    print(f"  {name:10} {time.perf_counter() - begun:.2f} s, loop lag {quantiles(lags)}")


async def load(state: State, rows: int) -> None:
    for at in range(0, rows, 256):
        writes = batch(range(at, min(rows, at + 256)))
        state.apply(writes, applied_index=at + 1, applied_term=1, log_time_ms=1, epoch=0)
        if state.maintenance_due:
            await state.maintain()


async def overwrite(state: State, rows: int, seconds: float) -> None:
    rng, index = random.Random(2), state.meta.applied_index
    applies, pauses = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        writes = batch([rng.randrange(rows) for _ in range(64)])
        index += 1
        begun = time.perf_counter()
        state.apply(writes, applied_index=index, applied_term=1, log_time_ms=index, epoch=0)
        due = state.maintenance_due
        applied = time.perf_counter()
        applies.append((applied - begun) * 1e3)
        if due:
            await state.maintain()
        else:
            await asyncio.sleep(0)
        pauses.append((time.perf_counter() - applied) * 1e3)
    print(f"  apply of 64 random overwrites: {quantiles(applies)} ({statistics.median(applies) / 64e-3:.1f} us a row)")
    print(f"  wait between two applies:      {quantiles(pauses)}")
    print(f"  {len(applies) * 64 / seconds:.0f} rows a second, every duty included")


def time_reads(state: State, rows: int) -> None:
    def microseconds(count: int) -> float:
        begun = time.perf_counter()
        for number in range(count):
            state.get(key(number % min(rows, 1_000)))
        return (time.perf_counter() - begun) / count * 1e6

    alone = microseconds(20_000)
    with state.reading():
        together = microseconds(20_000)
    print(f"  get: {alone:.1f} us alone, {together:.1f} us inside of reading()")


async def measure_state(directory: Path, rows: int, seconds: float) -> None:
    print(f"\nthe state with {rows} rows of {VALUE_BYTES} bytes")
    state = await State.open(directory / "state", clock=SystemClock())
    try:
        begun = time.perf_counter()
        await load(state, rows)
        print(f"  load: {rows / (time.perf_counter() - begun):.0f} rows a second")
        await overwrite(state, rows, seconds)
        time_reads(state, rows)
        works: list[tuple[str, Coroutine[Any, Any, Any]]] = [
            ("count", state.count(b"", b"\xff", 0)),
            ("scrub", state.scrub()),
            ("snapshot", state.create_snapshot()),
        ]
        for name, work in works:
            await with_lag(name, work)
    finally:
        await state.close()
    begun = time.perf_counter()
    state = await State.open(directory / "state", clock=SystemClock())
    print(f"  open: {(time.perf_counter() - begun) * 1e3:.1f} ms")
    await state.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="rows in the state")
    parser.add_argument("--seconds", type=float, default=4.0, help="of random overwrites")
    parser.add_argument("--directory", type=Path, default=None, help="where to write; on the disk to be measured")
    parser.add_argument("--skip-ways", action="store_true", help="only measure the state")
    options = parser.parse_args()
    print(f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        if not options.skip_ways:
            await compare_ways(Path(name), min(options.rows, 50_000))
        await measure_state(Path(name), options.rows, options.seconds)


if __name__ == "__main__":
    asyncio.run(main())
