"""Those who speak to a node that does not know them: it answers, or it would stay behind for ever."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.base import limits
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.introductions import Introductions
from kvnode.node.member_wire import member_to_wire
from kvnode.proto.kv.internal.v1 import peer_pb2
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_regions, on_trio, until
from tests.unit.node.test_members import added, newcomer, promoted


async def new_voter(trio: Trio, node_id: int) -> Server:
    """A member that was not there in the beginning."""
    server = newcomer(trio, node_id, dc="abc"[node_id % 3])
    await asyncio.sleep(0.1)
    await added(trio, server)
    await promoted(trio, server)
    return server


async def led_by(trio: Trio, server: Server) -> None:
    """Hand leadership to it."""
    leader = await trio.leading()
    if leader is not server:
        await trio.within(leader, trio.node(leader).transfer_leadership(server.member.node_id))


@on_trio
async def test_a_node_that_was_away_follows_a_leader_which_it_has_never_heard_of(trio: Trio) -> None:
    leader, away, _ = await trio.leader_and_followers()
    await trio.put(leader, b"before")
    await trio.everywhere()
    trio.kill(away)
    stranger = await new_voter(trio, 4)
    await led_by(trio, stranger)
    await trio.put(stranger, b"meanwhile")
    trio.start(away)
    await until(lambda: away.serving and trio.node(away).leader_id == 4, 30)
    assert await trio.get(away, b"meanwhile") == b"v", "what is asked of it goes to that leader"
    await trio.everywhere()
    assert trio.node(away).membership.get(4) is not None
    await until(lambda: not trio.node(away).introductions, 5, "it knows that node now")


@on_trio
async def test_it_votes_for_a_candidate_which_it_has_never_heard_of(trio: Trio) -> None:
    """Of five two are lost, and the one whose log is longest was not there when this one went away."""
    leader, away, behind = await trio.leader_and_followers()
    await trio.put(leader, b"before")
    trio.kill(away)
    four, five = await new_voter(trio, 4), await new_voter(trio, 5)
    await led_by(trio, four)
    trio.cut(behind)
    await trio.put(four, b"meanwhile")
    for lost in (leader, five, four):
        trio.kill(lost)
    trio.heal()
    trio.start(four)
    trio.start(away)
    await until(lambda: four.serving and trio.node(four).is_leader, 60, "it did not get the vote")
    assert await trio.get(away, b"meanwhile") == b"v"


@on_trio
async def test_a_replaced_cluster_takes_its_last_old_member_along(trio: Trio) -> None:
    """While it was away all others were replaced, one after the other, and the log was compacted."""
    leader, away, other = await trio.leader_and_followers()
    await trio.put(leader, b"before")
    trio.kill(away)
    four, five = await new_voter(trio, 4), await new_voter(trio, 5)
    await led_by(trio, four)
    for old in (leader, other):
        await trio.within(four, trio.node(four).members.remove(old.member.node_id, force=True))
        trio.kill(old)
    for server in (four, five):
        await trio.within(server, trio.node(server).snapshot_now())
    await trio.put(four, b"after")
    trio.start(away)
    await until(lambda: away.serving and trio.node(away).applied_index >= trio.node(four).raft.commit, 60)
    assert await trio.get(away, b"after") == b"v"


@on_regions
async def test_a_replica_follows_voters_all_of_whom_came_while_it_was_away(trio: Trio) -> None:
    leader = await trio.leading()
    old = [server for server in trio.servers.values() if server.member.region == leader.member.region]
    away = [server for server in trio.servers.values() if server not in old]
    await trio.put(leader, b"before")
    for server in away:
        trio.kill(server)
    new = [await new_voter(trio, node_id) for node_id in (6, 7, 8)]
    await led_by(trio, new[0])
    for server in old:
        await trio.within(new[0], trio.node(new[0]).members.remove(server.member.node_id, force=True))
        trio.kill(server)
    await trio.put(new[0], b"after")
    for server in away:
        trio.start(server)
    wanted = trio.node(new[0]).raft.commit
    await until(lambda: all(s.serving and trio.node(s).applied_index >= wanted for s in away), 60, "it stays behind")


class Ground:
    """Introductions with everything around them."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.known = {1, 2}
        self.changes = 0
        self.introductions = Introductions(1, lambda node_id: node_id in self.known, lambda: self.now_ms, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def hello(self, node_id: int, address: str = "host:1") -> None:
        member = Member(node_id, f"node{node_id}", "r", "a", address, MemberRole.VOTER)
        wire = member_to_wire(member) if address else None
        self.introductions.hear(peer_pb2.Hello(node_id=node_id, name=member.name, member=wire))

    @property
    def ids(self) -> list[int]:
        return [member.node_id for member in self.introductions.members]


def test_only_strangers_who_say_where_they_are_count() -> None:
    ground = Ground()
    ground.hello(1)
    ground.hello(2)
    ground.hello(3, address="")
    assert not ground.introductions and ground.changes == 0
    ground.hello(4)
    assert ground.ids == [4] and ground.changes == 1
    ground.hello(4)
    assert ground.changes == 1, "it says the same again"
    ground.hello(4, "host:2")
    assert [m.address for m in ground.introductions.members] == ["host:2"] and ground.changes == 2


def test_a_hello_for_somebody_else_introduces_nobody() -> None:
    ground = Ground()
    wire = member_to_wire(Member(7, "x", "r", "a", "host:1", MemberRole.VOTER))
    ground.introductions.hear(peer_pb2.Hello(node_id=4, member=wire))
    ground.introductions.hear(peer_pb2.Hello(node_id=4, member={"node_id": 4, "address": "h:1", "role": "emperor"}))
    assert not ground.introductions


@pytest.mark.parametrize("speaks", [True, False])
def test_a_stranger_who_is_silent_is_forgotten(speaks: bool) -> None:
    ground = Ground()
    ground.hello(4)
    ground.now_ms = 0.9 * limits.INTRODUCTION_LIFETIME_MS
    if speaks:
        ground.introductions.spoke(4)
    ground.introductions.sweep()
    assert ground.ids == [4]
    ground.now_ms = 1.1 * limits.INTRODUCTION_LIFETIME_MS
    ground.introductions.sweep()
    assert ground.ids == ([4] if speaks else [])
    assert ground.changes == (1 if speaks else 2)


def test_who_has_become_a_member_is_no_stranger() -> None:
    ground = Ground()
    ground.hello(4)
    ground.known.add(4)
    assert ground.ids == []
    ground.introductions.sweep()
    assert not ground.introductions


def test_strangers_are_bounded_and_the_most_silent_makes_room() -> None:
    ground = Ground()
    for number in range(limits.MAX_INTRODUCED_COUNT):
        ground.now_ms = number
        ground.hello(10 + number)
    ground.introductions.spoke(10)
    ground.now_ms += 1
    ground.hello(1_000)
    assert len(ground.ids) == limits.MAX_INTRODUCED_COUNT
    assert 11 not in ground.ids and {10, 1_000} <= set(ground.ids)
