"""A region that comes back behind the retention: one of its replicas fetches the snapshot, the others wait for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace as with_fields

import pytest

from kvnode.base import limits
from kvnode.node.changelog.choice import sources
from kvnode.node.ports import Awaited
from kvnode.raft.configuration import MembershipHistory
from kvnode.raft.types import SnapshotMeta
from tests.unit.node.changelog.test_follow import MEMBERS, World, quick, until, world

__all__ = ["quick", "world"]  # fixtures

VOTERS = (1, 2, 3)
FIRST, SECOND = 11, 12
WAIT_MS = 200
STALL_MS = 700


@pytest.fixture(autouse=True)
def short_waits(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NEIGHBOUR_SNAPSHOT_WAIT_MS", WAIT_MS)
    monkeypatch.setattr(limits, "NEIGHBOUR_SNAPSHOT_STALL_MS", STALL_MS)


def behind_retention(world: World) -> None:
    """The voters have what the replicas lack no more in their logs."""
    world.write(20)
    for voter in VOTERS:
        world.peers[voter].log.compact(10)


def sent_to(world: World, node_id: int, *senders: int) -> int:
    """How many of these were to send that node a snapshot."""
    return sum(any(message.to == node_id for message in world.peers[sender].snapshots) for sender in senders)


def fetch(world: World, node_id: int, held_bytes: int = 0) -> None:
    world.peers[node_id].awaited = Awaited(held_bytes, 1_000)


def install(world: World, node_id: int, index: int = 20) -> None:
    """What a snapshot does to a node."""
    peer = world.peers[node_id]
    peer.raft.log.restore(snapshot := SnapshotMeta(index, 3, MEMBERS))
    peer.log.reset(index, 3)
    peer.raft.log.persisted((), snapshot)
    peer.applied, peer.awaited = index, None


async def test_who_starts_first_leaves_the_snapshot_to_its_neighbour(world: World) -> None:
    behind_retention(world)
    world.peers[FIRST].down = True
    second = world.follow(SECOND)
    await until(lambda: second.awaits_snapshot)
    await asyncio.sleep(WAIT_MS / 2_000)
    world.peers[FIRST].down = False
    first = world.follow(FIRST)
    fetch(world, FIRST)
    await until(lambda: first.awaits_snapshot and sent_to(world, FIRST, *VOTERS) == 1)
    await asyncio.sleep(2 * WAIT_MS / 1_000)
    assert second.awaits_snapshot and second.wait.is_on()
    install(world, FIRST)
    await until(lambda: world.source_of(SECOND) == FIRST and sent_to(world, SECOND, FIRST) == 1)
    assert sent_to(world, SECOND, *VOTERS) == 0
    install(world, SECOND)
    world.write(2)
    await until(lambda: world.peers[SECOND].applied == 22)
    assert not second.awaits_snapshot


async def test_a_neighbour_that_was_left_for_its_age_is_waited_for_all_the_same(world: World) -> None:
    """It is up, and has yet to hear of a leader."""
    behind_retention(world)
    second = world.follow(SECOND)
    await until(lambda: world.source_of(SECOND) == FIRST)
    await until(lambda: second.awaits_snapshot and world.source_of(SECOND) in VOTERS)
    fetch(world, FIRST)
    await until(lambda: second.wait.neighbour is not None)


async def test_a_neighbour_that_has_it_already_is_asked_at_once(world: World) -> None:
    behind_retention(world)
    install(world, FIRST)
    world.follow(FIRST)
    world.follow(SECOND)
    await until(lambda: sent_to(world, SECOND, FIRST) == 1)
    assert sent_to(world, SECOND, *VOTERS) == 0


async def test_who_is_alone_asks_a_voter_after_a_moment(world: World) -> None:
    behind_retention(world)
    world.peers[FIRST].down = True
    began = time.monotonic()
    second = world.follow(SECOND)
    await until(lambda: sent_to(world, SECOND, *VOTERS) == 1)
    assert WAIT_MS <= (time.monotonic() - began) * 1_000 < WAIT_MS + 500
    assert second.awaits_snapshot and not second.wait.is_on()


async def test_who_has_nobody_before_it_asks_at_once(world: World) -> None:
    behind_retention(world)
    began = time.monotonic()
    first = world.follow(FIRST)
    await until(lambda: sent_to(world, FIRST, *VOTERS) == 1)
    assert (time.monotonic() - began) * 1_000 < WAIT_MS
    assert not first.wait.is_on()


async def test_a_voter_that_is_only_looked_at_sends_none(world: World) -> None:
    """For newer news, or because it is the better one and has come back."""
    behind_retention(world)
    best = sources(MEMBERS, FIRST, "eu", 0)[0].node_id
    world.peers[best].down = True
    world.follow(FIRST)
    await until(lambda: sent_to(world, FIRST, *VOTERS) == 1)
    world.peers[best].down = False
    await asyncio.sleep((limits.CHANGELOG_STALE_MS + 3 * limits.CHANGELOG_BETTER_INTERVAL_MS) / 1_000)
    assert sent_to(world, FIRST, *VOTERS) == 1


async def test_a_neighbour_is_waited_for_as_long_as_it_gets_further(world: World) -> None:
    behind_retention(world)
    second = world.follow(SECOND)
    for held_bytes in range(0, 1_000, 200):
        fetch(world, FIRST, held_bytes)
        await asyncio.sleep(STALL_MS / 2_000)
        assert second.wait.is_on() and second.wait.neighbour is not None
        assert second.wait.neighbour[1] == (held_bytes, 1_000)
    assert sent_to(world, SECOND, *VOTERS) == 0
    await until(lambda: sent_to(world, SECOND, *VOTERS) == 1)
    assert not second.wait.is_on(), "it stood still"
    await asyncio.sleep(2 * limits.CHANGELOG_BETTER_INTERVAL_MS / 1_000)
    assert world.source_of(SECOND) in VOTERS, "a neighbour that awaits one itself has nothing to give"
    install(world, FIRST)
    await asyncio.sleep(2 * limits.CHANGELOG_BETTER_INTERVAL_MS / 1_000)
    assert sent_to(world, SECOND, FIRST) == 0, "by now it comes from a voter"
    install(world, SECOND)
    world.write(1)
    await until(lambda: world.source_of(SECOND) == FIRST)


async def test_a_neighbour_that_dies_in_the_middle_is_taken_over_from(world: World) -> None:
    behind_retention(world)
    second = world.follow(SECOND)
    fetch(world, FIRST, 500)
    await until(lambda: second.wait.neighbour is not None)
    world.peers[FIRST].down = True
    began = time.monotonic()
    await until(lambda: sent_to(world, SECOND, *VOTERS) == 1)
    assert (time.monotonic() - began) * 1_000 < WAIT_MS + 500


async def test_a_neighbour_that_dies_while_it_sends_is_taken_over_from(world: World) -> None:
    behind_retention(world)
    install(world, FIRST)
    world.follow(SECOND)
    await until(lambda: sent_to(world, SECOND, FIRST) == 1)
    world.peers[FIRST].down = True
    await until(lambda: sent_to(world, SECOND, *VOTERS) == 1)


async def test_a_neighbour_that_does_not_know_this_node_yet_is_waited_for_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was away while this one was added."""
    behind_retention(world)
    too_old = with_fields(MEMBERS, members=MEMBERS.members[:-1])
    monkeypatch.setattr(world.peers[FIRST].raft, "history", MembershipHistory(too_old, 0))
    fetch(world, FIRST, 500)
    second = world.follow(SECOND)
    await asyncio.sleep(1.5 * WAIT_MS / 1_000)
    assert second.wait.is_on() and sent_to(world, SECOND, *VOTERS) == 0


async def test_who_needs_none_is_not_held_up_by_a_neighbour_that_does(world: World) -> None:
    world.write(20)
    second = world.follow(SECOND)
    await until(lambda: world.source_of(SECOND) == FIRST or world.peers[SECOND].applied == 20)
    fetch(world, FIRST)
    await until(lambda: world.source_of(SECOND) in VOTERS)
    for _ in range(5):
        world.write(1)
        await asyncio.sleep(limits.CHANGELOG_BETTER_INTERVAL_MS / 2_000)
    await until(lambda: world.peers[SECOND].applied == 25)
    assert world.source_of(SECOND) in VOTERS and not second.awaits_snapshot


async def test_a_neighbour_without_anything_is_followed_while_nobody_else_answers(world: World) -> None:
    """So that what it hears of the leader goes on to this node, and what this node has granted to the leader."""
    world.write(20)
    for voter in VOTERS:
        world.peers[voter].down = True
    fetch(world, FIRST)
    world.follow(SECOND)
    await until(lambda: world.source_of(SECOND) == FIRST)
    for voter in VOTERS:
        world.peers[voter].down = False
    await until(lambda: world.source_of(SECOND) in VOTERS)
