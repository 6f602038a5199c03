"""A whole replica region returns after long: the WAN carries one snapshot, and the region shares it."""

from __future__ import annotations

import asyncio
import time

import pytest

from cluster.launcher import LocalCluster, LocalNode
from kvnode.base import limits
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, eventually, fill, put
from tests.integration.install import MAX_MISSES_COUNT, Install
from tests.integration.test_replica_reads import metric
from tests.integration.test_replica_stall import frozen_midway
from tests.integration.test_replicas import MIB, SMALL_LOG, add_europe, arrives

VOTERS = "abc"


async def region_away_too_long(cluster: LocalCluster, total_bytes: int) -> list[str]:
    """Two replicas that are down while the log moves on beyond what is kept of it; the first one is followed by the
    other."""
    names = await add_europe(cluster)
    await leave_behind(cluster, names, total_bytes)
    return names


async def leave_behind(cluster: LocalCluster, names: list[str], total_bytes: int) -> None:
    for name in names:
        cluster.kill(name)
    last = max(cluster.nodes[name].status().last_index for name in VOTERS)
    await fill([cluster.nodes[name].address for name in VOTERS], total_bytes)
    for name in VOTERS:
        await asyncio.to_thread(cluster.nodes[name].admin.snapshot)

    def compacted() -> bool:
        return all(cluster.nodes[name].status().first_index > last + 1 for name in VOTERS)

    await eventually(compacted, "the log still reaches back to the replicas")


def snapshots_sent(cluster: LocalCluster, names: str | list[str]) -> int:
    return int(sum(metric(cluster.nodes[name], "kvnode_snapshots_sent_total") for name in names))


def bytes_sent(cluster: LocalCluster, names: str | list[str]) -> int:
    return int(sum(metric(cluster.nodes[name], "kvnode_snapshot_sent_bytes_total") for name in names))


@pytest.mark.parametrize("head_start_s", [-0.7, 0.7], ids=["neighbour-first", "neighbour-last"])
async def test_one_snapshot_crosses_the_wan(make_cluster: MakeCluster, head_start_s: float) -> None:
    """Also when who is to have it from its neighbour starts before that."""
    cluster = make_cluster(arguments=SMALL_LOG)
    first, second = await region_away_too_long(cluster, 8 * MIB)
    for name in (second, first) if head_start_s > 0 else (first, second):
        await asyncio.to_thread(cluster.restart, name, wait=False)
        await asyncio.sleep(abs(head_start_s))
    await asyncio.to_thread(cluster.wait_ready, [first, second])
    await put(cluster.addresses[0], "late")
    for name in (first, second):
        await arrives(cluster.nodes[name].address, "late", 20)
    # A replica goes on from a snapshot before its sender has heard that it was installed, and counts it.
    await eventually(lambda: snapshots_sent(cluster, [first]) == 1, "the neighbour has sent none")
    assert snapshots_sent(cluster, VOTERS) == 1
    over_the_wan, inside = bytes_sent(cluster, VOTERS), bytes_sent(cluster, [first])
    size_bytes = (await asyncio.to_thread(cluster.nodes["a"].admin.snapshot)).size_bytes
    for sent_bytes in (over_the_wan, inside):
        assert 8 * MIB < sent_bytes < 1.5 * size_bytes, (over_the_wan, inside, size_bytes)
    assert metric(cluster.nodes[second], "kvnode_snapshot_waiting") == 0
    await assert_equal_digests(cluster)


async def test_a_neighbour_that_freezes_while_it_fetches_is_taken_over_from(make_cluster: MakeCluster) -> None:
    """And goes on when it wakes."""
    cluster = make_cluster(arguments=SMALL_LOG)
    first, second = await region_away_too_long(cluster, 40 * MIB)
    neighbour, waiting = cluster.nodes[first], cluster.nodes[second]
    for _ in range(MAX_MISSES_COUNT):
        install = Install(neighbour.data_dir, size_bytes=40 * MIB)
        await asyncio.to_thread(cluster.restart, first, wait=False)
        if await asyncio.to_thread(frozen_midway, cluster, neighbour, install):
            break
        await leave_behind(cluster, [first, second], 40 * MIB)
    else:
        raise AssertionError("the snapshot is always there before its receiver can be frozen")
    before = snapshots_sent(cluster, VOTERS)
    await asyncio.to_thread(cluster.restart, second, wait=False)
    await eventually(lambda: is_waiting(waiting), "it does not leave the snapshot to its neighbour")
    began = time.monotonic()
    await put(cluster.addresses[0], "late")
    await arrives(waiting.address, "late", 30)
    waited_s = time.monotonic() - began
    assert snapshots_sent(cluster, VOTERS) == before + 1, "by now a voter has sent it to the one that waited"
    assert waited_s < limits.NEIGHBOUR_SNAPSHOT_WAIT_MS / 1_000 + 15
    cluster.resume(first)
    await arrives(neighbour.address, "late", 30)
    await assert_equal_digests(cluster)


async def test_a_neighbour_that_is_killed_again_and_again_holds_nobody_up(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(arguments=SMALL_LOG)
    first, second = await region_away_too_long(cluster, 8 * MIB)
    await asyncio.to_thread(cluster.restart, second, wait=False)
    for _ in range(3):
        await asyncio.to_thread(cluster.restart, first, wait=False)
        await asyncio.sleep(0.3)
        cluster.kill(first)
    await put(cluster.addresses[0], "late")
    await arrives(cluster.nodes[second].address, "late", 30)
    await asyncio.to_thread(cluster.restart, first, wait=False)
    await arrives(cluster.nodes[first].address, "late", 30)
    await assert_equal_digests(cluster)


def is_waiting(node: LocalNode) -> bool:
    status = node.status()
    return status is not None and status.HasField("snapshot_wait")
