"""Replicas of another region, on real processes: they follow, serve, take over from one another, and catch up."""

from __future__ import annotations

import asyncio
import time

from cluster.launcher import LocalCluster, NodeSpec
from kvnode.client import open_kv
from kvnode.client.queue import QueueMessage
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, eventually, fill, get, judge, put, under_load
from tests.integration.test_membership import kvnode, refused, roles

EUROPE = (NodeSpec("e1", "eu-a", "europe"), NodeSpec("e2", "eu-b", "europe"))
MIB = 1_048_576
SMALL_LOG = ("--segment-bytes", str(MIB), "--log-retention-bytes", str(MIB))


async def add_europe(cluster: LocalCluster) -> list[str]:
    """Join two replicas; returns their names, the one first that its neighbour follows."""
    for spec in EUROPE:
        node = await asyncio.to_thread(cluster.join, spec)
        answer = await kvnode(cluster, "member", "add", node.address, "--replica", at="a")
        assert roles(answer)[spec.name] == "replica"
    names = [spec.name for spec in EUROPE]
    await asyncio.to_thread(cluster.wait_ready, names)
    ids = {member["name"]: int(member["node_id"]) for member in answer["members"]}
    return sorted(names, key=lambda name: ids[name])


async def arrives(address: str, name: str, timeout_s: float = 5.0) -> float:
    """Wait until an eventual read shows the key; returns after how many seconds."""
    began = time.monotonic()
    async with open_kv([address]) as kv:
        while (await kv.get((name,), consistency="eventual")).versionstamp is None:
            assert time.monotonic() - began < timeout_s, f"{name} did not arrive"
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_replicas_follow_serve_and_forward(cluster: LocalCluster) -> None:
    await put(cluster.addresses[0], "before")
    names = await add_europe(cluster)
    for name in names:
        node = cluster.nodes[name]
        await arrives(node.address, "before")
        await put(node.address, f"through {name}")  # the leader takes it
        assert await get(node.address, f"through {name}") == b"value"  # a strong read
    for name in names:
        await arrives(cluster.nodes[name].address, f"through {names[-1]}")
    await assert_equal_digests(cluster)
    said = await refused(cluster, "member", "promote", names[0])
    assert "MEMBER_ROLE_INVALID" in said and "kvnode failover" in said
    for name in names:
        told = cluster.nodes[name].status()
        assert told is not None and told.role == "replica"
        assert 'kvnode_role{role="replica"} 1.0' in cluster.nodes[name].http("/metrics")[1]
    listed = roles(await kvnode(cluster, "member", "list"))
    assert listed == {"a": "voter", "b": "voter", "c": "voter", "e1": "replica", "e2": "replica"}


async def test_a_replica_of_the_primary_region_is_refused(cluster: LocalCluster) -> None:
    node = await asyncio.to_thread(cluster.join, NodeSpec("d", "dc-d"))
    assert "primary region" in await refused(cluster, "member", "add", node.address, "--replica")
    assert set(roles(await kvnode(cluster, "member", "list"))) == {"a", "b", "c"}


async def test_under_kills_of_leader_and_neighbour_nothing_is_missing(cluster: LocalCluster) -> None:
    first, second = await add_europe(cluster)
    async with under_load(cluster) as workload:
        cluster.kill(first)  # its neighbour goes on from a voter
        await put(cluster.addresses[0], "without the first")
        assert await arrives(cluster.nodes[second].address, "without the first") < 3
        await asyncio.to_thread(cluster.restart, first)
        leader = await asyncio.to_thread(cluster.wait_leader)
        cluster.kill(leader)
        await asyncio.sleep(3)
        await asyncio.to_thread(cluster.restart, leader)
        await asyncio.sleep(1)
    await judge(cluster, workload)


async def test_a_replica_that_was_away_too_long_comes_back_by_snapshot(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(arguments=SMALL_LOG)
    names = await add_europe(cluster)
    for name in names:
        cluster.kill(name)
    await fill([cluster.nodes[name].address for name in "abc"], 8 * MIB)
    for name in "abc":
        await asyncio.to_thread(cluster.nodes[name].admin.snapshot)
    for name in names:
        await asyncio.to_thread(cluster.restart, name)
    await put(cluster.addresses[0], "late")
    for name in names:
        await arrives(cluster.nodes[name].address, "late", 20)
    await assert_equal_digests(cluster)
    status = cluster.nodes[names[0]].status()
    assert status is not None and status.first_index > 2, "it replayed a log that nobody had any more"


async def test_without_a_primary_region_replicas_read_on(cluster: LocalCluster) -> None:
    names = await add_europe(cluster)
    await put(cluster.addresses[0], "last")
    for name in names:
        await arrives(cluster.nodes[name].address, "last")
    for name in "abc":
        cluster.kill(name)
    for name in names:
        assert await arrives(cluster.nodes[name].address, "last") < 1
    for name in "abc":
        await asyncio.to_thread(cluster.restart, name, wait=False)
    await asyncio.to_thread(cluster.wait_ready)
    await put(cluster.addresses[0], "again")
    for name in names:
        await arrives(cluster.nodes[name].address, "again")
    await eventually(lambda: all(node.ready() for node in cluster.nodes.values()), "not all are ready")


async def test_a_consumer_at_a_replica_handles_and_acknowledges(cluster: LocalCluster) -> None:
    """What it asks and says goes on to the leader, the next one too."""
    first, second = await add_europe(cluster)
    handled: dict[float, int] = {}

    async def handle(message: QueueMessage) -> None:
        handled[message.value] = handled.get(message.value, 0) + 1
        await asyncio.sleep(0.01)

    async with open_kv(cluster.addresses[:3]) as kv, open_kv(cluster.nodes[second].address) as far:
        listening = asyncio.ensure_future(far.listen_queue(handle, queue="far", concurrency=8, lease_ms=2_000))
        for number in range(100):
            await kv.enqueue(float(number), queue="far")
        await far.enqueue(100.0, queue="far")  # and messages come in there too
        await eventually(lambda: len(handled) > 20, "a consumer at a replica gets nothing")
        leader = await asyncio.to_thread(cluster.wait_leader)
        await asyncio.to_thread(cluster.kill, leader)
        await eventually(lambda: len(handled) == 101, "not all were handled", 30.0)
        await asyncio.to_thread(cluster.restart, leader)
        async with asyncio.timeout(20):
            while (status := (await kv.queues.status("far"))[0]).in_flight_count or status.waiting_count:
                await asyncio.sleep(0.1)
        assert (status.acknowledged_total, status.dead_total) == (101, 0)
        assert not listening.done()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert cluster.nodes[first].child.running
