"""Seven nodes in three regions behind the WAN proxy: the distances are felt, and so is a cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.topology import load_topology
from cluster.wan.cluster import WanCluster
from cluster.wan.wan import both_ways
from tests.integration.helpers import assert_equal_digests, fill, get, put

MIB = 1_048_576


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[WanCluster]:
    cluster = WanCluster(load_topology(), tmp_path / "cluster")
    yield cluster
    cluster.close()


async def arrival_ms(address: str, name: str, since: float) -> float:
    while await get(address, name, strong=False) is None:
        assert time.monotonic() - since < 15, f"{name} did not arrive"
    return (time.monotonic() - since) * 1_000


async def test_distances_are_felt_and_so_is_a_cut(cluster: WanCluster) -> None:
    await asyncio.to_thread(cluster.start)
    home, europe, asia = (cluster.nodes[f"{region}-a"].address for region in ("us-east", "europe", "asia"))

    began = time.monotonic()
    await put(asia, "from afar")  # the session is opened first: two round trips
    assert time.monotonic() - began >= 4 * 0.094
    began = time.monotonic()
    await put(home, "news")
    assert await arrival_ms(asia, "news", began) >= 94

    before = cluster.wan.carried_bytes()
    await fill([home], MIB)
    await assert_equal_digests(cluster)
    after = cluster.wan.carried_bytes()
    carried = {pair: after[pair] - before[pair] for pair in after}
    names = {region: cluster.names_in(region) for region in ("us-east", "europe", "asia")}
    leader = cluster.wait_leader()
    for follower in names["us-east"]:
        assert follower == leader or carried[leader, follower] > MIB, "a follower was fed past the WAN"
    for region in ("europe", "asia"):
        over = sum(carried[pair] for pair in both_ways(names["us-east"], names[region]))
        assert over < 1.5 * MIB, "more than one stream a region"
        assert sum(carried[pair] for pair in both_ways(names[region], names[region])) > 0.05 * MIB

    pairs = cluster.wan.isolate(*names["europe"])
    began = time.monotonic()
    await put(home, "while Europe is cut off")
    assert time.monotonic() - began < 5
    await arrival_ms(asia, "while Europe is cut off", began)
    assert await get(europe, "while Europe is cut off", strong=False) is None
    assert await get(europe, "news", strong=False) == b"value", "it reads on"
    cluster.wan.heal(pairs)
    await arrival_ms(europe, "while Europe is cut off", time.monotonic())
    await assert_equal_digests(cluster)
