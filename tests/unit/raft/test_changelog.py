"""A replica's part in the core: committed entries from anybody, and never a word in the group."""

from __future__ import annotations

import random

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.codec.membership import Member, MemberRole, Membership, encode_membership
from kvnode.raft.changelog import Committed
from kvnode.raft.raft import Raft
from kvnode.raft.types import RaftConfig, Role, SnapshotMeta
from tests.raft.harness import Cluster, MemoryLog

ME = 9


def member(node_id: int, role: MemberRole = MemberRole.VOTER) -> Member:
    return Member(node_id, f"n{node_id}", "r", f"dc{node_id}", f"h{node_id}:1", role)


MEMBERS = Membership((member(1), member(2), member(3), member(ME, MemberRole.REPLICA)))


class Replica:
    """A core whose Ready cycles run at once."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.applied: list[Entry] = []
        self.raft = Raft(RaftConfig(ME), self.log, HardState(), MEMBERS, 0, random.Random(1))

    def take(self, *entries: Entry, after: tuple[int, int] | None = None, term: int = 5, leader: int = 1) -> bool:
        index, of_term = after or (0, 0)
        taken = self.raft.receive_committed(Committed(term, leader, index, of_term, entries))
        self.settle()
        return taken

    def settle(self) -> None:
        while self.raft.has_ready():
            ready = self.raft.ready()
            assert not ready.messages and not ready.messages_after_persist, "a replica has nothing to say"
            self.log.append(ready.entries)
            if ready.hard_state is not None:
                self.log.hard_state = ready.hard_state
            self.raft.persisted(ready)
            self.applied += ready.committed
            if ready.committed:
                self.raft.applied_to(ready.committed[-1].index)


def data(index: int, term: int = 1) -> Entry:
    return Entry(term, index, EntryKind.DATA, b"%d" % index)


def test_committed_entries_are_persisted_then_applied() -> None:
    replica = Replica()
    assert replica.take(data(1), data(2), data(3, term=4))
    assert replica.take(data(4, term=5), after=(3, 4))
    assert [entry.index for entry in replica.applied] == [1, 2, 3, 4]
    assert replica.log.last_index() == replica.raft.commit == 4
    assert (replica.raft.term, replica.raft.leader_id, replica.raft.role) == (5, 1, Role.FOLLOWER)
    assert replica.log.hard_state.term == 5


def test_nothing_is_applied_before_it_is_persisted() -> None:
    replica = Replica()
    replica.raft.receive_committed(Committed(5, 1, 0, 0, (data(1),)))
    ready = replica.raft.ready()
    assert [entry.index for entry in ready.entries] == [1]
    assert ready.must_sync and not ready.committed


def test_overlap_and_repetition_change_nothing() -> None:
    replica = Replica()
    pieces = (data(1), data(2), data(3))
    assert replica.take(*pieces)
    assert replica.take(*pieces)
    assert replica.take(data(2), data(3), data(4), after=(1, 1))
    assert [entry.index for entry in replica.applied] == [1, 2, 3, 4]


def test_a_gap_is_told() -> None:
    replica = Replica()
    assert replica.take(data(1))
    assert not replica.take(data(3), after=(2, 1))
    assert replica.raft.last_index == 1


@pytest.mark.parametrize("after", [(2, 2), (1, 1)])
def test_a_fork_is_refused(after: tuple[int, int]) -> None:
    replica = Replica()
    assert replica.take(data(1), data(2))
    with pytest.raises(InvalidRequest, match="history that a failover has ended") as caught:
        replica.take(data(2, term=2), data(3, term=2), after=after)
    assert caught.value.code == "CHANGELOG_FORKED"
    assert [entry.index for entry in replica.applied] == [1, 2]


def test_the_term_is_adopted_before_its_leader_is_known() -> None:
    replica = Replica()
    assert replica.take(data(1, term=6), term=6, leader=0)
    assert (replica.raft.term, replica.raft.leader_id) == (6, 0)
    assert replica.log.hard_state.term == 6  # or the log would hold an entry of a term beyond its own


def test_a_source_that_is_behind_does_not_bring_an_old_leader_back() -> None:
    replica = Replica()
    assert replica.take(data(1), term=7, leader=3)
    assert replica.take(data(2), after=(1, 1), term=6, leader=2)
    assert (replica.raft.term, replica.raft.leader_id) == (7, 3)
    assert replica.raft.commit == 2  # what is committed stays so, whoever says it


def test_a_silent_changelog_leaves_no_leader_to_forward_to_and_no_campaign() -> None:
    replica = Replica()
    assert replica.take(data(1))
    for _ in range(100):
        replica.raft.tick()
        replica.settle()
    assert replica.raft.leader_id == 0 and replica.raft.role is Role.FOLLOWER and replica.raft.term == 5


def test_memberships_along_the_changelog_are_followed() -> None:
    replica = Replica()
    without = Membership(MEMBERS.members[1:])
    assert replica.take(Entry(1, 1, EntryKind.MEMBERSHIP, encode_membership(without)))
    assert replica.raft.membership == without


def test_while_a_snapshot_is_installed_pieces_wait() -> None:
    replica = Replica()
    replica.raft.log.restore(SnapshotMeta(10, 3, MEMBERS))
    assert replica.raft.receive_committed(Committed(5, 1, 0, 0, (data(1),)))
    assert replica.raft.receive_committed(Committed(5, 1, 0, 0, ())), "a notice"
    assert replica.raft.receive_committed(Committed(5, 1, 9, 3, (data(10, term=3),))), "the snapshot holds it"
    beyond = Committed(5, 1, 10, 3, (data(11),))
    assert not replica.raft.receive_committed(beyond), "it was not taken in, so it has to come again"
    assert replica.raft.last_index == 10


def test_a_voter_takes_no_changelog() -> None:
    cluster = Cluster("1:a 2:b 3:c")
    with pytest.raises(InvariantViolation):
        cluster.nodes[1].raft.receive_committed(Committed(5, 2, 0, 0, ()))


def test_a_leader_sends_a_replica_nothing() -> None:
    cluster = Cluster("1:a 2:b 3:c")
    cluster.elect(1)
    raft = cluster.nodes[1].raft
    joined = Membership((*raft.membership.members, member(ME, MemberRole.REPLICA)), raft.membership.min_commit_dcs)
    raft.propose_membership(joined)
    cluster.settle()
    assert ME in {m.node_id for m in raft.membership.members}
    assert ME not in {peer.node_id for peer in raft.progress()}
