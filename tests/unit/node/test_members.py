"""Changes of membership: each verb, and what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace as with_fields

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.member_wire import member_from_wire, member_to_wire
from kvnode.proto.kv.internal.v1 import peer_pb2
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_trio, until


def newcomer(trio: Trio, node_id: int = 4, dc: str = "a", **fields: str) -> Server:
    """A started server that waits to be adopted."""
    member = Member(node_id, f"node{node_id}", "r1", dc, f"sim:{node_id}", MemberRole.LEARNER)
    server = trio.add_server(with_fields(member, **fields))  # type: ignore[arg-type]
    server.joined = False
    trio.start(server)
    return server


async def names(trio: Trio) -> dict[int, str]:
    """The members as the leader's log has them, with their roles."""
    leader = await trio.leading()
    return {member.node_id: member.role.value for member in trio.node(leader).membership.members}


async def added(trio: Trio, server: Server) -> None:
    """Add it and wait until it serves."""
    leader = await trio.leading()
    await trio.within(leader, trio.node(leader).members.add(server.member))
    await until(lambda: server.node is not None, 10)


async def promoted(trio: Trio, server: Server) -> None:
    """Promote it as soon as it has caught up."""
    leader = await trio.leading()
    node = trio.node(leader)
    await trio.everywhere()
    await asyncio.sleep(0.3)
    await trio.within(leader, node.members.promote(server.member.node_id))


@on_trio
async def test_add_promote_and_remove(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.put(leader, b"k")
    server = newcomer(trio)
    await asyncio.sleep(0.1)
    await added(trio, server)
    assert (await names(trio))[4] == "learner"
    assert await trio.get(server, b"k") == b"v"
    await promoted(trio, server)
    assert (await names(trio))[4] == "voter"
    again = await trio.within(leader, trio.node(leader).members.promote(4))
    assert again.get(4).role is MemberRole.VOTER, "promoting twice is harmless"  # type: ignore[union-attr]
    await trio.within(leader, trio.node(leader).members.remove(4, force=False))
    assert 4 not in await names(trio)
    await trio.put(leader, b"l")


@on_trio
async def test_replace_never_goes_below_the_number_of_voters(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    trio.kill(one)
    server = newcomer(trio, dc=one.member.dc)
    await asyncio.sleep(0.1)
    counts = set()

    async def count() -> None:
        while True:
            counts.add(len(trio.node(leader).membership.voters))
            await asyncio.sleep(0.001)

    counting = asyncio.ensure_future(count())
    node = trio.node(leader)
    membership = await trio.within(leader, node.members.replace(one.member.node_id, server.member, 60_000))
    counting.cancel()
    assert {m.node_id for m in membership.voters} == {leader.member.node_id, 4, *_rest(trio, leader, one)}
    assert counts <= {3, 4}
    assert await trio.get(server, b"k") == b"v"


@on_trio
async def test_a_replacement_that_broke_off_is_finished_by_asking_again(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    old_id = one.member.node_id
    await trio.put(leader, b"k")
    server = newcomer(trio, dc=one.member.dc)
    await asyncio.sleep(0.1)

    async def again() -> set[int]:
        now = await trio.leading()
        membership = await trio.within(
            now, trio.node(now).members.replace(old_id, with_fields(server.member, node_id=0), 60_000)
        )
        return {member.node_id for member in membership.voters}

    wanted = {1, 2, 3, 4} - {old_id}
    await added(trio, server)  # and here the first attempt broke off
    assert await again() == wanted
    assert await trio.get(server, b"k") == b"v"
    error = await trio.refused(leader, trio.node(leader).members.replace(4, server.member, 1_000))
    assert error.code == "MEMBER_NOT_REPLACED" and "nothing is left to do" in error.message


@on_trio
async def test_a_replacement_broken_off_after_the_promotion_only_removes(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    server = newcomer(trio, dc=one.member.dc)
    await asyncio.sleep(0.1)
    await added(trio, server)
    await promoted(trio, server)
    trio.kill(one)
    members = trio.node(leader).members
    membership = await trio.within(leader, members.replace(one.member.node_id, server.member, 60_000))
    assert {member.node_id for member in membership.members} == {1, 2, 3, 4} - {one.member.node_id}


@on_trio
async def test_a_node_started_anew_in_its_place_replaces_itself(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    trio.kill(one)
    server = newcomer(trio, dc=one.member.dc, name=one.member.name)
    await asyncio.sleep(0.1)
    members = trio.node(leader).members
    plain = await trio.refused(leader, members.add(server.member))
    assert plain.code == "MEMBER_EXISTS"
    membership = await trio.within(leader, members.replace(one.member.node_id, server.member, 60_000))
    assert {m.node_id for m in membership.voters} == {1, 2, 3, 4} - {one.member.node_id}
    assert await trio.get(server, b"k") == b"v"


@on_trio
async def test_what_is_changed_while_a_node_is_adopted_is_not_undone(trio: Trio) -> None:
    leader = await trio.leading()
    node = trio.node(leader)
    first, second = newcomer(trio, 4), newcomer(trio, 5, dc="b")
    await asyncio.sleep(0.1)
    await added(trio, first)
    adopt = node.transport.adopt

    async def slow(address: str, request: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
        await node.members.remove(4, force=False)
        return await adopt(address, request)

    node.transport.adopt = slow  # type: ignore[method-assign]
    membership = await trio.within(leader, node.members.add(second.member))
    assert {m.node_id for m in membership.members} == {1, 2, 3, 5}


def _rest(trio: Trio, *without: Server) -> set[int]:
    return {s.member.node_id for s in trio.servers.values() if s not in without} - {4}


@on_trio
async def test_only_the_leader_changes_the_membership_and_others_name_it(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    members = trio.node(one).members
    target = other.member.node_id
    verbs = (
        members.add(other.member),
        members.promote(target),
        members.remove(target, force=True),
        members.replace(target, leader.member, 0),
    )
    for verb in verbs:
        error = await trio.refused(one, verb)
        assert error.code == "NOT_LEADER", error
        assert leader.member.name in error.message and leader.member.address in error.message


@on_trio
async def test_unknown_members_are_named_with_those_that_exist(trio: Trio) -> None:
    leader = await trio.leading()
    members = trio.node(leader).members
    for verb in (members.promote(77), members.remove(77, force=True), members.replace(77, leader.member, 0)):
        error = await trio.refused(leader, verb)
        assert error.code == "MEMBER_UNKNOWN" and "node1=1, node2=2, node3=3" in error.message


@on_trio
async def test_twins_strangers_and_the_absent_are_refused(trio: Trio) -> None:
    leader = await trio.leading()
    members = trio.node(leader).members
    before = await names(trio)

    nobody = await trio.refused(leader, members.add(Member(9, "node9", "r1", "a", "sim:9")))
    assert nobody.code == "PEER_UNREACHABLE"

    twin = newcomer(trio, 4, name="node2")
    same_name = await trio.refused(leader, members.add(twin.member))
    assert same_name.code == "MEMBER_EXISTS" and "name node2" in same_name.message
    known = await trio.refused(leader, members.add(trio.servers[1].member))
    assert known.code == "MEMBER_EXISTS"

    server = newcomer(trio, 5)
    await asyncio.sleep(0.1)
    wrong_id = await trio.refused(leader, members.add(with_fields(server.member, node_id=6)))
    assert wrong_id.code == "MEMBER_ID_MISMATCH" and "has the id 5, not 6" in wrong_id.message
    server.host.identify = lambda: peer_pb2.IdentifyResponse(
        member=member_to_wire(server.member), cluster_id="another", joined=True
    )
    foreign = await trio.refused(leader, members.add(server.member))
    assert foreign.code == "MEMBER_OF_ANOTHER_CLUSTER" and "another" in foreign.message
    assert await names(trio) == before


@on_trio
async def test_a_removal_that_leaves_no_room_for_a_failure_needs_force(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    members = trio.node(leader).members
    error = await trio.refused(leader, members.remove(one.member.node_id, force=False))
    assert error.code == "MEMBER_REMOVAL_UNSAFE" and "the loss of data center" in error.message
    assert len(await names(trio)) == 3
    await trio.within(leader, members.remove(one.member.node_id, force=True))
    assert len(await names(trio)) == 2


@on_trio
async def test_a_learner_that_lags_is_not_promoted(trio: Trio) -> None:
    leader = await trio.leading()
    server = newcomer(trio)
    await asyncio.sleep(0.1)
    await added(trio, server)
    trio.kill(server)
    for n in range(40):
        await trio.put(leader, b"k%d" % n, b"x" * 500)
    error = await trio.refused(leader, trio.node(leader).members.promote(4))
    assert error.code == "LEARNER_NOT_CAUGHT_UP"
    assert (await names(trio))[4] == "learner"


@on_trio
async def test_of_two_changes_at_once_neither_undoes_the_other(trio: Trio) -> None:
    leader = await trio.leading()
    members = trio.node(leader).members
    servers = [newcomer(trio, 4), newcomer(trio, 5, dc="b")]
    await asyncio.sleep(0.1)
    tasks = [leader.process.spawn(members.add(server.member)) for server in servers]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    done = {4 + at for at, result in enumerate(results) if not isinstance(result, BaseException)}
    now = set(await names(trio))
    assert done, results
    assert now == {1, 2, 3} | done, f"{results} and then {now}"


@on_trio
async def test_a_change_lost_with_the_leadership_is_not_reported_as_done(trio: Trio) -> None:
    """The successor commits other entries at that index, all of which arrive between two looks."""
    old, one, other = await trio.leader_and_followers()
    trio.cut(old)
    node = trio.node(old)
    change = old.process.spawn(node.members.remove(one.member.node_id, force=True))
    await asyncio.sleep(0.02)
    index = node.raft.last_index
    await until(lambda: trio.leader() in (one, other), 20)
    new = await trio.leading()
    for n in range(3):
        await trio.put(new, b"k%d" % n)
    old.process.freeze()  # the news piles up
    trio.heal()
    await asyncio.sleep(1.0)
    old.process.thaw()
    result = (await asyncio.gather(change, return_exceptions=True))[0]
    assert node.applied_index >= index
    assert len(await names(trio)) == 3
    assert isinstance(result, Exception), f"reported as done: {result}"
    assert "leadership was lost during the change" in str(result)


@on_trio
async def test_a_change_that_cannot_commit_says_so_in_time(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    trio.wire.holds = lambda source, target, batch: any(message.kind == 2 for message in batch.messages)
    members = trio.node(leader).members
    started_s = asyncio.get_running_loop().time()
    error = await trio.refused(leader, members.remove(one.member.node_id, force=True))
    assert error.code == "DEADLINE_EXCEEDED" and "not yet committed" in error.message
    assert asyncio.get_running_loop().time() - started_s < 31
    busy = await trio.refused(leader, members.remove(one.member.node_id, force=True))
    assert busy.code in ("MEMBERSHIP_CHANGE_IN_PROGRESS", "MEMBER_UNKNOWN")


def test_an_unknown_role_is_named_with_those_that_exist() -> None:
    wire = member_to_wire(Member(1, "n", "r", "d", "x:1"))
    assert member_from_wire(wire) == Member(1, "n", "r", "d", "x:1")
    wire.role = ""
    assert member_from_wire(wire).role is MemberRole.LEARNER
    wire.role = "king"
    with pytest.raises(InvalidRequest, match="'king' is unknown: it is 'voter' or 'learner'"):
        member_from_wire(wire)


@on_trio
async def test_a_member_that_was_removed_does_not_come_back_under_its_id(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    server, spare = newcomer(trio, 4), newcomer(trio, 5, dc=one.member.dc)
    await asyncio.sleep(0.1)
    await added(trio, server)
    members = trio.node(leader).members
    await trio.within(leader, members.remove(4, force=False))
    for again in (members.add(server.member), members.replace(one.member.node_id, server.member, 1_000)):
        error = await trio.refused(leader, again)
        assert error.code == "MEMBER_REMOVED" and "empty data directory" in error.message
    await added(trio, spare)
    assert set(await names(trio)) == {1, 2, 3, 5}, "another node is taken in, and what broke off is finished"
    await trio.within(leader, members.replace(one.member.node_id, spare.member, 60_000))
    assert trio.node(leader).membership.removed_ids == (4, one.member.node_id)


@on_trio
async def test_a_data_center_stands_in_one_region(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    before = await names(trio)
    stranger = newcomer(trio, region="r9", dc=one.member.dc)
    await asyncio.sleep(0.1)
    for wanted in (stranger.member, with_fields(stranger.member, role=MemberRole.REPLICA)):
        error = await trio.refused(leader, trio.node(leader).members.add(wanted))
        assert isinstance(error, InvalidRequest) and error.code == "MEMBER_REGION_CONTRADICTED" and error.not_applied
        for word in (f"r9/{one.member.dc}", "region r1", f"'{one.member.name}'", "--region r1"):
            assert word in error.message, error.message
    other = next(server for server in trio.others(leader) if server is not one)
    replaced = await trio.refused(
        leader, trio.node(leader).members.replace(other.member.node_id, stranger.member, 1_000)
    )
    assert replaced.code == "MEMBER_REGION_CONTRADICTED"
    assert await names(trio) == before and not stranger.joined, "it still waits, and may be joined elsewhere"


@on_trio
async def test_nobody_votes_from_another_region(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    far, spare = newcomer(trio, 4, dc="far", region="r9"), newcomer(trio, 5, dc="far", region="r9")
    await asyncio.sleep(0.1)
    await added(trio, far)
    await trio.everywhere()
    await asyncio.sleep(0.3)  # so that it has caught up, and nothing else speaks against it
    members, before = trio.node(leader).members, await names(trio)
    for verb in (
        members.promote(4),
        members.replace(one.member.node_id, far.member, 1_000),
        members.replace(one.member.node_id, spare.member, 1_000),
    ):
        error = await trio.refused(leader, verb)
        assert isinstance(error, InvalidRequest) and error.code == "MEMBER_ROLE_INVALID" and error.not_applied
        for word in ("'r9'", "'r1'", "kvnode failover"):
            assert word in error.message, error.message
    assert await names(trio) == before and not spare.joined, "nothing was changed"


@on_trio
async def test_a_replica_of_another_region_does_not_vote(trio: Trio) -> None:
    leader = await trio.leading()
    far = newcomer(trio, 4, dc="far", region="r9")
    await asyncio.sleep(0.1)
    members = trio.node(leader).members
    await trio.within(leader, members.add(with_fields(far.member, role=MemberRole.REPLICA)))
    error = await trio.refused(leader, members.promote(4))
    assert error.code == "MEMBER_ROLE_INVALID" and "kvnode failover" in error.message
