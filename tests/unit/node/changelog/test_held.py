"""How far a replica is: what it says to its source, and what the source tells of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import MemberRole, Membership, encode_membership
from kvnode.node.changelog.source import Sources
from kvnode.node.ports import Freshness, Held
from kvnode.proto.kv.internal.v1 import changelog_pb2, peer_pb2
from kvnode.raft.types import SnapshotMeta
from tests.unit.node.changelog.test_follow import MEMBERS, Peer, World, quick, until, world
from tests.unit.node.fakes import HandClock

__all__ = ["quick", "world"]  # fixtures


def sources_by(peer: Peer, clock: HandClock) -> Sources:
    """Those of a node that tells the time by that clock."""
    return Sources(
        peer.raft,
        peer.freshness,
        lambda: 1,
        lambda _message: None,
        region="us",
        own_id=2,
        monotonic_ms=clock.monotonic_ms,
    )


async def test_a_source_learns_what_its_replica_holds_durably(world: World) -> None:
    world.write(10)
    world.follow(11)
    await until(lambda: world.peers[11].applied == 10)
    source = world.peers[world.source_of(11)]
    sent_at_ms = source.freshness.latest.sent_at_ms if source.freshness.latest else 0
    await until(lambda: source.sources.held() == [Held(11, 10, sent_at_ms)])
    assert world.followers[11].held_at_ms == sent_at_ms and world.followers[11].committed_index == 10


async def test_what_is_heard_of_a_commit_counts_only_once_it_is_held(world: World) -> None:
    world.write(5)
    world.follow(11)
    await until(lambda: world.peers[11].applied == 5)
    source = world.peers[world.source_of(11)]
    before = world.followers[11].held_at_ms
    assert before > 0
    source.freshness.heard(Freshness(7, 0, before + 10), 5)  # it has heard of two more that it does not have either
    await until(lambda: world.peers[11].freshness.latest == Freshness(7, 0, before + 10))
    assert world.followers[11].held_at_ms == before
    world.write(2)
    await until(lambda: world.followers[11].held_at_ms >= before + 10)


async def test_a_replica_that_left_is_remembered_and_comes_back_no_younger(world: World) -> None:
    world.write(10)
    world.follow(11)
    await until(lambda: world.followers[11].held_at_ms > 0)
    source = world.peers[world.source_of(11)]
    await until(lambda: source.sources.held()[0].at_ms > 0)
    held = source.sources.held()
    world.tasks[0].cancel()
    await until(lambda: not source.sources.following)
    assert source.sources.held() == held
    world.follow(11)  # after a restart it does not know yet what its log holds
    await until(lambda: bool(world.peers[world.source_of(11) or 2].sources.following))
    again = next(peer for peer in world.peers.values() if peer.sources.following)
    if again is source:
        assert source.sources.held()[0].at_ms >= held[0].at_ms


async def test_nor_is_another_source_told_of_a_snapshot_before(world: World) -> None:
    world.write(10)
    world.follow(11)
    await until(lambda: world.peers[11].applied == 10)
    first = world.source_of(11)
    world.peers[11].raft.log.restore(SnapshotMeta(20, 3, MEMBERS))
    world.peers[first].down = True
    await until(lambda: world.source_of(11) not in (0, first))
    source = world.peers[world.source_of(11)]
    await until(lambda: bool(source.sources.following))
    assert [held.durable_index for held in source.sources.held()] == [10]


async def test_a_snapshot_counts_as_held_only_when_it_is_installed(world: World) -> None:
    """What a source has sent it takes for received: a replica that was told too early of what came next had a gap."""
    world.write(10)
    world.follow(11)
    await until(lambda: world.peers[11].applied == 10)
    source = world.peers[world.source_of(11)]
    snapshot = SnapshotMeta(20, 3, MEMBERS)
    world.peers[11].raft.log.restore(snapshot)
    world.write(12)
    await asyncio.sleep(0.05)  # several notices, which are not acknowledged
    assert [held.durable_index for held in source.sources.held()] == [10]
    world.peers[11].log.reset(20, 3)
    world.peers[11].raft.log.persisted((), snapshot)
    world.peers[11].applied = 20
    await until(lambda: world.peers[11].applied == 22)


def test_for_how_long_a_replica_has_been_silent_is_told_also_of_one_that_left() -> None:
    peer, clock = Peer(2), HandClock()
    sources = sources_by(peer, clock)
    hello = peer_pb2.Hello(node_id=11, name="n11")
    source = sources.open(changelog_pb2.FollowRequest(hello=hello))
    clock.pass_ms(5_000)
    source.acknowledge(changelog_pb2.FollowRequest())
    clock.pass_ms(100)
    assert sources.held() == [Held(11, 0, 0, 100)]
    sources.close(source)
    clock.pass_ms(7_000)
    assert sources.held() == [Held(11, 0, 0, 7_100)]
    sources.open(changelog_pb2.FollowRequest(hello=hello))
    assert sources.held() == [Held(11, 0, 0, 0)]


def test_what_was_known_of_a_replica_is_forgotten_when_it_votes() -> None:
    """Else a region that was the primary one meanwhile counts as silent, and behind, since long before that."""
    peer = Peer(2)
    sources = peer.sources
    hello = peer_pb2.Hello(node_id=11, name="n11")

    def put_in_force(index: int, role: MemberRole) -> None:
        rest = peer.raft.membership.without(11).members
        member = replace(MEMBERS.members[3], role=role)
        data = encode_membership(Membership((*rest, member)))
        peer.commit(Entry(3, index, EntryKind.MEMBERSHIP, data))
        sources.dismiss(())

    sources.close(sources.open(changelog_pb2.FollowRequest(hello=hello)))
    assert [held.node_id for held in sources.held()] == [11]
    put_in_force(1, MemberRole.VOTER)
    put_in_force(2, MemberRole.REPLICA)
    assert sources.held() == []
    late = sources.open(changelog_pb2.FollowRequest(hello=hello))
    put_in_force(3, MemberRole.VOTER)
    sources.close(late)
    put_in_force(4, MemberRole.REPLICA)
    assert sources.held() == []
