"""One test for each section of the Raft paper (Ongaro and Ousterhout, extended version) and of Ongaro's thesis that
the core implements. The sections' numbers are in the names: `p` the paper, `t` the thesis.
"""

from __future__ import annotations

import pytest

from kvnode.base.errors import InvalidRequest, NotLeader, Unavailable
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.entry import EntryKind
from kvnode.codec.membership import Membership
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.types import Role
from tests.raft.harness import ELECTION_TICKS, Cluster, all_entries, changed


def three(**config: int) -> Cluster:
    """Three nodes, of which 1 leads."""
    cluster = Cluster("1:a 2:b 3:c", **config)
    cluster.elect(1)
    return cluster


def recorded(cluster: Cluster) -> list[Message]:
    """Every message from now on, in the order of delivery."""
    seen: list[Message] = []
    cluster.trace = seen.append
    return seen


def silent(cluster: Cluster, *node_ids: int) -> None:
    """Let these nodes forget that they heard a leader."""
    for node_id in node_ids:
        for _ in range(ELECTION_TICKS):
            cluster[node_id].tick()
        cluster[node_id].election_elapsed = 0


def test_p51_a_newer_term_makes_a_follower_of_everybody() -> None:
    cluster = three()
    cluster[1].step(Message(MessageKind.APPEND_RESPONSE, 1, 2, term=9, reject=True))
    assert (cluster[1].role, cluster[1].term, cluster[1].vote) == (Role.FOLLOWER, 9, 0)


def test_p51_a_stale_term_is_refused() -> None:
    cluster = three()
    before = all_entries(cluster[2])
    for kind in MessageKind:
        cluster[2].step(Message(kind, 2, 3, term=1, index=1, log_term=1, context=b"transfer"))
    assert (cluster[2].term, cluster[2].leader_id, all_entries(cluster[2])) == (2, 1, before)


def test_p51_two_leaders_in_a_term_stop_the_node() -> None:
    cluster = three()
    with pytest.raises(InvariantViolation, match="both lead"):
        cluster[1].step(Message(MessageKind.HEARTBEAT, 1, 2, term=2))


def test_p52_election_waits_are_spread() -> None:
    waits = set()
    for seed in range(200):
        cluster = Cluster("1:a 2:b 3:c", seed=seed)
        waits |= {cluster[node_id].election_wait for node_id in (1, 2, 3)}
    assert waits == set(range(ELECTION_TICKS + 1, 2 * ELECTION_TICKS + 1))


def test_p52_one_vote_a_term() -> None:
    cluster = Cluster("1:a 2:b 3:c")
    cluster.work()
    cluster[3].step(Message(MessageKind.VOTE, 3, 1, term=5, index=1, log_term=1))
    cluster[3].step(Message(MessageKind.VOTE, 3, 2, term=5, index=1, log_term=1))
    cluster[3].step(Message(MessageKind.VOTE, 3, 1, term=5, index=1, log_term=1))
    answers = cluster[3].ready().messages_after_persist
    assert [(m.to, m.reject) for m in answers] == [(1, False), (2, True), (1, False)]


def test_p52_split_votes_are_resolved() -> None:
    cluster = Cluster("1:a 2:b 3:c 4:d")
    for node_id in (1, 2, 3, 4):
        cluster[node_id].campaign()
    cluster.tick(4 * ELECTION_TICKS)
    assert cluster.leader() is not None


def test_p52_a_candidate_yields_to_the_leader_of_its_term() -> None:
    cluster = Cluster("1:a 2:b 3:c")
    cluster.work()
    cluster[1].campaign()
    cluster[1].step(Message(MessageKind.PRE_VOTE_RESPONSE, 1, 2, term=2))
    assert (cluster[1].role, cluster[1].term) == (Role.CANDIDATE, 2)
    cluster[1].step(Message(MessageKind.HEARTBEAT, 1, 3, term=2))
    assert (cluster[1].role, cluster[1].leader_id) == (Role.FOLLOWER, 3)


def test_p53_figure_7_every_log_is_brought_in_line() -> None:
    """A leader with log 1,1,1,4,4,5,5,6,6,6 and followers a to f of figure 7."""
    logs = {
        1: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
        2: [1, 1, 1, 4, 4, 5, 5, 6, 6],
        3: [1, 1, 1, 4],
        4: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        5: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        6: [1, 1, 1, 4, 4, 4, 4],
        7: [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    }
    cluster = Cluster(" ".join(f"{n}:{n}" for n in logs))
    for node_id, terms in logs.items():
        node = cluster.nodes[node_id]
        (founding,) = node.disk.held
        node.disk.append(
            [founding._replace(term=t, index=i + 2, kind=EntryKind.DATA, data=b"%d" % t) for i, t in enumerate(terms)]
        )
        node.disk.hard_state = node.disk.hard_state._replace(term=7)
        node.restart()
    cluster.elect(1)
    cluster.tick(3)
    expected = [1, *logs[1], 8]
    for node_id in logs:
        assert [e.term for e in all_entries(cluster[node_id])] == expected, f"log of {node_id}"


def test_p53_conflicts_are_found_by_whole_terms() -> None:
    cluster = three()
    cluster.isolate(1)
    for _ in range(100):
        cluster[1].propose(b"x")
    cluster.settle()
    silent(cluster, 2, 3)
    cluster[2].campaign()
    cluster.settle()
    cluster.propose(2, *"abcdefgh")
    cluster.heal()
    rejections = [m for m in recorded(cluster) if m.reject]
    cluster.tick(3)
    assert len(rejections) <= 2
    assert all_entries(cluster[1]) == all_entries(cluster[2])


def test_p541_only_an_up_to_date_log_gets_votes() -> None:
    cluster = three()
    cluster.isolate(3)
    cluster.propose(1, "x")
    cluster.heal()
    silent(cluster, 1, 2, 3)
    cluster[1].step_down("test")
    cluster[3].campaign()
    cluster.settle()
    assert not cluster[3].is_leader
    cluster[2].campaign()
    cluster.settle()
    assert cluster[2].is_leader


def test_p542_an_old_term_is_committed_only_through_the_own() -> None:
    """See also scenarios/old_term_not_committed_by_counting.txt, which is figure 8."""
    cluster = three()
    cluster.drop = lambda m: m.kind is MessageKind.APPEND_RESPONSE
    cluster.propose(1, "old")
    cluster[1].step_down("test")
    silent(cluster, 2, 3)
    cluster[1].campaign()
    cluster.settle()
    leader = cluster[1]
    old = leader.last_index - 1
    assert (leader.term, leader.log.term(old)) == (3, 2)
    for sender in (2, 3):
        leader.step(Message(MessageKind.APPEND_RESPONSE, 1, sender, term=3, index=old))
    assert leader.commit < old
    leader.step(Message(MessageKind.APPEND_RESPONSE, 1, 2, term=3, index=old + 1))
    assert leader.commit == old + 1


def test_p55_retries_are_harmless() -> None:
    cluster = three()
    seen = recorded(cluster)
    cluster.propose(1, "x", "y")
    cluster.trace = None
    for message in [*seen, *seen]:
        cluster.deliver_one(message)
    cluster.settle()
    assert [cluster.data(n) for n in (1, 2, 3)] == [["x", "y"]] * 3


def test_p7_snapshot_brings_a_laggard_back() -> None:
    cluster = three()
    cluster.isolate(3)
    cluster.propose(1, *"abcdef")
    cluster.tick(ELECTION_TICKS, only=(1, 2))
    cluster.nodes[1].disk.compact(cluster[1].applied)
    cluster.heal()
    cluster.tick(3)
    cluster.propose(1, "g")
    assert cluster.data(3) == list("abcdefg")
    assert cluster.nodes[3].disk.first_index() > 1


def test_p8_the_first_entry_of_a_leader_is_a_no_op() -> None:
    cluster = three()
    assert all_entries(cluster[1])[-1].kind is EntryKind.NOOP
    assert cluster[1].own_term_committed


def test_t31_learners_get_everything_and_count_for_nothing() -> None:
    cluster = Cluster("1:a 2:b 3:c 4:d/learner 5:e/learner")
    cluster.elect(1)
    cluster.propose(1, "x")
    assert cluster.data(4) == ["x"]
    cluster.isolate(2, 3)
    cluster.propose(1, "y")
    assert cluster.data(1) == ["x"], "a leader with two learners is no majority"
    cluster[4].campaign()
    cluster.tick(5 * ELECTION_TICKS, only=(4, 5))
    assert (cluster[4].role, cluster[4].term) == (Role.FOLLOWER, 2)


def test_t310_transfer() -> None:
    cluster = three()
    cluster[1].transfer_leadership(3)
    with pytest.raises(Unavailable) as refused:
        cluster[1].propose(b"x")
    assert refused.value.code == "LEADERSHIP_TRANSFER"
    cluster.settle()
    assert cluster.leader() == 3
    with pytest.raises(NotLeader) as caught:
        cluster[1].propose(b"x")
    assert caught.value.leader_id == 3


def test_t310_a_node_that_may_not_campaign_is_no_heir() -> None:
    cluster = three()
    cluster[3].campaign_allowed = False
    cluster[1].transfer_leadership(3)
    cluster.tick(ELECTION_TICKS)
    assert (cluster.leader(), cluster[1].transferring) == (1, 0)
    cluster.propose(1, "x")
    assert cluster.data(3) == ["x"]


def test_t41_a_membership_is_in_force_when_appended_and_goes_when_truncated() -> None:
    cluster = three()
    old = cluster[1].membership
    cluster.isolate(1)
    cluster[1].propose_membership(changed(old, "4:d/learner"))
    cluster.settle()
    assert cluster[1].membership.get(4) is not None
    silent(cluster, 2, 3)
    cluster[2].campaign()
    cluster.settle()
    cluster.propose(2, "x")
    cluster.heal()
    cluster.tick(3)
    assert cluster[1].membership == old


def test_t41_a_membership_survives_a_restart_before_it_is_applied() -> None:
    cluster = three()
    cluster.isolate(1)
    cluster[1].propose_membership(changed(cluster[1].membership, "4:d/learner"))
    cluster.settle()
    cluster.nodes[1].restart()
    assert cluster[1].membership.get(4) is not None


def test_t41_one_change_at_a_time_and_none_before_an_own_commit() -> None:
    cluster = three()
    cluster.isolate(1)
    now = cluster[1].membership
    cluster[1].propose_membership(changed(now, "4:d/learner"))
    with pytest.raises(InvalidRequest) as caught:
        cluster[1].propose_membership(changed(now, "5:e/learner"))
    assert caught.value.code == "MEMBERSHIP_CHANGE_IN_PROGRESS"
    silent(cluster, 2, 3)
    cluster.drop = lambda m: m.kind is MessageKind.APPEND
    cluster[2].campaign()
    cluster.settle()
    with pytest.raises(Unavailable) as early:
        cluster[2].propose_membership(changed(now, "-1"))
    assert early.value.code == "LEADER_NOT_READY"


def test_t41_a_leader_that_we_do_not_know_is_followed() -> None:
    """4 was added while 3 was away, and leads; 3 must take its entries to learn of it."""
    cluster = three()
    cluster.join(4)
    cluster.isolate(3)
    now = cluster[1].membership
    cluster[1].propose_membership(now := changed(now, "4:d/learner"))
    cluster.settle()
    cluster.tick(3, only=(1, 2, 4))
    cluster[1].propose_membership(changed(now, "4"))
    cluster.settle()
    cluster.elect(4)
    assert cluster[3].membership.get(4) is None
    cluster.heal()
    cluster.isolate(1)
    cluster.tick(3)
    assert (cluster[3].leader_id, cluster[3].membership) == (4, cluster[4].membership)


def test_t421_a_learner_that_is_behind_is_not_promoted() -> None:
    cluster = three()
    cluster[1].propose_membership(changed(cluster[1].membership, "4:d/learner"))
    cluster.settle()
    with pytest.raises(InvalidRequest) as caught:
        cluster[1].propose_membership(changed(cluster[1].membership, "4"))
    assert caught.value.code == "LEARNER_NOT_CAUGHT_UP"
    cluster.join(4)
    cluster.tick(2)
    cluster[1].propose_membership(changed(cluster[1].membership, "4"))
    cluster.settle()
    assert len(cluster[4].membership.voters) == 4


def test_t422_a_leader_removes_itself() -> None:
    cluster = three()
    cluster[1].propose_membership(changed(cluster[1].membership, "-1"))
    cluster.settle()
    assert not cluster[1].is_leader
    assert cluster.leader() in (2, 3)
    assert cluster[1].commit >= cluster[1].last_index, "the removed node knows that it was removed"
    cluster.tick(5 * ELECTION_TICKS)
    assert cluster[1].term == 2


def test_t422_a_removed_follower_is_told() -> None:
    cluster = three()
    cluster[1].propose_membership(changed(cluster[1].membership, "-3"))
    cluster.settle()
    assert cluster[3].membership.get(3) is None
    assert cluster.nodes[3].state.membership.get(3) is None
    assert [p.node_id for p in cluster[1].progress()] == [2]


def test_t422_a_removed_node_that_is_away_is_forgotten() -> None:
    cluster = three()
    cluster.isolate(3)
    cluster[1].propose_membership(changed(cluster[1].membership, "-3"))
    cluster.settle()
    assert [p.node_id for p in cluster[1].progress()] == [2, 3]
    cluster.tick(ELECTION_TICKS + 2, only=(1, 2))
    assert [p.node_id for p in cluster[1].progress()] == [2]


def test_t423_votes_are_sticky() -> None:
    cluster = three()
    for kind in (MessageKind.VOTE, MessageKind.PRE_VOTE):
        for node_id in (1, 2):
            cluster[node_id].step(Message(kind, node_id, 3, term=9, index=9, log_term=8))
            assert cluster[node_id].term == 2
            assert not cluster[node_id].after_persist, "not even an answer"
    cluster[2].step(Message(MessageKind.VOTE, 2, 3, term=9, index=9, log_term=8, context=b"transfer"))
    assert (cluster[2].term, cluster[2].vote) == (9, 3)


def test_t62_check_quorum() -> None:
    cluster = three()
    cluster.isolate(1)
    cluster.tick(ELECTION_TICKS, only=(1,))
    assert cluster[1].is_leader
    cluster.tick(1, only=(1,))
    assert not cluster[1].is_leader
    assert "majority" in cluster[1].step_down_reason


def test_t64_read_index_waits_for_a_round_that_began_after_it() -> None:
    cluster = three()
    cluster[1].request_read(1)
    messages = cluster.nodes[1].urgent()
    assert {m.round for m in messages} == {cluster[1].heartbeat_round_sent}
    cluster[1].request_read(2)
    cluster.put(messages)
    cluster.deliver()
    for node_id in (2, 3):
        cluster.put(cluster.nodes[node_id].urgent())
    cluster.deliver()
    assert [r.context for r in cluster[1].read_states] == [1]
    cluster.settle()
    assert [r.context for r in cluster.nodes[1].reads] == [1, 2]


def test_t64_reads_are_refused_elsewhere_and_dropped_with_leadership() -> None:
    cluster = three()
    with pytest.raises(NotLeader):
        cluster[2].request_read(1)
    cluster.isolate(1)
    cluster[1].request_read(1)
    cluster.settle()
    cluster.tick(ELECTION_TICKS + 1, only=(1,))
    cluster.heal()
    cluster.tick(3 * ELECTION_TICKS)
    assert cluster.nodes[1].reads == []


def test_t64_rounds_tell_how_fresh_the_leader_is() -> None:
    cluster = three()
    cluster.tick(3)
    assert cluster[1].quorum_round_acknowledged == cluster[1].heartbeat_round_sent
    cluster.isolate(1)
    before = cluster[1].quorum_round_acknowledged
    cluster.tick(3, only=(1,))
    assert cluster[1].quorum_round_acknowledged == before
    assert cluster[1].heartbeat_round_sent == before + 3


def test_t64_a_clock_gap_voids_what_was_sent_before() -> None:
    cluster = three()
    cluster[1].request_read(1)
    cluster.put(cluster.nodes[1].urgent())
    cluster.deliver()
    for node_id in (2, 3):
        cluster.put(cluster.nodes[node_id].urgent())
    cluster[1].clock_gap()
    cluster.deliver()
    assert cluster[1].read_states == []
    cluster.settle()
    assert [r.context for r in cluster.nodes[1].reads] == [1]


def test_t64_after_a_clock_gap_a_leader_hears_candidates_until_it_is_confirmed() -> None:
    cluster = three()
    cluster.isolate(1)
    cluster[1].clock_gap()
    ask = Message(MessageKind.PRE_VOTE, 1, 2, term=3, index=9, log_term=2)
    cluster[1].step(ask)
    assert [m.reject for m in cluster[1].after_persist] == [False]
    cluster.settle()
    cluster.heal()
    cluster.tick(1)
    cluster[1].step(ask)
    assert cluster[1].after_persist == []


def test_t64_a_follower_that_was_frozen_neither_vouches_nor_campaigns_at_once() -> None:
    cluster = three()
    for _ in range(cluster[2].election_wait - 1):
        cluster[2].tick()
    cluster[2].clock_gap()
    cluster[2].tick()
    assert cluster[2].role is Role.FOLLOWER
    cluster[2].step(Message(MessageKind.PRE_VOTE, 2, 3, term=3, index=9, log_term=2))
    assert [m.reject for m in cluster[2].after_persist] == [False]


def test_t96_pre_vote_keeps_the_term_of_who_is_cut_off() -> None:
    cluster = three()
    cluster.isolate(3)
    cluster.tick(10 * ELECTION_TICKS)
    assert cluster[3].term == 2
    cluster.heal()
    cluster.tick(2)
    assert (cluster.leader(), cluster[1].term, cluster[3].leader_id) == (1, 2, 1)


def test_t96_a_late_pre_vote_is_worth_nothing_in_the_next_term() -> None:
    cluster = Cluster("1:a 2:b 3:c")
    cluster.work()
    cluster[1].campaign()
    cluster[1].step(Message(MessageKind.HEARTBEAT, 1, 3, term=2))
    cluster[1].campaign()
    cluster[1].step(Message(MessageKind.PRE_VOTE_RESPONSE, 1, 2, term=2))
    assert (cluster[1].role, cluster[1].term) == (Role.PRE_CANDIDATE, 2)


def test_t1021_the_leader_writes_in_parallel_and_counts_itself_last() -> None:
    cluster = three()
    cluster.isolate(3)
    index = cluster[1].propose(b"x")
    ready = cluster.nodes[1].begin()
    assert [m.kind for m in ready.messages] == [MessageKind.APPEND] * 2
    assert ready.messages_after_persist == []
    cluster[1].step(Message(MessageKind.APPEND_RESPONSE, 1, 2, term=2, index=index))
    assert cluster[1].commit < index, "one other disk and not its own is no majority"
    cluster.nodes[1].finish()
    assert cluster[1].commit == index


def test_t1021_nothing_is_delivered_before_it_is_on_the_own_disk() -> None:
    cluster = three()
    index = cluster[1].propose(b"x")
    cluster.nodes[1].begin()
    for sender in (2, 3):
        cluster[1].step(Message(MessageKind.APPEND_RESPONSE, 1, sender, term=2, index=index))
    assert cluster[1].commit == index
    assert cluster[1].urgent().committed == []
    cluster.nodes[1].finish()
    assert [e.index for e in cluster[1].urgent().committed] == [index]


def test_t1021_votes_and_acknowledgements_wait_for_the_disk() -> None:
    cluster = three()
    cluster[1].propose(b"x")
    append = cluster.nodes[1].begin().messages[0]
    cluster[2].step(append)
    ready = cluster[2].ready()
    assert (ready.messages, ready.must_sync) == ([], True)
    assert [m.kind for m in ready.messages_after_persist] == [MessageKind.APPEND_RESPONSE]


def test_t1022_appends_are_pipelined_and_batched() -> None:
    cluster = three(max_inflight_count=2)
    seen = recorded(cluster)
    for batch in ("ab", "cd", "ef"):
        for text in batch:
            cluster[1].propose(text.encode())
        cluster.put(cluster.nodes[1].urgent())
    assert [len(m.entries) for m in cluster.wire if m.to == 2] == [2, 2], "the third waits for an acknowledgement"
    cluster.settle()
    assert [len(m.entries) for m in seen if m.to == 2 and m.kind is MessageKind.APPEND] == [2, 2, 2]


def test_the_uncommitted_tail_is_bounded() -> None:
    cluster = three(max_uncommitted_bytes=100)
    cluster.isolate(1)
    cluster[1].propose(b"x" * 500)  # one entry always fits
    with pytest.raises(Unavailable) as caught:
        cluster[1].propose(b"x")
    assert caught.value.code == "UNCOMMITTED_TAIL_FULL"
    cluster.heal()
    cluster.tick(3)
    cluster.propose(1, "x")
    assert cluster.data(2)[-1] == "x"


def test_what_is_handed_out_to_be_applied_is_bounded() -> None:
    cluster = three(max_unapplied_bytes=100)
    for _ in range(10):
        cluster[1].propose(b"x" * 40)
    ready = cluster[1].ready()
    cluster.nodes[1].disk.append(ready.entries)
    cluster[1].persisted(ready)
    for sender in (2, 3):
        cluster[1].step(Message(MessageKind.APPEND_RESPONSE, 1, sender, term=2, index=cluster[1].last_index))
    first = cluster[1].urgent().committed
    assert len(first) == 2
    assert len(cluster[1].urgent().committed) == 1, "one entry always fits while there is room"
    assert cluster[1].urgent().committed == []
    cluster[1].applied_to(first[-1].index)
    assert len(cluster[1].urgent().committed) == 1


def test_a_busy_leader_sends_one_message_a_batch_and_an_idle_one_tells_the_commit_at_once() -> None:
    cluster = three()
    seen = recorded(cluster)
    for number in range(50):
        cluster[1].propose(b"%d" % number)
        cluster.work()
        cluster.deliver()
    busy = [m for m in seen if m.to == 2]
    assert len(busy) <= 51, [m.kind.name for m in busy]
    cluster.settle()
    assert cluster[2].commit == cluster[1].commit == cluster[1].last_index, "without waiting for a heartbeat"


def test_a_single_voter_commits_when_its_own_disk_has_it() -> None:
    cluster = Cluster("1:a")
    cluster.elect(1)
    index = cluster[1].propose(b"x")
    ready = cluster[1].ready()
    assert cluster[1].commit < index
    cluster.nodes[1].disk.append(ready.entries)
    cluster[1].persisted(ready)
    assert cluster[1].commit == index


def test_a_commit_alone_needs_no_disk() -> None:
    cluster = three()
    cluster[1].propose(b"x")
    cluster.work()
    cluster.deliver()
    cluster.work()
    cluster.deliver()
    ready = cluster[1].ready()
    assert (ready.hard_state, ready.entries, ready.must_sync) == (None, [], False)
    assert len(ready.committed) == 1


def test_a_node_without_membership_waits_to_be_found() -> None:
    cluster = Cluster("1:a")
    cluster.join(2)
    cluster.tick(5 * ELECTION_TICKS, only=(2,))
    assert (cluster[2].term, cluster[2].role, cluster[2].membership) == (0, Role.FOLLOWER, Membership())


def test_only_one_ready_is_outstanding() -> None:
    cluster = three()
    cluster[1].propose(b"x")
    ready = cluster[1].ready()
    assert not cluster[1].has_ready()
    with pytest.raises(InvariantViolation):
        cluster[1].ready()
    with pytest.raises(InvariantViolation):
        cluster[1].persisted(ready._replace(must_sync=False))
