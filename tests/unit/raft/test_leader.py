"""What a leader counts or remembers for a time, and must begin anew the next time."""

from __future__ import annotations

from kvnode.raft.messages import MessageKind
from tests.raft.harness import ELECTION_TICKS, Cluster, changed


def test_each_handover_has_an_election_timeout() -> None:
    cluster = Cluster("1:a 2:b 3:c")
    cluster.elect(1)
    cluster.drop = lambda message: message.kind is MessageKind.TIMEOUT_NOW
    for _ in range(2):
        cluster[1].transfer_leadership(2)
        cluster.tick(ELECTION_TICKS - 1)
        assert cluster[1].transferring == 2
        cluster.tick()
        assert cluster[1].transferring == 0
        cluster.propose(1, "x")


def test_who_was_removed_and_comes_back_at_once_is_served_on() -> None:
    """It was away, so the leader had still to tell it of its removal."""
    cluster = Cluster("1:a 2:b 3:c 4:d/learner")
    cluster.elect(1)
    cluster.isolate(4)
    before = cluster[1].membership
    cluster[1].propose_membership(changed(before, "-4"))
    cluster.settle()
    cluster[1].propose_membership(before)
    cluster.settle()
    cluster.heal()
    cluster.tick(2 * ELECTION_TICKS)
    cluster.propose(1, "x")
    assert cluster.data(4) == ["x"]
