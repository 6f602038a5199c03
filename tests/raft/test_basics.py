"""The core works at all: elect, replicate, read, crash."""

from __future__ import annotations

from kvnode.raft.types import ReadState, Role
from tests.raft.harness import ELECTION_TICKS, Cluster


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


def test_a_follower_whose_log_lost_what_it_acknowledged_knows_it_and_answers_no_more() -> None:
    cluster = Cluster("1:a 2:b 3:c", min_commit_dcs=2)
    cluster.elect(1)
    cluster.propose(1, "x", "y", "z")
    commit = cluster[1].commit
    kept = cluster.nodes[3]
    kept.disk.held = kept.disk.held[:-2]
    kept.state.index, kept.state.term = kept.disk.last_index(), kept.disk.held[-1].term
    kept.state.applied = kept.state.applied[:-2]
    kept.restart()
    answered = cluster[1].progress()[1].ticks_since_contact
    cluster.tick(5)
    assert cluster[3].lost_through == commit
    assert cluster[3].last_index == commit - 2
    assert cluster[1].progress()[1].ticks_since_contact > answered


def test_a_follower_that_restarts_whole_misses_nothing() -> None:
    cluster = Cluster("1:a 2:b 3:c", min_commit_dcs=2)
    cluster.elect(1)
    cluster.propose(1, "x", "y", "z")
    cluster.nodes[3].restart()
    cluster.tick(5)
    assert cluster[3].lost_through == 0
    assert cluster.data(3) == ["x", "y", "z"]


def test_the_own_vote_counts_when_its_own_ready_is_on_disk() -> None:
    """One that was under way when the node began to campaign says nothing of its vote."""
    cluster = Cluster("1:a")
    node = cluster.nodes[1]
    cluster.elect(1)
    cluster.propose(1, "x")
    node.raft.propose(b"y")
    node.begin()
    node.raft.step_down("to be elected anew")
    node.raft.campaign()
    term = node.raft.term
    node.finish()
    assert node.raft.role is Role.CANDIDATE and node.disk.hard_state.term < term
    node.begin()
    node.finish()
    assert node.raft.is_leader and node.disk.hard_state.term == term


def test_a_snapshot_replaces_a_longer_tail_that_nobody_committed() -> None:
    """To hold as many entries is not to hold the snapshot's: its term says whether they are the same."""
    cluster = Cluster("1:a 2:b 3:c", min_commit_dcs=2)
    cluster.elect(1)
    cluster.propose(1, "a")
    cluster.isolate(1)
    cluster.propose(1, *"uvwxyz")
    cluster.tick(3 * ELECTION_TICKS, only=(2, 3))
    leader = cluster.leader()
    assert leader in (2, 3)
    cluster.propose(leader, *"bc")
    cluster.nodes[leader].disk.compact(cluster[leader].applied)
    assert cluster[1].last_index > cluster[leader].last_index
    cluster.heal()
    cluster.tick(ELECTION_TICKS)
    cluster.propose(leader, "d")
    assert [cluster.data(n) for n in (1, 2, 3)] == [list("abcd")] * 3
