"""A replica that was removed is one no more: it gets nothing, serves nothing strong, and says so."""

from __future__ import annotations

import asyncio
import shutil

from cluster.launcher import LocalCluster
from kvnode.client import open_kv
from tests.integration.helpers import eventually, put
from tests.integration.test_membership import kvnode, refused, roles
from tests.integration.test_replicas import add_europe, arrives


async def test_a_removed_replica_is_fed_no_more_and_says_so(cluster: LocalCluster) -> None:
    first, second = await add_europe(cluster)
    node = cluster.nodes[second]
    await put(cluster.addresses[0], "before")
    await arrives(node.address, "before")
    await kvnode(cluster, "member", "remove", second)

    def knows() -> bool:
        status = node.status()
        return status is not None and "MEMBER_REMOVED" in " ".join(status.problems) and not node.ready()

    await eventually(knows, "the removed node goes on as if it were a member, healthy and ready", 15)
    await put(cluster.addresses[0], "after")
    await arrives(cluster.nodes[first].address, "after")
    async with open_kv([node.address]) as kv:
        assert (await kv.get(("before",), consistency="eventual")).versionstamp is not None
        assert (await kv.get(("after",), consistency="eventual")).versionstamp is None, "it goes on receiving"
    for name in (*"abc", first):
        status = cluster.nodes[name].status()
        assert status is not None and second not in {replica.name for replica in status.replicas}


async def test_a_removed_replicas_data_directory_does_not_come_back(cluster: LocalCluster) -> None:
    """As `kvnode member remove --help` says."""
    _, second = await add_europe(cluster)
    node = cluster.nodes[second]
    await kvnode(cluster, "member", "remove", second)
    said = await refused(cluster, "member", "add", node.address, "--replica")
    assert "MEMBER_REMOVED" in said and "empty data directory" in said
    assert await asyncio.to_thread(cluster.terminate, second)
    shutil.rmtree(node.data_dir)
    await asyncio.to_thread(cluster.restart, second, wait=False)
    await asyncio.to_thread(cluster.wait_listening, second)
    answer = await kvnode(cluster, "member", "add", node.address, "--replica")
    assert roles(answer)[second] == "replica"
    await asyncio.to_thread(cluster.wait_ready, [second])
    await put(cluster.addresses[0], "again")
    await arrives(node.address, "again")
