"""Leaders that read under a lease are frozen, killed and cut off: histories are as strict as without."""

from __future__ import annotations

import asyncio
import urllib.request

from cluster.launcher import LocalCluster, NodeSpec
from cluster.namespaces import Namespaces
from cluster.nemesis import Nemesis
from tests.integration.conftest import NAMES, MakeCluster
from tests.integration.helpers import judge, under_load

LEASED = ["--leader-lease"]
CUT_S = 4.0


def leased_reads(cluster: LocalCluster, name: str) -> float:
    with urllib.request.urlopen(f"http://{cluster.nodes[name].ops_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("kvnode_reads_leased_total ")))


async def test_leaders_with_a_lease_are_frozen_and_killed(
    make_cluster: MakeCluster, rounds: int, frozen_s: float
) -> None:
    cluster = make_cluster(arguments=LEASED)
    async with under_load(cluster) as workload:
        nemesis = Nemesis(cluster, workload)
        for _ in range(rounds):
            await nemesis.freeze_leader(frozen_s)
            await nemesis.kill_leader()
        leader = await asyncio.to_thread(cluster.wait_leader)
        await asyncio.sleep(1)
        assert await asyncio.to_thread(leased_reads, cluster, leader) > 0
    report = await judge(cluster, workload)
    assert report.commits_count > 100


async def test_a_leader_with_a_lease_is_cut_off(namespaces: Namespaces, make_cluster: MakeCluster, rounds: int) -> None:
    hosts = namespaces.hosts
    specs = [NodeSpec(name, f"dc-{name}", host=hosts[name], prefix=namespaces.prefix(name)) for name in NAMES]
    cluster = make_cluster(specs, arguments=LEASED)
    async with under_load(cluster) as workload:
        for _ in range(rounds):
            leader = await asyncio.to_thread(cluster.wait_leader)
            for other in NAMES:
                if other != leader:
                    namespaces.cut(leader, other)
                    namespaces.cut(other, leader)
            await asyncio.sleep(CUT_S)
            await asyncio.to_thread(cluster.wait_leader, other_than=leader)
            namespaces.heal()
            await asyncio.sleep(2)
    await judge(cluster, workload)
