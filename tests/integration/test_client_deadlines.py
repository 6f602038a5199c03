"""Whatever happens to the nodes, no call of a client outlasts its deadline, and the client goes on afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.launcher import LocalCluster
from kvnode.base.errors import KvError
from kvnode.client import Kv, open_kv
from tests.integration.helpers import a_follower

TIMEOUT_MS = 4_000
GRACE_S = 1.5  # this process shares two cores with three nodes that come and go
CALLERS_COUNT = 48
IDLE_STOP_S = 2.5  # a tenth of it on a machine that has nothing else to do


class Callers:
    """Many callers of one client, each of whom begins the next call when the one before has ended."""

    def __init__(self, kv: Kv) -> None:
        self.longest_s = 0.0
        self.succeeded_count = 0
        self.failures: dict[str, int] = {}
        self._kv = kv

    async def call_for_ever(self, number: int) -> None:
        key = ("caller", number)
        for count in range(1_000_000):
            began_s = time.monotonic()
            try:
                await (self._kv.get(key) if count % 3 == 2 else self._kv.set(key, count))
                self.succeeded_count += 1
            except KvError as error:
                self.failures[error.code] = self.failures.get(error.code, 0) + 1
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            await asyncio.sleep(0.01)

    async def next_success(self) -> None:
        """Wait until the client works again."""
        before = self.succeeded_count
        async with asyncio.timeout(10):
            while self.succeeded_count < before + CALLERS_COUNT:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def calling(cluster: LocalCluster) -> AsyncIterator[Callers]:
    async with open_kv(cluster.addresses, timeout_ms=TIMEOUT_MS) as kv:
        callers = Callers(kv)
        tasks = [asyncio.ensure_future(callers.call_for_ever(number)) for number in range(CALLERS_COUNT)]
        await callers.next_success()
        yield callers
        assert not [task for task in tasks if task.done()], "a caller ended"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert callers.longest_s < TIMEOUT_MS / 1000 + GRACE_S, (callers.longest_s, callers.failures)
    assert set(callers.failures) <= {"DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"}, callers.failures


async def test_no_call_outlasts_its_deadline_while_leaders_die_and_freeze(cluster: LocalCluster, rounds: int) -> None:
    async with calling(cluster) as callers:
        for _ in range(rounds):
            leader = await asyncio.to_thread(cluster.wait_leader)
            cluster.kill(leader)
            await callers.next_success()
            await asyncio.to_thread(cluster.restart, leader)
            leader = await asyncio.to_thread(cluster.wait_leader)
            cluster.pause(leader)
            await asyncio.sleep(3)
            cluster.resume(leader)
            await callers.next_success()


async def test_no_call_outlasts_its_deadline_without_a_majority(cluster: LocalCluster) -> None:
    async with calling(cluster) as callers:
        followers = [a_follower(cluster)]
        followers.append(a_follower(cluster, other_than=followers[0]))
        for name in followers:
            cluster.pause(name)
        await asyncio.sleep(TIMEOUT_MS / 1000 + 1)
        for name in followers:
            cluster.resume(name)
        await callers.next_success()
    assert callers.failures, "without a majority nothing can have been acknowledged"


async def test_an_idle_node_stops_at_once_also_with_clients_connected(cluster: LocalCluster) -> None:
    follower = a_follower(cluster)
    async with open_kv(cluster.nodes[follower].address, timeout_ms=TIMEOUT_MS) as kv:
        await kv.set(("k",), 1)
        began_s = time.monotonic()
        assert await asyncio.to_thread(cluster.terminate, follower)
        took_s = time.monotonic() - began_s
    assert cluster.nodes[follower].child.exit_status == 0
    assert took_s < IDLE_STOP_S, f"it took {took_s:.1f} s"
