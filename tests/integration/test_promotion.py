"""A region is promoted by itself, on real processes: a primary that is cut off stops; one that is lost is followed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from cluster.launcher import LocalCluster, LocalNode, NodeSpec
from cluster.topology import REPLICA, load_topology
from cluster.wan.cluster import WanCluster
from kvnode.base.errors import KvError
from kvnode.client import open_kv
from kvnode.codec.versionstamp import split
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


class Acknowledged(NamedTuple):
    """A write that was answered, and when; monotonic seconds."""

    key: tuple[str, int]
    epoch: int
    at: float


@asynccontextmanager
async def writer(name: str, addresses: Sequence[str]) -> AsyncIterator[list[Acknowledged]]:
    """Writes one key after the other, gives each up after a second, and keeps what was acknowledged."""
    done: list[Acknowledged] = []

    async def write() -> None:
        async with open_kv(list(addresses)) as kv:
            for number in range(100_000):
                try:
                    result = await kv.set((name, number), number, timeout_ms=1_000)
                except KvError:
                    await asyncio.sleep(0.02)
                else:
                    stamp = bytes.fromhex(result.versionstamp or "")
                    done.append(Acknowledged((name, number), split(stamp)[0], time.monotonic()))

    task = asyncio.ensure_future(write())
    try:
        yield done
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def all_keys(address: str, *names: str) -> set[tuple[str, int]]:
    async with open_kv([address]) as kv:
        return {entry.key for name in names async for entry in kv.list(prefix=(name,))}  # type: ignore[misc]


def latest_epoch(done: Sequence[Acknowledged]) -> int:
    return max((each.epoch for each in done), default=0)


async def test_two_sides_of_a_cut_network_never_both_answer(tmp_path: Path) -> None:
    """The primary region lives, with clients beside it, and nobody else hears of it for a while."""
    cluster = WanCluster(load_topology(), tmp_path / "cluster", arguments=ARGUMENTS)
    try:
        await asyncio.to_thread(cluster.start)
        await holder(cluster)
        old_names, new_names = cluster.names_in("us-east"), [*cluster.names_in("europe"), *cluster.names_in("asia")]
        old_addresses = [cluster.nodes[name].address for name in old_names]
        new_addresses = [cluster.nodes[name].address for name in new_names]
        async with writer("old", old_addresses) as old, writer("new", new_addresses) as new:
            await eventually(lambda: len(old) > 20 and len(new) > 5, "nothing is written", 20)
            pairs = await asyncio.to_thread(cluster.wan.cut_between, old_names, new_names)
            cut_at = time.monotonic()
            await eventually(lambda: latest_epoch(new) > 1, "no region was promoted", 40)
            print(f"written again {new[-1].at - cut_at:.1f} s after the cut")
            async with open_kv(old_addresses) as kv:
                refused = await error_of(kv.get(("old", 0), timeout_ms=1_500))
                assert refused.code == "PRIMARY_LEASE_LOST"
                assert (await kv.get(("old", 0), consistency="eventual")).value == 0
            await asyncio.to_thread(cluster.wan.heal, pairs)
            await eventually(lambda: latest_epoch(old) > 1, "the old side does not return", 40)
            wanted = latest_epoch(new)
            returned = [cluster.nodes[name] for name in old_names]
            await eventually(lambda: all(is_replica(node, wanted) for node in returned), "they do not return", 30)
        before = [each for each in (*old, *new) if each.epoch == 1]
        after = [each for each in (*old, *new) if each.epoch > 1]
        assert max(each.at for each in before) < min(each.at for each in after), "both sides have acknowledged"
        await assert_equal_digests(cluster)
        kept = await all_keys(new_addresses[0], "old", "new")
        gone = [each for each in before if each.key not in kept]
        assert all(each.at > cut_at - 1 for each in gone), "lost, although it had long arrived elsewhere"
        assert not gone or any((cluster.nodes[name].data_dir / "forks").exists() for name in old_names)
        assert {each.key for each in after} <= await all_keys(old_addresses[0], "old", "new")
        print(f"{len(before)} acknowledged before, {len(gone)} of them cut off, {len(after)} after")
    finally:
        await asyncio.to_thread(cluster.close)
