"""Members come and go by the command line, on real processes; what broke off is finished by saying it again."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from typing import Any

from cluster.launcher import ROOT, LocalCluster, NodeSpec
from tests.integration.helpers import a_follower, assert_equal_digests, eventually, fill, flip, get, newest_segment, put

EXTRA = NodeSpec("d", "dc-d")


def run_kvnode(cluster: LocalCluster, *arguments: str, at: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command against one node, or against all that run."""
    endpoints = [cluster.nodes[at].address] if at else [node.address for node in cluster.running()]
    return subprocess.run(
        [sys.executable, "-m", "kvnode", *arguments, "--endpoints", ",".join(endpoints), "-o", "json"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def kvnode(cluster: LocalCluster, *arguments: str, at: str = "") -> Any:
    """What a command answers; it must succeed."""
    done = await asyncio.to_thread(run_kvnode, cluster, *arguments, at=at)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


async def refused(cluster: LocalCluster, *arguments: str) -> str:
    """What a command says that must fail."""
    done = await asyncio.to_thread(run_kvnode, cluster, *arguments)
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def roles(answer: Any) -> dict[str, str]:
    return {member["name"]: member["role"] for member in answer["members"]}


VOTER, LEARNER = "voter", "learner"


async def test_add_promote_and_remove_through_a_follower(cluster: LocalCluster) -> None:
    await put(cluster.addresses[0], "before")
    follower = a_follower(cluster)
    new = await asyncio.to_thread(cluster.join, EXTRA)
    assert roles(await kvnode(cluster, "member", "add", new.address, at=follower))["d"] == LEARNER
    await asyncio.to_thread(cluster.wait_ready, ["d"])
    assert await get(new.address, "before") == b"value"
    await eventually(lambda: run_kvnode(cluster, "member", "promote", "d").returncode == 0, "it did not catch up")
    assert roles(await kvnode(cluster, "member", "list"))["d"] == VOTER
    await put(new.address, "after")
    await assert_equal_digests(cluster)
    left = roles(await kvnode(cluster, "member", "remove", "d", at=follower))
    assert left == {"a": VOTER, "b": VOTER, "c": VOTER}
    await eventually(lambda: not new.ready(), "a removed node still says that it serves", 10)
    cluster.forget("d")
    await put(cluster.addresses[0], "still")


async def test_a_node_that_was_away_takes_part_again_under_a_leader_which_it_has_never_heard_of(
    cluster: LocalCluster,
) -> None:
    await put(cluster.addresses[0], "before")
    away = a_follower(cluster)
    cluster.kill(away)
    new = await asyncio.to_thread(cluster.join, EXTRA)
    await kvnode(cluster, "member", "add", new.address)
    await eventually(lambda: run_kvnode(cluster, "member", "promote", "d").returncode == 0, "it did not catch up")
    await kvnode(cluster, "leader", "transfer", "d")
    await put(new.address, "meanwhile")
    await asyncio.to_thread(cluster.restart, away)
    assert await get(cluster.nodes[away].address, "meanwhile") == b"value"
    await put(cluster.nodes[away].address, "again")
    await assert_equal_digests(cluster)


async def test_replace_of_a_live_and_of_a_dead_node(cluster: LocalCluster) -> None:
    await put(cluster.addresses[0], "before")
    live = a_follower(cluster)
    new = await asyncio.to_thread(cluster.join, EXTRA)
    answer = await kvnode(cluster, "member", "replace", live, new.address, "--timeout", "30s")
    assert roles(answer) == {name: VOTER for name in "abcd" if name != live}
    cluster.forget(live)
    again = await kvnode(cluster, "member", "replace", live, new.address)
    assert roles(again) == roles(answer), "said again, it finds that all is done"

    dead = a_follower(cluster, other_than="d")
    cluster.forget(dead)
    await put(new.address, "meanwhile")
    other = await asyncio.to_thread(cluster.join, NodeSpec("e", "dc-e"))
    answer = await kvnode(cluster, "member", "replace", dead, other.address, "--timeout", "30s")
    assert roles(answer) == {name: VOTER for name in "abcde" if name not in (live, dead)}
    assert await get(other.address, "before") == b"value"
    assert await get(other.address, "meanwhile") == b"value"
    await assert_equal_digests(cluster)


async def test_replace_of_the_leader_that_broke_off_is_finished_by_saying_it_again(cluster: LocalCluster) -> None:
    leader = await asyncio.to_thread(cluster.wait_leader)
    new = await asyncio.to_thread(cluster.join, EXTRA)
    await kvnode(cluster, "member", "add", new.address)
    await asyncio.to_thread(cluster.wait_ready, ["d"])
    cluster.pause("d")
    await fill([cluster.nodes[leader].address], 100 * 1_024, value_bytes=1_024)
    command = ("member", "replace", leader, new.address)
    said = await refused(cluster, *command, "--timeout", "3s")
    assert "Traceback" not in said
    assert roles(await kvnode(cluster, "member", "list"))[leader] == VOTER
    cluster.resume("d")
    answer = await kvnode(cluster, *command, "--timeout", "30s")
    assert roles(answer) == {name: VOTER for name in "abcd" if name != leader}
    cluster.forget(leader)
    await put(new.address, "after")
    await assert_equal_digests(cluster)


async def test_a_node_with_a_damaged_log_is_rebuilt_in_its_place(cluster: LocalCluster) -> None:
    for number in range(20):
        await put(cluster.addresses[0], f"key-{number}")
    victim = a_follower(cluster)
    node = cluster.nodes[victim]
    await asyncio.to_thread(cluster.wait_applied, node.status().commit_index)
    old_id = node.status().self.node_id
    cluster.kill(victim)
    flip(newest_segment(node.data_dir))
    await asyncio.to_thread(cluster.restart, victim, wait=False)
    await eventually(lambda: node.http("/readyz")[0] == 503, "it does not say that it cannot serve")
    assert "damaged" in node.status().problems[0]
    assert "MEMBER_NOT_REPLACED" in await refused(cluster, "member", "replace", victim, node.address), "it is not well"
    assert await asyncio.to_thread(cluster.terminate, victim), "it did not end by itself"
    shutil.rmtree(node.data_dir)
    await asyncio.to_thread(cluster.restart, victim, wait=False)
    await asyncio.to_thread(cluster.wait_listening, victim)
    answer = await kvnode(cluster, "member", "replace", victim, node.address, "--timeout", "30s")
    assert roles(answer) == {"a": VOTER, "b": VOTER, "c": VOTER}
    assert old_id not in {member["node_id"] for member in answer["members"]}
    await asyncio.to_thread(cluster.wait_ready)
    again = await kvnode(cluster, "member", "replace", victim, node.address)
    assert again == answer, "said again, it finds that all is done"
    assert await get(node.address, "key-7") == b"value"
    await put(node.address, "after")
    await assert_equal_digests(cluster)


async def test_leadership_is_transferred_through_a_follower(cluster: LocalCluster) -> None:
    leader = await asyncio.to_thread(cluster.wait_leader)
    first, second = (name for name in cluster.nodes if name != leader)
    answer = await kvnode(cluster, "leader", "transfer", second, at=first)
    assert answer["leader_id"] == cluster.nodes[second].status().self.node_id
    await eventually(lambda: cluster.leader() == second, "it does not lead")
    await kvnode(cluster, "leader", "transfer", at=first)
    await eventually(lambda: cluster.leader() not in (second, None), "nobody took over")
    await put(cluster.addresses[0], "after")
