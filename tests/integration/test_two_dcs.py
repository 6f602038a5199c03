"""A commit needs a majority and two data centers."""

from __future__ import annotations

import asyncio

from cluster.launcher import NodeSpec
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, error_of, get, put

FIVE = (
    NodeSpec("a1", "dc-a"),
    NodeSpec("a2", "dc-a"),
    NodeSpec("a3", "dc-a"),
    NodeSpec("b", "dc-b"),
    NodeSpec("c", "dc-c"),
)


async def test_a_majority_in_one_data_center_acknowledges_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(FIVE, arguments=["--allow-unsafe-topology"])
    address = cluster.nodes["a1"].address
    await put(address, "before")
    cluster.pause("b")
    cluster.pause("c")
    # Three of five stand together and may well have a leader, but in one data center.
    errors = await asyncio.gather(*(error_of(put(address, f"alone-{number}", timeout_ms=4_000)) for number in range(3)))
    assert errors, "a write was acknowledged in one data center"
    cluster.resume("b")
    await put(address, "after", timeout_ms=20_000)
    cluster.resume("c")
    for node in cluster.nodes.values():
        assert await get(node.address, "before") == b"value"
        assert await get(node.address, "after") == b"value"
    await assert_equal_digests(cluster)


async def test_two_data_centers_of_three_are_enough(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = cluster.wait_leader()
    cluster.kill(next(name for name in cluster.nodes if name != leader))
    await put(cluster.nodes[leader].address, "two")
    assert await get(cluster.nodes[leader].address, "two") == b"value"
