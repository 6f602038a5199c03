"""A follower that was away while the log was compacted comes back by snapshot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from cluster.launcher import LocalCluster
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, eventually, fill, get, put
from tests.integration.install import MAX_MISSES_COUNT, Install

MIB = 1_048_576
SMALL_LOG = ("--segment-bytes", str(MIB), "--log-retention-bytes", str(MIB))


async def leave_one_behind(cluster: LocalCluster, total_bytes: int) -> str:
    """Kill a follower, write past the log's retention, and compact; returns its name."""
    await put(cluster.addresses[0], "early", b"early value")
    leader = await asyncio.to_thread(cluster.wait_leader)
    away = next(name for name in cluster.nodes if name != leader)
    last = cluster.nodes[away].status().last_index
    cluster.kill(away)
    others = [node for node in cluster.nodes.values() if node.name != away]
    await fill([node.address for node in others], total_bytes)
    for node in others:
        answer = await asyncio.to_thread(node.admin.snapshot)
        assert answer.size_bytes > 0
        assert answer.index > last

    def compacted() -> bool:
        return all(node.status().first_index > last + 1 for node in others)

    await eventually(compacted, "the log was not compacted past what the follower holds")
    return away


async def test_comes_back_by_snapshot(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(arguments=SMALL_LOG)
    away = await leave_one_behind(cluster, 8 * MIB)
    await asyncio.to_thread(cluster.restart, away)
    await put(cluster.addresses[0], "late")
    node = cluster.nodes[away]
    await assert_equal_digests(cluster)
    assert await get(node.address, "early", strong=False) == b"early value"
    assert node.status().first_index > 2, "it replayed a log that nobody had any more"
    scrubbed = node.admin.digest(scrub=True)
    assert scrubbed.scrubbed
    assert scrubbed.matches


Reached = Callable[[Install], bool]


async def install_under_way(cluster: LocalCluster, away: str) -> Install:
    """For the follower that is away, before it is started."""
    sender = cluster.nodes[await asyncio.to_thread(cluster.wait_leader)]
    size_bytes = (await asyncio.to_thread(sender.admin.snapshot)).size_bytes
    return Install(cluster.nodes[away].data_dir, size_bytes)


async def kill_when(cluster: LocalCluster, away: str, install: Install, reached: Reached) -> bool:
    """Start the follower and kill it at that moment; False = by then, or by the time it was dead, that was past."""
    await asyncio.to_thread(cluster.restart, away, wait=False)
    deadline = time.monotonic() + 30
    while not reached(install) and not install.is_moved():
        assert time.monotonic() < deadline, f"never {reached}: {install.held_bytes()} bytes"
        await asyncio.sleep(0.001)
    await asyncio.to_thread(cluster.kill, away)
    return reached(install)


async def test_survives_kills_in_the_middle_of_the_install(make_cluster: MakeCluster, rounds: int) -> None:
    """Each moment is hit in truth. A snapshot arrives within 0.1 s, and this process may stand still so long on a busy
    machine: the follower is then left behind once more."""
    cluster = make_cluster(arguments=SMALL_LOG)
    away = await leave_one_behind(cluster, 40 * MIB)
    install = await install_under_way(cluster, away)
    parts = [(number + 1) / (rounds + 2) for number in range(rounds)]
    moments: list[Reached] = [partial(Install.has_part, part=part) for part in parts]
    for reached in (*moments, Install.is_complete, Install.is_moved):
        for _ in range(MAX_MISSES_COUNT):
            if await kill_when(cluster, away, install, reached):
                break
            await asyncio.to_thread(cluster.restart, away)
            await assert_equal_digests(cluster)
            away = await leave_one_behind(cluster, 4 * MIB)
            install = await install_under_way(cluster, away)
        else:
            raise AssertionError(f"{reached} was missed {MAX_MISSES_COUNT} times")
    await asyncio.to_thread(cluster.restart, away)
    await put(cluster.addresses[0], "late")
    await assert_equal_digests(cluster)
    assert await get(cluster.nodes[away].address, "late", strong=False) == b"value"
    assert cluster.nodes[away].admin.digest(scrub=True).matches
