"""The leader dies or freezes under an open loop of writes: nothing acknowledged is lost, doubled or contradicted."""

from __future__ import annotations

import asyncio
import statistics

from cluster.launcher import LocalCluster
from cluster.nemesis import Nemesis
from tests.integration.helpers import judge, under_load

MAX_MEDIAN_GAP_MS = 1_600
MAX_GAP_MS = 5_000


def assert_gaps(nemesis: Nemesis) -> None:
    gaps = [round(item.gap_ms) for item in nemesis.disturbances]
    print("gaps in ms:", gaps)
    assert max(gaps) <= MAX_GAP_MS, gaps
    if len(gaps) >= 10:  # a median of fewer says little
        assert statistics.median(gaps) <= MAX_MEDIAN_GAP_MS, gaps


async def test_kill_of_the_leader(cluster: LocalCluster, rounds: int) -> None:
    async with under_load(cluster) as workload:
        nemesis = Nemesis(cluster, workload)
        for _ in range(rounds):
            await nemesis.kill_leader()
    await judge(cluster, workload)
    assert_gaps(nemesis)


async def test_a_frozen_leader_does_not_believe_itself_when_it_wakes(
    cluster: LocalCluster, rounds: int, frozen_s: float
) -> None:
    async with under_load(cluster) as workload:
        nemesis = Nemesis(cluster, workload)
        for _ in range(rounds):
            await nemesis.freeze_leader(frozen_s)
    await judge(cluster, workload)
    assert_gaps(nemesis)


async def test_kill_of_all_nodes_at_once(cluster: LocalCluster, rounds: int) -> None:
    async with under_load(cluster) as workload:
        nemesis = Nemesis(cluster, workload)
        for _ in range(rounds):
            await nemesis.kill_all()
    report = await judge(cluster, workload)
    assert report.commits_count > 100


async def test_sigterm_hands_over(cluster: LocalCluster) -> None:
    async with under_load(cluster) as workload:
        leader = await asyncio.to_thread(cluster.wait_leader)
        began = workload.acknowledged_at_ms[-1]
        assert await asyncio.to_thread(cluster.terminate, leader), "it did not exit by itself"
        assert cluster.nodes[leader].child.exit_status == 0
        successor = await asyncio.to_thread(cluster.wait_leader, other_than=leader)
        assert successor != leader
        await asyncio.to_thread(cluster.restart, leader)
        gap_ms = workload.longest_gap_ms(began, workload.acknowledged_at_ms[-1])
    await judge(cluster, workload)
    print("gap in ms:", round(gap_ms))
    assert gap_ms <= MAX_GAP_MS
