"""Nodes that ask to be taken in, as containers do: nobody runs `kvnode member add` for them."""

from __future__ import annotations

import asyncio
import shutil

from cluster.launcher import LocalCluster, NodeSpec
from tests.integration.helpers import eventually, get, put
from tests.integration.test_membership import kvnode, roles


def asking(cluster: LocalCluster, name: str, region: str, *, replica: bool, dc: str = "") -> NodeSpec:
    environment = [("KVNODE_JOIN", ",".join(cluster.addresses[:3]))]
    if replica:
        environment.append(("KVNODE_REPLICA", "true"))
    return NodeSpec(name, dc or f"dc-{name}", region, environment=tuple(environment))


def _again(cluster: LocalCluster, name: str) -> None:
    cluster.terminate(name)
    cluster.restart(name, wait=False)


async def test_a_replica_asks_until_it_is_taken_in_and_stays_removed(cluster: LocalCluster) -> None:
    await put(cluster.addresses[0], "before")
    for name in "abc":
        cluster.kill(name)
    node = await asyncio.to_thread(cluster.join, asking(cluster, "e", "europe", replica=True))
    await eventually(lambda: "asking to be taken in as a replica" in node.child.log_text(), "it does not ask")
    for name in "abc":
        await asyncio.to_thread(cluster.restart, name, wait=False)
    await asyncio.to_thread(cluster.wait_ready)
    assert roles(await kvnode(cluster, "member", "list", at="a"))["e"] == "replica"
    assert await get(node.address, "before") == b"value"

    await asyncio.to_thread(_again, cluster, "e")
    await asyncio.to_thread(cluster.wait_ready, ["e"])
    assert node.child.log_text().count("asking to be taken in") == 1, "it asked although it was a member"

    await kvnode(cluster, "member", "remove", "e", at="a")
    await asyncio.to_thread(_again, cluster, "e")
    await asyncio.to_thread(cluster.wait_listening, "e")
    await put(cluster.addresses[0], "after")
    assert "e" not in roles(await kvnode(cluster, "member", "list", at="a"))
    assert node.child.log_text().count("asking to be taken in") == 1, "a removed member asked to come back"


async def test_a_learner_is_taken_in_and_a_refusal_is_said(cluster: LocalCluster) -> None:
    wrong = await asyncio.to_thread(cluster.join, asking(cluster, "d", "us-east", replica=True))
    await eventually(lambda: "MEMBER_ROLE_INVALID" in wrong.child.log_text(), "the refusal is not said")
    assert set(roles(await kvnode(cluster, "member", "list", at="a"))) == {"a", "b", "c"}
    assert wrong.child.running
    right = await asyncio.to_thread(cluster.join, asking(cluster, "f", "us-east", replica=False))
    await asyncio.to_thread(cluster.wait_ready, ["f"])
    assert roles(await kvnode(cluster, "member", "list", at="a"))["f"] == "learner"
    assert "is a member of the cluster" in right.child.log_text()
    assert wrong.child.log_text().count("MEMBER_ROLE_INVALID") == 1, "one reason is said once"


async def test_a_replica_that_lost_its_volume_is_replaced_by_itself(cluster: LocalCluster) -> None:
    node = await asyncio.to_thread(cluster.join, asking(cluster, "e", "europe", replica=True))
    await asyncio.to_thread(cluster.wait_ready, ["e"])
    cluster.kill("e")
    shutil.rmtree(node.data_dir)
    await asyncio.to_thread(cluster.restart, "e", wait=False)
    await eventually(lambda: "MEMBER_EXISTS" in node.child.log_text(), "it is not told that its name is taken")
    await kvnode(cluster, "member", "replace", "e", node.address, at="a")
    await asyncio.to_thread(cluster.wait_ready, ["e"])
    assert roles(await kvnode(cluster, "member", "list", at="a"))["e"] == "replica"
    await put(cluster.addresses[0], "after")
    assert await get(node.address, "after") == b"value"
