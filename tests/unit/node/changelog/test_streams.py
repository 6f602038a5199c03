"""A follower and its streams: each that it opens it closes (or it would go on being fed), and none takes news back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.base import limits
from kvnode.codec.membership import Member
from kvnode.node.changelog.follower import ChangelogFollower, _abandon
from kvnode.proto.kv.internal.v1 import changelog_pb2
from tests.raft.harness import members
from tests.unit.node.fakes import HandClock

ME = 9
MEMBERS = members("1:a 2:b 3:c 9:d/replica")
USEFUL = changelog_pb2.FollowResponse(term=1)
REFUSED = changelog_pb2.FollowResponse(refused="by the test")
AWAITING = changelog_pb2.FollowResponse(term=1)
AWAITING.awaited.SetInParent()


class Stream:
    """Of one source: what it says first, and nothing more."""

    def __init__(self, first: changelog_pb2.FollowResponse | None) -> None:
        self.first = first
        self.is_open = True

    async def read(self) -> changelog_pb2.FollowResponse | None:
        first, self.first = self.first, None
        if first is None:
            await asyncio.Event().wait()
        return first

    async def acknowledge(self, request: changelog_pb2.FollowRequest) -> None: ...

    async def close(self) -> None:
        self.is_open = False


class World:
    """Sources that say this first, by node id; None = nothing at all."""

    def __init__(self, first: dict[int, changelog_pb2.FollowResponse | None]) -> None:
        self.first = first
        self.streams: dict[int, Stream] = {}
        self.log = log = SimpleNamespace(snapshot=None, stable=0, term=lambda index: 0)
        raft: Any = SimpleNamespace(fenced=False, leader_id=0, log=log, receive_committed=lambda piece: True)
        transport: Any = self
        freshness: Any = SimpleNamespace(heard=lambda freshness, applied_index: None)
        self.follower = ChangelogFollower(
            ME, "r", lambda: MEMBERS, lambda: 1, raft, freshness, lambda: 0, transport, HandClock(), lambda: None
        )

    def follow(self, node_id: int, where: changelog_pb2.FollowRequest) -> Stream:
        self.streams[node_id] = Stream(self.first[node_id])
        return self.streams[node_id]

    @property
    def open(self) -> set[int]:
        return {node_id for node_id, stream in self.streams.items() if stream.is_open}

    def sources(self) -> list[Member]:
        return [member for member in MEMBERS.members if member.node_id in self.first]


async def test_of_those_that_are_tried_one_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEER_CONNECT_TIMEOUT_MS", 1)
    world = World({1: REFUSED, 2: AWAITING, 3: USEFUL})
    assert await world.follower._open_first(world.sources(), or_any=True)
    assert world.open == {3}, "the one that was kept in reserve is let go"
    world = World({1: AWAITING, 2: None, 3: AWAITING})
    assert await world.follower._open_first(world.sources(), or_any=True)
    assert world.open == {1}
    world = World({1: AWAITING, 2: None, 3: REFUSED})
    assert await world.follower._open_first(world.sources()) is None
    assert not world.open


async def test_a_follower_that_ends_closes_what_it_follows() -> None:
    world = World({1: USEFUL, 2: USEFUL, 3: USEFUL})
    running = asyncio.ensure_future(world.follower.run())
    while world.follower.source is None:
        await asyncio.sleep(0)
    assert len(world.open) == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not world.open


async def test_a_search_that_ends_in_vain_closes_what_it_has_found() -> None:
    for passes in range(6):
        world = World({1: AWAITING, 2: USEFUL, 3: USEFUL})
        search = asyncio.ensure_future(world.follower._open_first(world.sources(), or_any=True))
        for _ in range(passes):
            await asyncio.sleep(0)
        await _abandon(search)
        assert not world.open, f"given up in pass {passes} of the loop"


def test_older_news_of_another_source_take_nothing_back() -> None:
    world = World({})
    (member, *_) = MEMBERS.members
    for sent_at_ms in (2_000, 1_000):
        response = changelog_pb2.FollowResponse(term=1)
        response.freshness.commit_index, response.freshness.sent_at_ms = 5, sent_at_ms
        assert world.follower._take(member, response)
    world.log.stable = 5
    assert world.follower._where(member).held_at_ms == 2_000
