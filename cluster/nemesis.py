"""What befalls a cluster, in the terms of a test: each disturbance heals itself and says how long it took."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from cluster.launcher import LocalCluster
from cluster.workload import Workload, now_ms

SETTLE_S = 1.5


class Disturbance(NamedTuple):
    """One that is over. `gap_ms` is the longest time without an acknowledged write from its beginning on."""

    what: str
    node: str
    gap_ms: float


class Nemesis:
    """Disturbs a cluster under a workload."""

    def __init__(self, cluster: LocalCluster, workload: Workload, settle_s: float = SETTLE_S) -> None:
        self.cluster = cluster
        self.workload = workload
        self.settle_s = settle_s
        self.disturbances: list[Disturbance] = []

    async def kill_leader(self) -> None:
        """kill -9 of the leader; back once another leads and has written."""
        victim = await asyncio.to_thread(self.cluster.wait_leader)
        began_ms = now_ms()
        await asyncio.to_thread(self.cluster.kill, victim)
        await asyncio.to_thread(self.cluster.wait_leader, other_than=victim)
        await asyncio.sleep(self.settle_s)
        self._over("kill -9", victim, began_ms)
        await asyncio.to_thread(self.cluster.restart, victim)
        await asyncio.sleep(self.settle_s)

    async def freeze_leader(self, frozen_s: float) -> None:
        """SIGSTOP of the leader for a while; when it wakes it must not believe itself."""
        victim = await asyncio.to_thread(self.cluster.wait_leader)
        began_ms = now_ms()
        self.cluster.pause(victim)
        try:
            await asyncio.sleep(frozen_s)
        finally:
            self.cluster.resume(victim)
        await asyncio.sleep(self.settle_s)
        self._over("SIGSTOP", victim, began_ms)

    async def kill_all(self) -> None:
        """kill -9 of every node at once; they come back by themselves."""
        began_ms = now_ms()
        names: Sequence[str] = list(self.cluster.nodes)
        for name in names:
            self.cluster.kill(name)
        for name in names:
            self.cluster.restart(name, wait=False)
        await asyncio.to_thread(self.cluster.wait_ready)
        await asyncio.sleep(self.settle_s)
        self._over("kill -9 of all", ",".join(names), began_ms)

    def _over(self, what: str, node: str, began_ms: float) -> None:
        self.disturbances.append(Disturbance(what, node, self.workload.longest_gap_ms(began_ms, now_ms())))
