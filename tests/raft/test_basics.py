"""The core works at all: elect, replicate, read, crash."""

from __future__ import annotations

from kvnode.raft.types import ReadState
from tests.raft.harness import Cluster


def test_three_nodes_elect_and_replicate() -> None:
    cluster = Cluster("1:a 2:b 3:c", min_commit_dcs=2)
    cluster.elect(1)
    cluster.propose(1, "x", "y")
    for node_id in (1, 2, 3):
        assert cluster.data(node_id) == ["x", "y"]
        assert cluster[node_id].leader_id == 1


def test_a_cluster_of_one_commits_by_itself() -> None:
    cluster = Cluster("1:a")
    cluster.elect(1)
    cluster.propose(1, "x")
    cluster[1].request_read(7)
    cluster.settle()
    assert cluster.data(1) == ["x"]
    assert cluster.nodes[1].reads == [ReadState(7, cluster[1].commit)]


def test_ticks_alone_elect_a_leader() -> None:
    cluster = Cluster("1:a 2:b 3:c")
    cluster.tick(21)
    assert cluster.leader() is not None


def test_everybody_restarts() -> None:
    cluster = Cluster("1:a 2:b 3:c", min_commit_dcs=2)
    cluster.elect(1)
    cluster.propose(1, "x")
    for node in cluster.nodes.values():
        node.restart()
    cluster.elect(2)
    cluster.propose(2, "y")
    assert [cluster.data(n) for n in (1, 2, 3)] == [["x", "y"]] * 3
