"""How a core leaves an epoch: promise, tail, the entry that begins the next one, and the seal."""

from __future__ import annotations

import pytest

from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import EpochStart, encode_epoch_start, epoch_entry, epoch_of_term, first_term
from kvnode.codec.membership import MemberRole, Membership
from kvnode.raft.changelog import Committed
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.raft import Raft
from kvnode.raft.types import Role
from tests.raft.harness import Cluster, all_entries, members

LAYOUT = "1:a 2:b 3:c 4:d/replica 5:e/replica"
BALLOT = 4_711


def moved(cluster: Cluster, epoch: int = 2, voters: tuple[int, ...] = (4, 5), *, planned: bool = False) -> EpochStart:
    """The start of an epoch in which these vote and all others are replicas."""
    layout = " ".join(
        f"{m.node_id}:{m.dc}/{'voter' if m.node_id in voters else 'replica'}" for m in cluster[1].membership.members
    )
    return EpochStart(epoch, BALLOT, "eu", members(layout), 1, planned)


def led(layout: str = LAYOUT, writes: int = 3) -> Cluster:
    cluster = Cluster(layout)
    cluster.elect(1)
    for number in range(writes):
        cluster[1].propose(b"write %d" % number)
    cluster.settle()
    return cluster


def feed(cluster: Cluster, node_id: int, source: int = 1) -> None:
    """What the changelog does."""
    raft, other = cluster[node_id], cluster[source]
    low = raft.last_index + 1
    entries = [entry for entry in all_entries(other, low) if entry.index <= other.log.commit]
    before = raft.log.term(raft.last_index) or 0
    assert raft.receive_committed(Committed(other.term, other.leader_id, raft.last_index, before, entries))
    cluster.settle()


def promise(cluster: Cluster, *node_ids: int, epoch: int = 2, ballot: int = BALLOT) -> None:
    for node_id in node_ids:
        cluster[node_id].promise(epoch, ballot)
    cluster.settle()
    for node_id in node_ids:
        assert cluster[node_id].durable_promise == (epoch, ballot)


def fail_over(cluster: Cluster, start: EpochStart, *voters: int) -> Entry:
    promise(cluster, *voters, epoch=start.epoch)
    entry = epoch_entry(start, cluster[voters[0]].last_index + 1)
    for node_id in voters:
        cluster[node_id].begin_epoch(entry)
    cluster.settle()
    cluster[voters[0]].campaign()
    cluster.settle()
    return entry


def test_terms_tell_epochs_apart() -> None:
    assert (epoch_of_term(7), epoch_of_term(first_term(2)), epoch_of_term(first_term(3) - 1)) == (0, 2, 2)


def test_a_promise_is_durable_and_survives_a_restart() -> None:
    cluster = led()
    promise(cluster, 4)
    cluster.nodes[4].restart()
    assert cluster[4].fenced and (cluster[4].promised_epoch, cluster[4].promised_ballot) == (2, BALLOT)


def test_an_epoch_is_promised_to_one_failover_alone() -> None:
    cluster = led()
    promise(cluster, 2)
    cluster[2].promise(2, BALLOT)  # the same one again
    for epoch, ballot in ((2, 9), (1, 9)):
        with pytest.raises(InvalidRequest) as caught:
            cluster[2].promise(epoch, ballot)
        assert caught.value.code == "EPOCH_PROMISED"
    cluster[2].promise(2, 9, has_begun=True)  # what has begun elsewhere counts more than what was only promised
    cluster[2].promise(3, 9)


def test_who_has_promised_takes_no_part_in_what_came_before() -> None:
    cluster = led()
    promise(cluster, 2, 3)
    before = [cluster[2].last_index, cluster[2].log.commit, cluster[2].term]
    index = cluster[1].propose(b"too late")
    cluster.settle()
    assert cluster[1].log.commit < index, "two of three acknowledge nothing any more"
    cluster.tick(60)
    assert not cluster[1].is_leader and cluster[2].role is cluster[3].role is Role.FOLLOWER
    assert [cluster[2].last_index, cluster[2].log.commit, cluster[2].term] == before
    vote = Message(MessageKind.VOTE, 2, 1, cluster[2].term + 9, log_term=9, index=99, context=b"transfer")
    cluster[2].step(vote)
    assert not cluster[2].has_ready(), "not even a refusal is said"


def test_what_was_answered_and_not_yet_sent_is_taken_back_by_the_promise() -> None:
    cluster = led()
    raft = cluster[2]
    term, last = raft.term, raft.last_index
    more = (Entry(term, last + 1, EntryKind.DATA, b"x"),)
    raft.step(Message(MessageKind.HEARTBEAT, 2, 1, term, commit=last, round=99))
    raft.step(Message(MessageKind.APPEND, 2, 1, term, log_term=raft.log.last_term, index=last, entries=more))
    raft.promise(2, BALLOT)
    ready = cluster.nodes[2].begin()
    assert not ready.messages and not cluster.nodes[2].finish()


def test_a_leader_that_promises_steps_down() -> None:
    cluster = led()
    cluster[1].propose(b"under way")
    cluster[1].promise(2, BALLOT)
    assert not cluster[1].is_leader and cluster[1].leader_id == 0
    cluster.settle()
    with pytest.raises(KvError):
        cluster[1].propose(b"more")


def test_the_promoted_elect_a_leader_and_go_on_with_the_index() -> None:
    cluster = led()
    feed(cluster, 4)
    feed(cluster, 5)
    fork = cluster[4].last_index
    entry = fail_over(cluster, moved(cluster), 4, 5)
    assert (entry.index, entry.term) == (fork + 1, first_term(2))
    assert cluster[4].is_leader and cluster[4].term == first_term(2) + 1 and cluster[4].own_term_committed
    index = cluster[4].propose(b"in epoch 2")
    cluster.settle()
    assert cluster[5].log.commit >= index - 1 and cluster[4].log.commit == index == fork + 3
    assert {m.role for m in cluster[5].membership.members if m.node_id <= 3} == {MemberRole.REPLICA}


def test_an_old_voter_follows_and_drops_what_was_not_committed() -> None:
    cluster = led()
    feed(cluster, 4)
    feed(cluster, 5)
    cluster.isolate(1)
    cluster[1].propose(b"nobody has it")
    cluster.settle()
    cluster.heal()
    fail_over(cluster, moved(cluster), 4, 5)
    raft = cluster[1]
    raft.promise(2, BALLOT)
    cluster.settle()
    raft.drop_tail(raft.log.commit + 1)
    feed(cluster, 1, source=4)
    assert raft.membership == cluster[4].membership and not raft.fenced
    assert all_entries(raft, 1) == all_entries(cluster[4], 1)


def test_a_membership_that_was_not_committed_goes_with_the_tail_that_an_epoch_replaces() -> None:
    cluster = led()
    feed(cluster, 4)
    feed(cluster, 5)
    cluster.isolate(1)
    cluster[1].propose(b"nobody has it")
    cluster[1].propose_membership(members(LAYOUT + " 6:f/learner"))
    cluster.settle()
    cluster.heal()
    fail_over(cluster, moved(cluster, voters=(4, 5)), 4, 5)
    cluster[1].promise(2, BALLOT)
    cluster.settle()
    fork = cluster[1].log.commit
    entries = all_entries(cluster[4], fork + 1)
    assert cluster[1].receive_committed(Committed(cluster[4].term, 4, fork, cluster[4].log.term(fork) or 0, entries))
    assert cluster[1].membership == cluster[4].membership and all_entries(cluster[1], fork + 1) == entries


def test_what_is_committed_is_not_dropped() -> None:
    cluster = led()
    promise(cluster, 1)
    with pytest.raises(InvalidRequest) as caught:
        cluster[1].drop_tail(cluster[1].log.commit)
    assert caught.value.code == "FAILOVER_FORKED"


def test_the_missing_tail_takes_the_place_of_what_was_not_committed() -> None:
    cluster = led()
    feed(cluster, 4)
    commit = cluster[4].log.commit
    base = (commit, cluster[4].log.term(commit) or 0)
    promise(cluster, 4)
    for term in (1, 7):  # the better one comes second, as after a coordinator that died
        tail = [Entry(term, commit + 1, EntryKind.DATA, b"%d" % term), Entry(term, commit + 2, EntryKind.NOOP, b"")]
        assert cluster[4].take_tail(*base, tail)
        cluster.settle()
        assert all_entries(cluster[4], commit + 1) == tail and cluster[4].log.commit == commit
    assert cluster[4].term >= 7, "the hard state knows the term of each entry"
    assert not cluster[4].take_tail(commit + 9, 3, [])
    with pytest.raises(InvalidRequest) as caught:
        cluster[4].take_tail(commit - 1, cluster[4].log.term(commit - 1) or 0, [Entry(9, commit, EntryKind.NOOP, b"")])
    assert caught.value.code == "FAILOVER_FORKED"


def test_an_epoch_begins_only_where_it_was_promised_and_the_tail_is_there() -> None:
    cluster = led()
    feed(cluster, 4)
    start = moved(cluster)
    entry = epoch_entry(start, cluster[4].last_index + 1)
    with pytest.raises(InvalidRequest) as caught:
        cluster[4].begin_epoch(entry)
    assert caught.value.code == "FAILOVER_SUPERSEDED"
    promise(cluster, 4)
    with pytest.raises(InvalidRequest) as caught:
        cluster[4].begin_epoch(entry._replace(index=entry.index + 1))
    assert caught.value.code == "FAILOVER_TAIL_MISSING"
    cluster[4].begin_epoch(entry)
    cluster[4].begin_epoch(entry)
    cluster.settle()
    assert all_entries(cluster[4], entry.index) == [entry]


def test_one_that_was_not_told_gets_the_entry_from_the_leader() -> None:
    """The coordinator died when one of three had begun the epoch; a second one has been told by the repeat."""
    cluster = Cluster("1:a 2:b/replica 3:c/replica 4:d/replica")
    cluster.elect(1)
    cluster[1].propose(b"x")
    cluster.settle()
    for node_id in (2, 3, 4):
        feed(cluster, node_id)
    start = moved(cluster, voters=(2, 3, 4))
    promise(cluster, 2, 3, 4)
    entry = epoch_entry(start, cluster[2].last_index + 1)
    cluster[2].begin_epoch(entry)
    cluster.settle()
    cluster[2].campaign()
    cluster.settle()
    assert cluster[2].is_leader and cluster[2].own_term_committed
    assert cluster[4].membership == start.membership and not cluster[4].fenced


def test_a_restarted_voter_of_the_new_epoch_knows_it() -> None:
    cluster = led()
    feed(cluster, 4)
    feed(cluster, 5)
    fail_over(cluster, moved(cluster), 4, 5)
    for node_id in (4, 5):
        cluster.nodes[node_id].restart()
    cluster[5].campaign()
    cluster.settle()
    assert cluster[5].is_leader and cluster[5].own_term_committed


def seal(cluster: Cluster, leader: int = 1) -> int:
    return cluster[leader].propose_seal(encode_epoch_start(moved(cluster, planned=True)))


def test_behind_a_seal_nothing_is_taken_in_and_nothing_committed() -> None:
    cluster = led()
    index = seal(cluster)
    with pytest.raises(Unavailable) as caught:
        cluster[1].propose(b"late")
    assert caught.value.code == "PRIMARY_MOVING"
    with pytest.raises(Unavailable):
        cluster[1].propose_membership(cluster[1].membership)
    cluster.settle()
    assert cluster[1].sealed and cluster[1].log.commit == index == cluster[1].last_index


def test_a_successor_commits_the_seal_and_nothing_more() -> None:
    cluster = led()
    cluster.drop = lambda message: message.kind is MessageKind.APPEND_RESPONSE
    index = seal(cluster)
    cluster.settle()
    assert cluster[1].log.commit < index
    cluster.drop = None
    cluster.frozen.add(1)
    cluster.tick(40, only=(2, 3))
    leader = cluster[cluster.leader() or 0]
    assert leader.node_id in (2, 3) and leader.last_index > index, "its no-op stands behind the seal"
    assert leader.log.commit == index and not leader.own_term_committed, "it is committed, and nobody may read by it"


def test_a_seal_that_is_lost_with_its_leader_seals_nothing() -> None:
    cluster = led()
    cluster.isolate(1)
    seal(cluster)
    cluster.settle()
    cluster.tick(40, only=(2, 3))
    cluster.heal()
    cluster.tick(5)
    assert not cluster[1].sealed
    index = cluster[cluster.leader() or 0].propose(b"goes on")
    cluster.settle()
    assert cluster[cluster.leader() or 0].log.commit == index


def test_the_entry_behind_the_seal_is_the_next_epoch_whatever_stood_there() -> None:
    cluster = led()
    feed(cluster, 4)
    feed(cluster, 5)
    index = seal(cluster)
    cluster.settle()
    junk = Entry(7, index + 1, EntryKind.NOOP, b"")
    for node_id in (4, 5):
        raft = cluster[node_id]
        before = raft.log.term(raft.last_index) or 0
        sealing = cluster[1].log.entries(index, index + 1, 1)
        assert raft.receive_committed(Committed(7, 0, index - 1, before, [*sealing, junk]))
        cluster.settle()
        assert raft.log.commit == index and raft.sealed
    start = moved(cluster, planned=True)
    promise(cluster, 4, 5)
    entry = epoch_entry(start, index + 1)
    for node_id in (4, 5):
        cluster[node_id].begin_epoch(entry)
    cluster.settle()
    cluster[4].campaign()
    cluster.settle()
    assert cluster[4].is_leader and not cluster[4].sealed and cluster[4].log.commit > index
    assert all_entries(cluster[5], index + 1)[0] == entry


def test_a_membership_of_an_earlier_epoch_gives_no_right_to_campaign() -> None:
    cluster = led()
    feed(cluster, 4)
    feed(cluster, 5)
    fail_over(cluster, moved(cluster), 4, 5)
    raft: Raft = cluster[1]
    raft.promise(2, BALLOT)
    cluster.settle()
    feed(cluster, 1, source=4)
    raft.campaign()
    cluster.tick(60, only=(1,))
    assert raft.role is Role.FOLLOWER
    assert isinstance(raft.membership, Membership)
