"""Held votes: a voter that a leader counts on hears no candidate, whatever else happens to it."""

from __future__ import annotations

import pytest

from kvnode.codec.epoch import EpochStart, encode_epoch_start, epoch_entry
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.types import Role
from tests.raft.harness import ELECTION_TICKS, Cluster, members

LAYOUT = "1:a 2:b 3:c"
HOLD_MS = 450


def leased(layout: str = LAYOUT, **config: int) -> Cluster:
    """Node 1 leads, and a majority has answered a round of it."""
    cluster = Cluster(layout, asks_holds=True, vote_hold_ms=HOLD_MS, holds_vote_at_start=True, **config)
    for node in cluster.nodes.values():
        node.raft.hold_ticks = 0  # of the start
    cluster.elect(1)
    cluster.tick()
    assert cluster[1].may_lease and cluster[1].quorum_hold_ms == HOLD_MS
    return cluster


def is_heard(cluster: Cluster, voter: int, context: bytes = b"") -> bool:
    """Whether a voter grants its vote to a stranger's candidate of the next term, or of its own if that is free."""
    raft = cluster[voter]
    candidate = next(node_id for node_id in cluster.nodes if node_id not in (1, voter))
    term = max(node.raft.term for node in cluster.nodes.values()) + 1
    raft.step(
        Message(
            MessageKind.VOTE,
            voter,
            candidate,
            term,
            log_term=raft.log.last_term,
            index=raft.last_index,
            context=context,
        )
    )
    cluster.nodes[voter].begin()
    answers = cluster.nodes[voter].finish()
    return any(m.kind is MessageKind.VOTE_RESPONSE and not m.reject for m in answers)


def test_a_hold_lasts_for_an_election_timeout_and_no_longer() -> None:
    cluster = leased()
    cluster.isolate(1)
    cluster.tick(ELECTION_TICKS - 1, only=[2])
    assert cluster[2].holds_vote and not is_heard(cluster, 2)
    cluster.tick(only=[2])
    assert not cluster[2].holds_vote and is_heard(cluster, 2)


def test_a_gap_in_its_clock_does_not_break_a_hold() -> None:
    """A frozen voter wakes, answers what lay in its inbox, and only then finds out that it was frozen."""
    cluster = leased()
    cluster[2].clock_gap()
    assert not cluster[2].heard_leader, "it vouches for no leader"
    assert not is_heard(cluster, 2)


def test_a_later_term_that_it_hears_of_does_not_break_a_hold() -> None:
    cluster = leased()
    raft = cluster[2]
    raft.step(Message(MessageKind.PRE_VOTE_RESPONSE, 2, 3, raft.term + 3, reject=True))
    assert raft.leader_id == 0 and raft.term > cluster[1].term
    assert not is_heard(cluster, 2)
    term = raft.term
    same_term = Message(MessageKind.VOTE, 2, 3, term, log_term=raft.log.last_term, index=raft.last_index)
    raft.step(same_term)
    assert raft.vote == 0, "a candidate of the very term that it heard of is refused too"


def test_a_restart_does_not_break_a_hold() -> None:
    cluster = leased()
    cluster.nodes[2].restart()
    assert cluster[2].leader_id == 0
    assert not is_heard(cluster, 2)
    cluster.isolate(1)
    cluster.tick(ELECTION_TICKS, only=[2])
    assert is_heard(cluster, 2)


def test_who_never_took_part_holds_nothing() -> None:
    cluster = leased()
    cluster.join(9)
    assert not cluster[9].holds_vote


def test_who_holds_its_vote_does_not_stand_for_election_itself() -> None:
    cluster = leased()
    cluster.isolate(2)
    cluster[2].campaign()
    assert cluster[2].role is Role.FOLLOWER
    cluster[2].election_wait = 1
    cluster.tick(ELECTION_TICKS - 1, only=[2])
    assert cluster[2].role is Role.FOLLOWER
    cluster.tick(only=[2])
    assert cluster[2].role is Role.PRE_CANDIDATE


def test_a_leader_that_does_not_ask_is_held_no_vote() -> None:
    cluster = Cluster(LAYOUT, vote_hold_ms=HOLD_MS)
    cluster.elect(1)
    cluster.tick()
    assert not cluster[2].holds_vote and not cluster[1].may_lease


def test_a_handover_breaks_the_hold_and_ends_the_lease_for_good() -> None:
    """The word to campaign may arrive long after the leader has given the handover up."""
    cluster = leased()
    late: list[Message] = []
    cluster.drop = lambda message: message.kind is MessageKind.TIMEOUT_NOW and not late.append(message)
    cluster[1].transfer_leadership(2)
    assert not cluster[1].may_lease
    cluster.tick(ELECTION_TICKS + 1)
    assert cluster[1].transferring == 0 and cluster[1].is_leader and late
    assert not cluster[1].may_lease
    cluster.isolate(1)
    cluster[2].step(late[0])
    cluster.settle()
    assert cluster[2].is_leader, "elected although the others hold their votes"


def test_only_a_majority_of_holds_makes_a_lease() -> None:
    cluster = leased("1:a 2:b 3:c 4:d 5:e")
    cluster.isolate(1, 2)
    cluster[1].clock_gap()  # asks anew
    cluster.settle()
    assert not cluster[1].may_lease, "two of five have answered"
    cluster.heal()
    cluster.tick()
    assert cluster[1].may_lease and cluster[1].quorum_hold_ms == HOLD_MS


def test_the_shortest_hold_of_the_majority_counts_and_a_peer_that_says_none_is_none() -> None:
    cluster = leased()
    lead = cluster[1].lead
    assert lead is not None
    lead.peers[2].hold_ms, lead.peers[3].hold_ms = 200, 300
    assert cluster[1].quorum_hold_ms == 300
    lead.peers[2].hold_ms = lead.peers[3].hold_ms = 0  # of a version that knows no holds
    assert cluster[1].quorum_hold_ms == 0
    lead.peers[2].hold_ms, lead.peers[2].acked_round = HOLD_MS, cluster[1].quorum_round_acknowledged - 1
    assert cluster[1].quorum_hold_ms == 0, "what was granted with an older round says nothing of this one"


def test_a_seal_and_a_promise_end_the_lease_at_once() -> None:
    cluster = leased("1:a 2:b 3:c 4:d/replica")
    cluster[1].promise(2, 7)
    assert not cluster[1].may_lease
    cluster = leased("1:a 2:b 3:c 4:d/replica")
    start = EpochStart(2, 7, "eu", members("1:a/replica 2:b/replica 3:c/replica 4:d"), 1, planned=True)
    cluster[1].propose_seal(encode_epoch_start(start))
    assert not cluster[1].may_lease


def test_a_new_leader_has_no_lease_before_its_own_commit() -> None:
    cluster = leased()
    cluster.isolate(1)
    cluster.tick(ELECTION_TICKS, only=[2, 3])
    cluster.drop = lambda message: message.kind is MessageKind.APPEND_RESPONSE
    cluster[2].campaign()
    cluster.settle()
    cluster.tick(2, only=[2, 3])
    assert cluster[2].is_leader and not cluster[2].own_term_committed
    assert not cluster[2].may_lease


@pytest.mark.parametrize("voter", [2, 3])
def test_an_epoch_that_begins_sets_the_vote_free(voter: int) -> None:
    """Its coordinator has waited for the holds, or the leader has sealed; nothing is gained by waiting again."""
    cluster = leased("1:a 2:b 3:c")
    start = EpochStart(2, 7, "us", members("2:b 3:c"), 1, planned=False)
    cluster[voter].promise(2, 7)
    assert cluster[voter].holds_vote
    cluster[voter].begin_epoch(epoch_entry(start, cluster[voter].last_index + 1))
    assert not cluster[voter].holds_vote
