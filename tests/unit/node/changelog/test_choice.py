"""Whom a replica follows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.node.changelog.choice import sources


def member(node_id: int, region: str, role: MemberRole) -> Member:
    return Member(node_id, f"n{node_id}", region, f"dc{node_id}", f"h{node_id}:1", role)


VOTERS = [member(node_id, "us", MemberRole.VOTER) for node_id in (1, 2, 3)]
REPLICAS = [member(node_id, "eu", MemberRole.REPLICA) for node_id in (12, 11, 13)]
OTHERS = [member(21, "asia", MemberRole.REPLICA), member(4, "us", MemberRole.LEARNER)]
ALL = Membership((*VOTERS, *REPLICAS, *OTHERS))


def ids(node_id: int, region: str = "eu", leader_id: int = 0) -> list[int]:
    return [found.node_id for found in sources(ALL, node_id, region, leader_id)]


def test_neighbours_before_oneself_then_voters() -> None:
    assert ids(13)[:2] == [11, 12]
    assert ids(12)[:1] == [11]
    assert sorted(ids(13)[2:]) == [1, 2, 3]


def test_the_first_of_a_region_follows_a_voter_that_does_not_lead() -> None:
    for leader in (1, 2, 3):
        found = ids(11, leader_id=leader)
        assert sorted(found) == [1, 2, 3]
        assert found[-1] == leader


def test_a_replica_that_does_not_find_itself_yet_follows_those_it_knows() -> None:
    assert ids(99, "africa") != []


@given(st.lists(st.integers(1, 1_000), unique=True, min_size=1, max_size=8))
def test_there_are_no_circles(node_ids: list[int]) -> None:
    membership = Membership(tuple(member(node_id, "eu", MemberRole.REPLICA) for node_id in node_ids))
    for node_id in node_ids:
        assert all(source.node_id < node_id for source in sources(membership, node_id, "eu", 0))
