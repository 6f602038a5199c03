"""The leader is cut off in one direction only: it speaks and hears nothing, or hears and cannot speak."""

from __future__ import annotations

import asyncio

import pytest

from cluster.launcher import LocalCluster, NodeSpec
from cluster.namespaces import Namespaces
from cluster.workload import now_ms
from tests.integration.conftest import NAMES, MakeCluster
from tests.integration.helpers import judge, under_load

CUT_S = 6.0
MAX_GAP_MS = 5_000


@pytest.fixture
def apart(namespaces: Namespaces, make_cluster: MakeCluster) -> LocalCluster:
    """Three nodes, each in a network of its own."""
    hosts = namespaces.hosts
    return make_cluster(
        [NodeSpec(name, f"dc-{name}", host=hosts[name], prefix=namespaces.prefix(name)) for name in NAMES]
    )


@pytest.mark.parametrize("deaf", [True, False], ids=["leader hears nothing", "leader is not heard"])
async def test_one_way_partition_of_the_leader(
    apart: LocalCluster, namespaces: Namespaces, rounds: int, deaf: bool
) -> None:
    async with under_load(apart) as workload:
        for _ in range(rounds):
            leader = await asyncio.to_thread(apart.wait_leader)
            began_ms = now_ms()
            for other in NAMES:
                if other != leader:
                    namespaces.cut(*((other, leader) if deaf else (leader, other)))
            await asyncio.sleep(CUT_S)
            gap_ms = workload.longest_gap_ms(began_ms, now_ms())
            successor = await asyncio.to_thread(apart.wait_leader, other_than=leader)
            namespaces.heal()
            print(f"leader {leader}, then {successor}; gap {gap_ms:.0f} ms")
            assert gap_ms <= MAX_GAP_MS
            await asyncio.sleep(2)
    await judge(apart, workload)


async def test_full_partition_of_the_leader(apart: LocalCluster, namespaces: Namespaces) -> None:
    async with under_load(apart) as workload:
        leader = await asyncio.to_thread(apart.wait_leader)
        for other in NAMES:
            if other != leader:
                namespaces.cut(other, leader)
                namespaces.cut(leader, other)
        await asyncio.sleep(CUT_S)
        namespaces.heal()
        await asyncio.sleep(2)
    await judge(apart, workload)
