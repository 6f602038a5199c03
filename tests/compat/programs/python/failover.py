"""failover.mjs, for PyPI denokv, which has no watch."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from denokv import Kv, KvU64, open_kv

TASKS_COUNT = 8


class Run:
    """The counting and what was seen of it."""

    def __init__(self, kv: Kv, options: dict[str, Any]) -> None:
        self.kv, self.options = kv, options
        self.counter = ("failover", options["run"], "counter")
        self.errors: list[str] = []
        self.conflicts: list[int] = []
        self.slowest_s = self.longest_pause_s = 0.0
        self.last_done = time.monotonic()

    async def paced(self, count: int, operation: Callable[[int], Awaitable[None]]) -> None:
        """Do `count` operations in TASKS_COUNT tasks, evenly spread over the time."""
        start, numbers = time.monotonic(), iter(range(count))

        async def task() -> None:
            for number in numbers:
                await asyncio.sleep(start + number * self.options["seconds"] / count - time.monotonic())
                begun = time.monotonic()
                try:
                    await operation(number)
                except Exception as error:
                    self.errors.append(f"{type(error).__name__}: {error}; {error.__cause__}")
                now = time.monotonic()
                self.slowest_s = max(self.slowest_s, now - begun)
                self.longest_pause_s = max(self.longest_pause_s, now - self.last_done)
                self.last_done = now

        await asyncio.gather(*(task() for _ in range(TASKS_COUNT)))

    def record(self, *parts: float) -> tuple[Any, ...]:
        """A record's key."""
        return ("failover", self.options["run"], "record", *parts)

    async def add(self, number: int) -> None:
        """One more on the counter."""
        await self.kv.sum(self.counter, KvU64(1))

    async def append(self, number: int) -> None:
        """One record, unless it is there."""
        key = self.record(float(number))
        result = await self.kv.atomic().check_key_not_set(key).set(key, f"record {number}").write()
        if not result.ok:
            self.conflicts.append(number)


async def _main() -> None:
    options = json.loads(sys.argv[1])
    async with await open_kv(options["url"], access_token=os.environ["DENO_KV_ACCESS_TOKEN"]) as kv:
        run = Run(kv, options)
        await kv.get(run.counter)
        Path(options["started"]).touch()
        await asyncio.gather(run.paced(options["count"], run.add), run.paced(options["records"], run.append))
        found = [entry.key[-1] async for entry in kv.list(prefix=run.record())]
        _, entry = await kv.get(run.counter)
    report = {
        "counter": entry.value.value if entry else 0,  # type: ignore[attr-defined]
        "records": len(found) if len(found) == len(set(found)) else -1,
        "conflicts": run.conflicts,
        "errors": run.errors,
        "frames": 0,
        "slowestMs": round(run.slowest_s * 1000),
        "longestPauseMs": round(run.longest_pause_s * 1000),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(_main())
