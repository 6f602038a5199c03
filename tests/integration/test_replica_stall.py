"""A region that falls behind: writes that wait for it, and a snapshot that brings it back."""

from __future__ import annotations

import asyncio
import subprocess
import time

from cluster.launcher import LocalCluster, LocalNode
from kvnode.client import Admin, open_kv
from kvnode.proto.kv.v1 import admin_pb2
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, error_of, eventually, fill, put
from tests.integration.install import Install
from tests.integration.test_replica_reads import EUROPE, metric, replica_of
from tests.integration.test_replicas import MIB, SMALL_LOG, arrives

NOTHING_TO_LOSE = "With the whole primary region no write would be lost: europe lags 0.0 s."


async def test_writes_wait_while_no_region_has_the_newest_ones(make_cluster: MakeCluster) -> None:
    """on_replication_stall = stop: held, told why, and taken again when the region is back."""
    bound = ("--max-unreplicated-ms", "2000", "--on-replication-stall", "stop")
    cluster = make_cluster(arguments=bound)
    replica = await replica_of(cluster)
    leader = cluster.nodes[await asyncio.to_thread(cluster.wait_leader)]
    async with open_kv(cluster.addresses[:3]) as kv, Admin([leader.address]) as admin:
        await kv.set(("k",), 1)
        await eventually(lambda: is_current(leader), "the leader does not learn that the region is current")
        began = time.monotonic()
        while (status := await admin.cluster_status()).outlook != NOTHING_TO_LOSE:
            assert time.monotonic() - began < 15, status
        assert status.healthy
        cluster.kill(EUROPE.name)
        await asyncio.to_thread(refuses_another_region, replica)
        await kv.set(("k",), 2)  # the region does not have it; the bound begins to run
        await eventually(lambda: metric(leader, "kvnode_replication_stalled") == 1, "it does not stall")
        for node in (leader, cluster.nodes[next(name for name in "abc" if name != leader.name)]):
            async with open_kv([node.address]) as one:
                error = await error_of(one.set(("k",), 3, timeout_ms=2_000))
                assert error.code == "REPLICATION_STALLED" and error.not_applied, error
                assert "europe" in error.message and "2 s behind" in error.message
        assert (await kv.get(("k",))).value == 2, "reads go on"
        status = await admin.cluster_status()
        assert not status.healthy and "writes are held" in status.summary + str(status.nodes)
        held = asyncio.ensure_future(kv.set(("k",), 4, timeout_ms=30_000))
        await asyncio.to_thread(cluster.restart, EUROPE.name)
        assert (await held).ok, "a write that waited is taken when the region has caught up"
        await eventually(lambda: metric(leader, "kvnode_replication_stalled") == 0, "it stays stalled")
    async with open_kv([replica.address]) as far:
        assert (await far.get(("k",))).value == 4


def refuses_another_region(replica: LocalNode) -> None:
    """A node whose configuration says another region than the cluster knows does not start."""
    command = ["asia" if word == EUROPE.region else word for word in replica.child.command]
    done = subprocess.run(
        command, env=replica.child.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "europe/eu-a" in done.stderr and "asia/eu-a" in done.stderr, done


def is_current(leader: LocalNode) -> bool:
    status = leader.status()
    return status is not None and [(r.region, r.node, r.lag_entries) for r in status.regions] == [("europe", "e1", 0)]


async def test_a_snapshot_to_a_replica_goes_on_where_it_broke(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(arguments=SMALL_LOG)
    replica = await replica_of(cluster)
    for number in range(3):  # once it came before anybody could break it
        if await broken_off(cluster, replica, number):
            break
    else:
        raise AssertionError("the snapshot is always there before it can be broken off")
    await asyncio.to_thread(cluster.restart, replica.name)
    await put(cluster.addresses[0], "late")
    await arrives(replica.address, "late", 30)
    assert metric(replica, "kvnode_snapshot_resumed_bytes_total") >= MIB, "it was sent from the beginning"
    assert metric(replica, "kvnode_snapshots_installed_total") == 1
    await assert_equal_digests(cluster)


async def broken_off(cluster: LocalCluster, replica: LocalNode, number: int) -> bool:
    """Kill the replica while it takes in a snapshot; False when that was over too soon."""
    cluster.kill(replica.name)
    await fill([cluster.nodes[name].address for name in "abc"], 40 * MIB, prefix=f"fill{number}")
    for name in "abc":
        await asyncio.to_thread(cluster.nodes[name].admin.snapshot)
    install = Install(replica.data_dir, size_bytes=40 * MIB)
    await asyncio.to_thread(cluster.restart, replica.name, wait=False)
    if not await asyncio.to_thread(frozen_midway, cluster, replica, install):
        return False
    sending = [each for name in "abc" for each in sent_by(cluster.nodes[name])]
    cluster.kill(replica.name)
    assert len(sending) == 1, sending
    assert sending[0].name == replica.name and 0 < sending[0].moved_bytes < sending[0].size_bytes
    return True


def frozen_midway(cluster: LocalCluster, replica: LocalNode, install: Install) -> bool:
    deadline = time.monotonic() + 60
    while install.held_bytes() < 2 * MIB and not install.is_moved():
        assert time.monotonic() < deadline, "no snapshot came"
        time.sleep(0.001)
    cluster.pause(replica.name)
    return 2 * MIB <= install.held_bytes() < 30 * MIB


def sent_by(node: LocalNode) -> list[admin_pb2.SnapshotProgress]:
    status = node.status()
    return [each for each in status.snapshots if not each.incoming] if status is not None else []
