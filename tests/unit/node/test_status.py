"""A node's account of itself."""

from __future__ import annotations

import asyncio

import pytest

import kvnode
from kvnode.codec.membership import MemberRole
from kvnode.node import status
from kvnode.node.status import resident_bytes
from tests.unit.node.cluster import Trio, on_regions, on_trio, until
from tests.unit.node.test_members import newcomer


@on_trio
async def test_the_leader_knows_its_peers(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    await trio.everywhere()
    await asyncio.sleep(0.3)
    node = trio.node(leader)
    told = node.status()
    assert (told.role, told.leader_id, told.version) == ("leader", node.node_id, kvnode.__version__)
    assert told.self.node_id == node.node_id and told.self.role == "voter"
    assert told.commit_index == told.applied_index == told.last_index >= told.durable_applied_index
    assert told.digest == f"{node.state.meta.digest:032x}"
    assert {peer.node_id for peer in told.peers} == {one.member.node_id, other.member.node_id}
    for peer in told.peers:
        assert (peer.state, peer.lag_entries, peer.match_index) == ("replicate", 0, told.last_index)
        assert 0 <= peer.last_contact_ms < 1_000 and peer.name
    assert {member.node_id for member in told.members} == {1, 2, 3} and told.min_commit_dcs == 2
    assert not told.problems


@on_trio
async def test_a_follower_speaks_of_itself_alone(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await until(lambda: trio.node(one).status().age_ms >= 0, 5, "it has not heard how fresh it is")
    told = trio.node(one).status()
    assert (told.role, told.leader_id) == ("follower", leader.member.node_id)
    assert not told.peers and not told.problems
    assert told.age_ms < 5_000


@on_trio
async def test_a_silent_peer_is_a_problem_of_the_leaders_with_its_lag(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    trio.kill(one)
    for n in range(5):
        await trio.put(leader, b"k%d" % n)
    await until(lambda: bool(trio.node(leader).status().problems), 10)
    told = trio.node(leader).status()
    assert list(told.problems) == [f"node '{one.member.name}' does not answer the leader"]
    (silent,) = [peer for peer in told.peers if peer.node_id == one.member.node_id]
    assert silent.lag_entries >= 5 and silent.last_contact_ms > 500


@on_trio
async def test_without_a_quorum_each_says_that_there_is_no_leader(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    trio.cut(one)
    node = trio.node(one)
    await until(lambda: not node.leader_id, 20)
    (problem,) = node.status().problems
    assert problem.startswith("no leader is known")
    assert node.ready == (False, problem)


@on_trio
async def test_a_clock_that_is_off_is_named_with_its_offset(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    one.clock.step(3_600_000)
    node = trio.node(one)
    await until(lambda: any("clock" in problem for problem in node.status().problems), 30)
    told = node.status()
    assert any("ms from the others' median: it does not lead" in problem for problem in told.problems)
    assert abs(abs(told.clock_offset_ms) - 3_600_000) < 1_000


@on_trio
async def test_a_learner_calls_itself_one(trio: Trio) -> None:
    leader = await trio.leading()
    server = newcomer(trio)
    await asyncio.sleep(0.1)
    await trio.within(leader, trio.node(leader).members.add(server.member))
    await until(lambda: server.node is not None and trio.node(server).leader_id != 0, 10)
    await until(lambda: trio.node(server).membership.get(4) is not None, 10)
    assert trio.node(server).status().role == "learner"
    assert trio.node(server).status().self.role == "learner"


@on_regions
async def test_a_replica_calls_itself_one(trio: Trio) -> None:
    await trio.leading()
    replicas = [server for server in trio.servers.values() if server.member.role is MemberRole.REPLICA]
    assert len(replicas) == 2
    for server in replicas:
        await until(lambda server=server: trio.node(server).leader_id != 0, 20)  # type: ignore[misc]
        assert trio.node(server).status().role == trio.node(server).status().self.role == "replica"


def test_resident_memory_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1_048_576 < resident_bytes() < 1 << 36

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(status, "open", missing, raising=False)
    assert resident_bytes() == 0
