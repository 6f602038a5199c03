"""Sources and followers, over a transport in memory whose streams a test can break, freeze and make stale."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from kvnode.base import limits
from kvnode.base.clock import SystemClock
from kvnode.base.errors import KvError
from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.node.changelog.follower import ChangelogFollower
from kvnode.node.changelog.source import Source, Sources
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.ports import Awaited, ChangelogStream, Freshness
from kvnode.proto.kv.internal.v1 import changelog_pb2
from kvnode.raft.changelog import Committed
from kvnode.raft.messages import Message
from kvnode.raft.raft import Raft
from kvnode.raft.types import RaftConfig
from tests.raft.harness import MemoryLog

LEADER = 1


def member(node_id: int, role: MemberRole, region: str = "eu") -> Member:
    return Member(node_id, f"n{node_id}", region, f"dc{node_id}", f"h{node_id}:1", role)


MEMBERS = Membership(
    (
        *(member(node_id, MemberRole.VOTER, "us") for node_id in (1, 2, 3)),
        *(member(node_id, MemberRole.REPLICA) for node_id in (11, 12)),
    )
)


class Peer:
    """A node as far as the changelog is concerned: a core whose Ready cycles run at once, and its sources."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.epoch = 1
        self.log = MemoryLog()
        self.applied = 0
        self.snapshots: list[Message] = []  # that it was to send
        self.awaited: Awaited | None = None
        self.withdrawn = ""
        self.freshness = FreshnessTracker(SystemClock(), limits.MAX_CLOCK_OFFSET_MS)
        # All are replicas to their own core: this way a test can give each what is committed.
        others = Membership(tuple(m for m in MEMBERS.members if m.node_id != node_id))
        self.raft = Raft(RaftConfig(node_id), self.log, HardState(), others, 0, random.Random(1))
        if node_id == LEADER:
            self.raft.term, self.raft.leader_id = 5, LEADER  # as a leader says of itself
        self.sources = Sources(
            self.raft,
            self.freshness,
            lambda: self.epoch,
            self.snapshots.append,
            region=(MEMBERS.get(node_id) or MEMBERS.members[0]).region,
            own_id=node_id,
            awaited=lambda: self.awaited,
            withdrawn=lambda: self.withdrawn,
        )
        self.streams_count = 0
        self.down = False
        self.frozen = asyncio.Event()
        self.frozen.set()

    def commit(self, *entries: Entry) -> None:
        previous = self.raft.last_index
        term = self.raft.log.term(previous) or 0
        self.raft.receive_committed(Committed(5, LEADER, previous, term, entries))
        self.settle()

    def settle(self) -> None:
        while self.raft.has_ready() and self.raft.log.snapshot is None:  # a test installs those itself
            ready = self.raft.ready()
            self.log.append(ready.entries)
            self.raft.persisted(ready)
            if ready.committed:
                self.applied = ready.committed[-1].index
                self.raft.applied_to(self.applied)
                self.sources.committed()

    def news(self, age_ms: int = 0) -> None:
        now = SystemClock().now_ms()
        self.freshness.heard(Freshness(self.raft.commit, now, now - age_ms), self.applied)


class Stream:
    """What a follower holds in its hand."""

    def __init__(self, peer: Peer | None, first: changelog_pb2.FollowRequest) -> None:
        self.peer = peer
        self.first = first
        self.source: Source | None = None

    async def read(self) -> changelog_pb2.FollowResponse | None:
        peer = self.peer
        if peer is None or peer.down:
            return None
        await peer.frozen.wait()
        if self.source is None:
            refused = peer.sources.refuse(self.first)
            if refused is not None:
                return refused
            self.source = peer.sources.open(self.first)
            peer.streams_count += 1
        response = await self.source.next()
        await peer.frozen.wait()
        return None if peer.down else changelog_pb2.FollowResponse.FromString(response.SerializeToString())

    async def acknowledge(self, request: changelog_pb2.FollowRequest) -> None:
        if self.source is not None:
            self.source.acknowledge(request)

    async def close(self) -> None:
        if self.peer is not None and self.source is not None:
            self.peer.sources.close(self.source)


class World:
    """Five nodes; those that follow do so until the test ends."""

    def __init__(self) -> None:
        self.peers = {m.node_id: Peer(m.node_id) for m in MEMBERS.members}
        self.followers: dict[int, ChangelogFollower] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.next_index = 1

    def follow(self, node_id: int) -> ChangelogFollower:
        peer = self.peers[node_id]

        class Dialling:
            def follow(_self, to: int, first: changelog_pb2.FollowRequest) -> ChangelogStream:
                first.hello.node_id = node_id
                return Stream(self.peers.get(to), first)

        follower = ChangelogFollower(
            node_id,
            "eu",
            lambda: MEMBERS,
            lambda: peer.epoch,
            peer.raft,
            peer.freshness,
            lambda: peer.applied,
            Dialling(),  # type: ignore[arg-type]
            SystemClock(),
            peer.settle,
        )
        self.followers[node_id] = follower
        self.tasks.append(asyncio.get_running_loop().create_task(follower.run()))
        return follower

    def write(self, count: int = 1, *, at: tuple[int, ...] = (1, 2, 3), size_bytes: int = 8) -> None:
        entries = [Entry(3, self.next_index + number, EntryKind.DATA, bytes(size_bytes)) for number in range(count)]
        self.next_index += count
        for node_id in at:
            self.peers[node_id].commit(*entries)
            self.peers[node_id].news()

    def source_of(self, node_id: int) -> int:
        source = self.followers[node_id].source
        return source.node_id if source is not None else 0


async def until(condition: Callable[[], bool], timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("CHANGELOG_NOTICE_INTERVAL_MS", 10),
        ("CHANGELOG_SILENCE_MS", 60),
        ("CHANGELOG_RETRY_MS", 10),
        ("CHANGELOG_BETTER_INTERVAL_MS", 80),
        ("CHANGELOG_STALE_MS", 500),
        ("CHANGELOG_SHUN_MS", 300),
        ("CHANGELOG_ACKNOWLEDGE_INTERVAL_MS", 0),
        ("PEER_CONNECT_TIMEOUT_MS", 60),
        ("NEIGHBOUR_SNAPSHOT_PROBE_MS", 20),
    ):
        monkeypatch.setattr(limits, name, value)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for task in made.tasks:
        task.cancel()
    for end in await asyncio.gather(*made.tasks, return_exceptions=True):
        assert isinstance(end, asyncio.CancelledError), end


async def test_what_is_committed_arrives_in_a_chain(world: World) -> None:
    world.write(100)
    world.follow(11)
    world.follow(12)
    await until(lambda: world.peers[12].applied == 100)
    await until(lambda: world.source_of(12) == 11 and world.source_of(11) in (2, 3))
    world.write(5)
    await until(lambda: world.peers[12].applied == 105)
    assert world.peers[11].freshness.age_ms() >= 0
    assert world.peers[12].raft.leader_id == LEADER


async def test_a_dead_neighbour_is_left_and_taken_back_without_a_gap(world: World) -> None:
    world.write(10)
    world.follow(11)
    world.follow(12)
    await until(lambda: world.source_of(12) == 11)
    world.peers[11].down = True
    world.write(10)
    await until(lambda: world.peers[12].applied == 20 and world.source_of(12) in (2, 3))
    opened = world.peers[world.source_of(12)].streams_count
    world.peers[11].down = False
    await until(lambda: world.source_of(12) == 11)
    world.write(3)
    await until(lambda: world.peers[12].applied == 23)
    assert sum(world.peers[voter].streams_count for voter in (1, 2, 3)) <= opened + 3


async def test_a_frozen_source_is_left_for_another(world: World) -> None:
    world.write(10)
    world.follow(11)
    await until(lambda: world.source_of(11) != 0)
    first = world.source_of(11)
    world.peers[first].frozen.clear()
    world.write(10)
    await until(lambda: world.peers[11].applied == 20)
    assert world.source_of(11) not in (0, first)


async def test_a_source_that_hears_nothing_new_is_left(world: World) -> None:
    world.write(10)
    world.follow(11)
    await until(lambda: world.source_of(11) != 0)
    stale = world.source_of(11)
    others = tuple(voter for voter in (1, 2, 3) if voter != stale)

    def moved() -> bool:
        for voter in others:
            world.peers[voter].news()
        return world.source_of(11) in others

    await until(moved)
    world.write(1, at=others)
    await until(lambda: world.peers[11].applied == 11)


async def test_no_more_is_under_way_than_the_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CHANGELOG_UNACKNOWLEDGED_BYTES", 4_000)
    monkeypatch.setattr(limits, "MAX_CHANGELOG_PIECE_BYTES", 1_000)
    world.write(50, size_bytes=500)
    source = world.peers[2].sources.open(changelog_pb2.FollowRequest(region="us"))
    sent = 0
    while (response := await source.next()).entries:
        sent = response.previous_index
    assert sent < 15
    source.acknowledge(changelog_pb2.FollowRequest(index=sent))
    assert (await source.next()).entries


async def test_behind_the_retention_a_snapshot_is_asked_for(world: World) -> None:
    world.write(20)
    for voter in (1, 2, 3):
        world.peers[voter].log.compact(10)
    follower = world.follow(11)
    await until(lambda: any(world.peers[voter].snapshots for voter in (1, 2, 3)))
    message = next(message for voter in (1, 2, 3) for message in world.peers[voter].snapshots)
    assert (message.to, message.sender, message.term) == (11, LEADER, 5)
    assert follower.awaits_snapshot and world.peers[11].applied == 0


async def test_after_a_snapshot_the_replica_is_heard_before_another_is_sent(world: World) -> None:
    """It is installed before its source learns of that: a second one would cross the WAN for nothing."""
    world.write(20)
    peer = world.peers[2]
    peer.log.compact(10)
    transfers: list[asyncio.Future[None]] = []

    def send(_message: Message) -> asyncio.Future[None]:
        if not transfers or transfers[-1].done():
            transfers.append(asyncio.get_running_loop().create_future())
        return transfers[-1]

    sources = Sources(peer.raft, peer.freshness, lambda: 1, send, region="us", own_id=2)
    source = sources.open(changelog_pb2.FollowRequest(region="eu"))
    assert (await source.next()).snapshot
    source.acknowledge(changelog_pb2.FollowRequest(index=0))
    assert (await source.next()).snapshot and len(transfers) == 1
    transfers[-1].set_result(None)
    for _ in range(3):
        assert (await source.next()).snapshot
    assert len(transfers) == 1
    source.acknowledge(changelog_pb2.FollowRequest(index=0))  # it broke
    assert (await source.next()).snapshot and len(transfers) == 2
    transfers[-1].set_result(None)
    assert (await source.next()).snapshot
    source.acknowledge(changelog_pb2.FollowRequest(index=15))
    assert (await source.next()).entries and len(transfers) == 2


async def test_a_fork_is_told_and_nothing_taken(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.peers[11].commit(Entry(2, 1, EntryKind.DATA, b"other"))
    world.write(10)
    world.follow(11)
    await until(lambda: "CHANGELOG_FORKED" in caplog.text)
    await asyncio.sleep(0.05)
    assert world.peers[11].applied == 1
    assert not world.tasks[0].done()


async def test_a_source_of_an_older_epoch_is_not_followed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.peers[11].epoch = 2
    world.write(10)
    world.follow(11)
    await until(lambda: "of epoch 1, which ended" in caplog.text)
    assert world.peers[11].applied == 0


async def test_who_is_removed_is_told_on_its_stream_and_gets_no_more(world: World) -> None:
    world.write(10)
    follower = world.follow(11)
    await until(lambda: world.peers[11].applied == 10)
    told: list[str] = []
    follower._learn = lambda _hello: told.append("")
    source = world.peers[world.source_of(11)].sources
    (stream,) = source.following
    source.dismiss({12})
    assert source.following == [stream], "another one was removed"
    source.dismiss({11})
    assert not source.following
    last = await stream.next()
    assert last.refused.startswith("MEMBER_REMOVED") and not last.entries
    await until(lambda: bool(told))


async def test_a_source_that_was_removed_itself_is_left_at_once(world: World) -> None:
    world.write(10)
    world.follow(11)
    world.follow(12)
    await until(lambda: world.source_of(12) == 11)
    world.peers[11].withdrawn = "SOURCE_REMOVED: it was removed"
    await until(lambda: world.source_of(12) in (1, 2, 3))
    assert not world.peers[11].sources.following
    world.write(3)
    await until(lambda: world.peers[12].applied == 13)
    assert world.source_of(12) != 11, "it is the better one by its id, and refuses"


async def test_a_stream_that_raises_is_one_that_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Stream) -> None:
        raise KvError("PEER_UNREACHABLE", "gone", phase="dial")

    with monkeypatch.context() as broken:
        broken.setattr(Stream, "read", fails)
        world.write(3)
        world.follow(11)
        await asyncio.sleep(0.05)
    await until(lambda: world.peers[11].applied == 3)
