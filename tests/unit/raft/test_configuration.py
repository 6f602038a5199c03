"""Which change of membership is refused, by its code, and the membership over the log's course."""

from __future__ import annotations

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import EpochStart, epoch_entry
from kvnode.codec.membership import Membership, encode_membership
from kvnode.raft.configuration import MembershipHistory, bootstrap_log, check_change
from tests.raft.harness import members

THREE = members("1:a 2:b 3:c", 2)


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (members("1:a 2:b 3:c 3:d/learner", 2), "NODE_ID_INVALID"),
        (members("0:a 1:a 2:b", 2), "NODE_ID_INVALID"),
        (members("1:a/learner", 2), "NO_VOTER_LEFT"),
        (Membership((), 2), "NO_VOTER_LEFT"),
        (members("1:a 2:a 3:a", 2), "TOO_FEW_DATA_CENTERS"),
        (members("1:a 2:b 3:c", 4), "TOO_FEW_DATA_CENTERS"),
        (members("1:a 2:b 3:c", 0), "TOO_FEW_DATA_CENTERS"),
        (members("1:a 2:b 4:c", 2), "ONE_VOTER_AT_A_TIME"),
        (members("1:a 2:b 3:c 4:d", 2), "VOTER_NOT_LEARNER_FIRST"),
    ],
)
def test_refused(new: Membership, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_change(THREE, new)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "new",
    [
        members("1:a 2:b", 2),
        members("1:a 2:b 3:c/learner", 2),
        members("1:a 2:b 3:c 4:d/learner 5:e/learner", 2),
        members("1:x 2:b 3:c", 3),
    ],
)
def test_taken(new: Membership) -> None:
    assert check_change(THREE, new) == 0


def test_promotion_names_the_learner() -> None:
    assert check_change(members("1:a 2:b 3:c 4:d/learner", 2), members("1:a 2:b 3:c 4:d", 2)) == 4


def entry(index: int, membership: Membership) -> Entry:
    return Entry(1, index, EntryKind.MEMBERSHIP, encode_membership(membership))


def test_history_follows_the_log() -> None:
    four, five = members("1:a 2:b 3:c 4:d/learner", 2), members("1:a 2:b 3:c 4:d", 2)
    history = MembershipHistory(THREE, 3)
    history.append(entry(5, four))
    history.append(entry(8, five))
    assert history.latest == five
    assert history.quorum.voter_ids == (1, 2, 3, 4)
    assert (history.at(4), history.at(7), history.at(8)) == (THREE, four, five)
    assert not history.truncate(9)
    assert history.truncate(6)
    assert (history.latest, history.quorum.voter_ids) == (four, (1, 2, 3))
    history.prune(5)
    assert not history.truncate(6)
    assert history.at(5) == four


def test_who_votes_no_more_still_counts_as_a_voter_in_its_own_epoch_alone() -> None:
    """He may hold the only log that can win; behind the beginning of another epoch no log of the old one can."""
    history = MembershipHistory(THREE, 3)
    assert not history.was_voter(1)
    history.append(entry(5, members("2:b 3:c", 2)))
    assert history.was_voter(1)
    begun = MembershipHistory(THREE, 3)
    begun.append(epoch_entry(EpochStart(2, 1, "r", members("2:b 3:c", 2), 3, False), 4))
    assert not begun.was_voter(1)


def test_bootstrap() -> None:
    entries, hard_state = bootstrap_log(THREE)
    assert [(e.term, e.index, e.kind) for e in entries] == [(1, 1, EntryKind.MEMBERSHIP)]
    assert (hard_state.term, hard_state.vote, hard_state.commit) == (1, 0, 1)
