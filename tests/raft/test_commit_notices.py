"""A leader that holds its notices tells followers of a commit with the next append, or when it is told to."""

from __future__ import annotations

from kvnode.raft.messages import Message, MessageKind
from tests.raft.harness import Cluster


def holding() -> tuple[Cluster, list[Message]]:
    """A cluster whose leader is 1 and knows of nothing to tell, and the messages of it from here on."""
    cluster = Cluster("1:a 2:b 3:c", holds_commit_notices=True)
    cluster.elect(1)
    cluster[1].release_notices()
    cluster.settle()
    seen: list[Message] = []
    cluster.trace = lambda message: seen.append(message) if message.sender == 1 else None
    return cluster, seen


def test_a_commit_is_told_with_the_next_append() -> None:
    cluster, seen = holding()
    cluster.propose(1, "x")
    assert [message.kind for message in seen] == [MessageKind.APPEND] * 2
    assert cluster.data(1) == ["x"]
    assert cluster.data(2) == cluster.data(3) == []
    cluster.propose(1, "y")
    assert [message.kind for message in seen] == [MessageKind.APPEND] * 4
    assert cluster.data(2) == cluster.data(3) == ["x"]


def test_a_commit_is_told_when_the_node_calls_for_it_and_once() -> None:
    cluster, seen = holding()
    cluster.propose(1, "x")
    assert cluster[1].holds_notice
    cluster[1].release_notices()
    cluster.settle()
    assert not cluster[1].holds_notice
    assert [message.kind for message in seen[2:]] == [MessageKind.HEARTBEAT] * 2
    assert cluster.data(2) == cluster.data(3) == ["x"]
    cluster[1].release_notices()
    cluster.settle()
    assert len(seen) == 4


def test_a_commit_is_told_by_the_periodic_heartbeat() -> None:
    cluster, _ = holding()
    cluster.propose(1, "x")
    cluster.tick(1)
    assert cluster.data(2) == cluster.data(3) == ["x"]


def test_only_a_leader_holds_notices() -> None:
    cluster, _ = holding()
    cluster.propose(1, "x")
    cluster[2].release_notices()
    assert not cluster[2].holds_notice
