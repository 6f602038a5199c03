"""Seven nodes in three regions behind the WAN proxy: the distances are felt, and so is a cut."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.topology import load_topology
from cluster.wan.cluster import WanCluster
from cluster.wan.wan import both_ways
from kvnode.base.errors import TooStale
from kvnode.client import open_kv
from tests.integration.helpers import assert_equal_digests, get, put

MIB = 1_048_576
MAX_STALENESS_MS = 3_000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[WanCluster]:
    cluster = WanCluster(load_topology(), tmp_path / "cluster")
    yield cluster
    cluster.close()


async def arrival_ms(address: str, name: str, since: float) -> float:
    while await get(address, name, strong=False) is None:
        assert time.monotonic() - since < 15, f"{name} did not arrive"
    return (time.monotonic() - since) * 1_000


async def carried_by_a_mebibyte(cluster: WanCluster, names: dict[str, list[str]]) -> dict[str, int]:
    """What the links carried while a mebibyte that cannot be compressed was written; the least of the followers'."""
    leader = await asyncio.to_thread(cluster.wait_leader)
    before = cluster.wan.carried_bytes()
    for number in range(32):
        await put(cluster.nodes[leader].address, f"mebibyte {number}", os.urandom(MIB // 32))
    await assert_equal_digests(cluster)
    after = cluster.wan.carried_bytes()

    def between(some: list[str], others: list[str]) -> int:
        return sum(after[pair] - before[pair] for pair in both_ways(some, others))

    carried = {}
    for region in ("europe", "asia"):
        carried[f"to {region}"] = between(names["us-east"], names[region])
        carried[f"inside {region}"] = between(names[region][:1], names[region][1:])
    carried["to a follower"] = min(between([leader], [name]) for name in names["us-east"] if name != leader)
    return carried


async def test_distances_are_felt_and_so_is_a_cut(cluster: WanCluster) -> None:
    await asyncio.to_thread(cluster.start)
    home, europe, asia = (cluster.nodes[f"{region}-a"].address for region in ("us-east", "europe", "asia"))

    began = time.monotonic()
    await put(asia, "from afar")  # the session is opened first: two round trips
    assert time.monotonic() - began >= 4 * 0.094
    began = time.monotonic()
    await put(home, "news")
    assert await arrival_ms(asia, "news", began) >= 94

    names = {region: cluster.names_in(region) for region in ("us-east", "europe", "asia")}
    # One stream a region, and from the leader to each follower: a second one would carry twice as much each time. A
    # replica that goes over to another source meanwhile, as it does at the start or when a busy machine is silent for
    # a while, is sent a part twice; that is measured again.
    deadline = time.monotonic() + 40
    while True:
        carried = await carried_by_a_mebibyte(cluster, names)
        if all(MIB < bytes_count < 1.3 * MIB for bytes_count in carried.values()):
            break
        assert time.monotonic() < deadline, f"a second stream, or a replica that feeds no neighbour: {carried}"

    patient, moving, alone = open_kv([europe]), open_kv([europe, home]), open_kv([europe])
    unbounded = patient.watch([("while Europe is cut off",)], consistency="eventual")
    bounded = [
        client.watch([("while Europe is cut off",)], consistency="eventual", max_staleness_ms=MAX_STALENESS_MS)
        for client in (moving, alone)
    ]
    for watch in (unbounded, *bounded):
        assert not (await anext(watch))[0].exists
    behind = [asyncio.ensure_future(anext(watch)) for watch in (unbounded, *bounded)]
    await asyncio.sleep(2 * MAX_STALENESS_MS / 1_000)
    assert not any(task.done() for task in behind), "a replica that follows is fresh enough"

    pairs = cluster.wan.isolate(*names["europe"])
    began = time.monotonic()
    await put(home, "while Europe is cut off")
    assert time.monotonic() - began < 5
    await arrival_ms(asia, "while Europe is cut off", began)
    async with open_kv([europe]) as kv:
        assert (await kv.get(("while Europe is cut off",), consistency="eventual")).versionstamp is None
        assert (await kv.get(("news",), consistency="eventual")).versionstamp is not None, "it reads on"
    (entry,) = await asyncio.wait_for(behind[1], 15)
    assert entry.exists and 0 <= entry.age_ms <= MAX_STALENESS_MS, "it went on at a fresher node"
    with pytest.raises(TooStale):
        await asyncio.wait_for(behind[2], 15)
    assert not behind[0].done(), "without a bound it waits for its node"
    cluster.wan.heal(pairs)
    assert (await asyncio.wait_for(behind[0], 15))[0].exists
    for client in (patient, moving, alone):
        await client.close()
    await arrival_ms(europe, "while Europe is cut off", time.monotonic())
    await assert_equal_digests(cluster)
