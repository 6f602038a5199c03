"""Runs rows of the table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.drill.bulk import bulk_write
from cluster.drill.judge import Measured, Verdict, judge, waits
from cluster.drill.measures import worst_wait_ms
from cluster.drill.pauses import Pauses, stolen_ms
from cluster.drill.rows import Row
from cluster.drill.stage import Stage
from cluster.drill.traffic import Traffic
from cluster.drill.verify import verify
from cluster.launcher import ClusterFailed
from cluster.workload import now_ms
from kvnode.base.errors import KvError
from kvnode.codec.versionstamp import split

SETTLE_S = 2.0
AFTERWARDS_S = 1.5
BEFORE_MS = 1_000.0
CAUGHT_UP_TIMEOUT_S = 120.0


class Drill:
    """One after the other, on one stage.

    Args:
        stage: started.
        say: told what is going on.
    """

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._say = say
        self._serial = 0

    async def run(self, row: Row, repetitions_count: int) -> Verdict:
        """Play a row."""
        runs = []
        for number in range(repetitions_count):
            self._say(f"{row.what} ({number + 1} of {repetitions_count})")
            try:
                runs.append(await self._once(row))
            except (KvError, ClusterFailed) as error:
                runs.append(Measured(violations=[f"it could not be played to its end: {error}"]))
            self._say(f"  {runs[-1].line}")
        return judge(row, runs)

    async def _once(self, row: Row) -> Measured:
        self._serial += 1
        traffic = Traffic(self._stage.clients, f"drill {self._serial}")
        with Pauses() as pauses:
            traffic.start()
            try:
                await asyncio.sleep(SETTLE_S)
                began, stolen = now_ms(), stolen_ms()
                async with row.fault(self._stage):
                    if row.changes_count:
                        await bulk_write(self._stage, f"bulk {self._serial}", row.changes_count)
                    await asyncio.sleep(row.hold_s)
                    ended = now_ms()
                await self._catch_up(traffic)
                caught_up = now_ms() - ended  # the start of a process counts
                await asyncio.sleep(AFTERWARDS_S)
                until, stolen = now_ms(), stolen_ms() - stolen
            finally:
                await traffic.stop()
        # What the fault did shows while it lasts; what its end did counts as well.
        measured = Measured(waits(traffic.record, self._stage.home, self._stage.away, began, until))
        # What the machine alone costs shows before the fault. At the return processes start, on the others' cores.
        measured.figures["own pause"] = pauses.longest_ms(began, until)
        measured.figures["stolen"] = stolen
        home_writes = traffic.record.of("write", self._stage.home)
        measured.figures["writes before the fault"] = worst_wait_ms(home_writes, began - BEFORE_MS, began)
        measured.figures["writes before the return"] = worst_wait_ms(home_writes, began, ended)
        measured.figures["lasted"] = ended - began
        measured.figures["caught up"] = caught_up
        await verify(self._stage, traffic, measured)
        return measured

    async def _catch_up(self, traffic: Traffic) -> None:
        """Until every node has applied what was acknowledged up to now."""
        newest = max(traffic.record.acknowledged().values(), default=b"")
        if newest:
            index = split(newest)[1]
            await asyncio.to_thread(self._stage.cluster.wait_applied, index, CAUGHT_UP_TIMEOUT_S)
