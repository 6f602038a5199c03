"""A region is promoted by itself, on real processes: a primary that is cut off stops; one that is lost is followed."""

from __future__ import annotations

import asyncio
import time

from cluster.launcher import LocalCluster, LocalNode, NodeSpec
from cluster.topology import REPLICA
from kvnode.client import open_kv
from kvnode.proto.kv.v1 import admin_pb2
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, error_of, eventually, get
from tests.integration.test_failover import PRIMARY
from tests.integration.test_replica_reads import metric
from tests.integration.test_replicas import arrives

LEASE_MS = 3_200
ARGUMENTS = ("--automatic-promotion", "--primary-lease-ms", str(LEASE_MS), "--election-timeout-ms", "800")
SEVEN = (
    NodeSpec("a", "us-a"),
    NodeSpec("b", "us-b"),
    NodeSpec("c", "us-c"),
    NodeSpec("d", "eu-a", "europe", REPLICA),
    NodeSpec("e", "eu-b", "europe", REPLICA),
    NodeSpec("f", "asia-a", "asia", REPLICA),
    NodeSpec("g", "asia-b", "asia", REPLICA),
)
OTHERS = ("d", "e", "f", "g")


def lease(node: LocalNode) -> admin_pb2.PrimaryLease:
    status = node.status()
    return status.primary_lease if status is not None else admin_pb2.PrimaryLease()


def epoch(node: LocalNode) -> int:
    status = node.status()
    return status.epoch if status is not None else 0


async def holder(cluster: LocalCluster) -> LocalNode:
    """The leader, once it holds the lease."""
    leader = cluster.nodes[await asyncio.to_thread(cluster.wait_leader)]
    await eventually(lambda: lease(leader).remaining_ms > 0, "nobody holds the primary lease", 20)
    return leader


async def test_a_primary_that_is_cut_off_stops_and_one_that_is_lost_is_followed(make_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(make_cluster, SEVEN, arguments=ARGUMENTS)
    leader = await holder(cluster)
    assert lease(leader).lease_ms == LEASE_MS and "automatic_promotion is on. Its price" in leader.child.log_text()
    async with open_kv([node.address for node in cluster.nodes.values()]) as kv:
        await kv.set(("before",), 1)
        for name in OTHERS:
            await arrives(cluster.nodes[name].address, "before", 10)
        await it_stops_while_nobody_grants_the_lease(cluster, leader)

        for name in PRIMARY:
            cluster.kill(name)
        began = time.monotonic()
        assert (await kv.set(("after",), 2, timeout_ms=60_000)).ok, "the same client goes on"
        print(f"written again {time.monotonic() - began:.1f} s after the loss of the primary region")
        promoted = await holder(cluster)
        assert promoted.name in OTHERS and epoch(promoted) > 1
        assert sum(metric(cluster.nodes[name], "kvnode_promotions") for name in OTHERS) == 1
        assert (await kv.get(("before",))).value == 1

        for name in PRIMARY:
            await asyncio.to_thread(cluster.restart, name, wait=False)
        wanted = epoch(promoted)
        await eventually(lambda: all(is_replica(cluster.nodes[n], wanted) for n in PRIMARY), "they do not return", 30)
        await kv.set(("last",), 3)
        assert await get(cluster.nodes["a"].address, "last") is not None
    await assert_equal_digests(cluster)


def is_replica(node: LocalNode, in_epoch: int) -> bool:
    status = node.status()
    return status is not None and status.self.role == "replica" and status.epoch == in_epoch and bool(status.leader_id)


async def it_stops_while_nobody_grants_the_lease(cluster: LocalCluster, leader: LocalNode) -> None:
    """The other regions stand still: the primary answers nothing strong, and goes on when they do."""
    async with open_kv([cluster.nodes[name].address for name in PRIMARY]) as kv:
        await kv.set(("cut",), 1)
        for name in OTHERS:
            cluster.pause(name)
        await asyncio.sleep(LEASE_MS / 1_000)
        assert lease(leader).remaining_ms == 0 and leader.status().role == "leader"  # type: ignore[union-attr]
        write, read = await asyncio.gather(
            error_of(kv.set(("cut",), 2, timeout_ms=1_500)), error_of(kv.get(("cut",), timeout_ms=1_500))
        )
        assert (write.code, read.code) == ("PRIMARY_LEASE_LOST", "PRIMARY_LEASE_LOST") and write.not_applied
        assert (await kv.get(("cut",), consistency="eventual")).value == 1
        waiting = asyncio.ensure_future(kv.set(("cut",), 3, timeout_ms=20_000))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        for name in OTHERS:
            cluster.resume(name)
        assert (await waiting).ok
        assert epoch(leader) == 1 and lease(leader).remaining_ms > 0
