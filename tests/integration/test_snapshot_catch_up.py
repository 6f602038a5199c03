"""A follower that was away while the log was compacted comes back by snapshot."""

from __future__ import annotations

import asyncio
import random

from cluster.launcher import LocalCluster
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, eventually, fill, get, put

MIB = 1_048_576
SMALL_LOG = ("--segment-bytes", str(MIB), "--log-retention-bytes", str(MIB))


async def leave_one_behind(cluster: LocalCluster, total_bytes: int) -> str:
    """Kill a follower, write past the log's retention, and compact; returns its name."""
    await put(cluster.addresses[0], "early", b"early value")
    leader = await asyncio.to_thread(cluster.wait_leader)
    away = next(name for name in cluster.nodes if name != leader)
    last = cluster.nodes[away].status().last_index
    cluster.kill(away)
    others = [node for node in cluster.nodes.values() if node.name != away]
    await fill([node.address for node in others], total_bytes)
    for node in others:
        answer = await asyncio.to_thread(node.admin.snapshot)
        assert answer.size_bytes > 0
        assert answer.index > last

    def compacted() -> bool:
        return all(node.status().first_index > last + 1 for node in others)

    await eventually(compacted, "the log was not compacted past what the follower holds")
    return away


async def test_comes_back_by_snapshot(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(arguments=SMALL_LOG)
    away = await leave_one_behind(cluster, 8 * MIB)
    await asyncio.to_thread(cluster.restart, away)
    await put(cluster.addresses[0], "late")
    node = cluster.nodes[away]
    await assert_equal_digests(cluster)
    assert await get(node.address, "early", strong=False) == b"early value"
    assert node.status().first_index > 2, "it replayed a log that nobody had any more"
    scrubbed = node.admin.digest(scrub=True)
    assert scrubbed.scrubbed
    assert scrubbed.matches


async def test_survives_kills_in_the_middle_of_the_install(make_cluster: MakeCluster, rounds: int) -> None:
    cluster = make_cluster(arguments=SMALL_LOG)
    away = await leave_one_behind(cluster, 40 * MIB)
    chance = random.Random(7)
    for _ in range(3 + rounds):
        await asyncio.to_thread(cluster.restart, away, wait=False)
        await asyncio.sleep(0.6 + chance.random())
        await asyncio.to_thread(cluster.kill, away)
    await asyncio.to_thread(cluster.restart, away)
    await put(cluster.addresses[0], "late")
    await assert_equal_digests(cluster)
    assert await get(cluster.nodes[away].address, "late", strong=False) == b"value"
    assert cluster.nodes[away].admin.digest(scrub=True).matches
