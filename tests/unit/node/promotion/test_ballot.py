"""Whether a ballot could be won, whose turn it is, and what counts as won."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvnode.base.errors import Unavailable
from kvnode.codec.membership import encode_membership
from kvnode.node.failover.plan import Report
from kvnode.node.promotion.ballot import require_won, turn_of
from tests.unit.node.promotion.test_lease import SEVEN

KNOWN = encode_membership(SEVEN)


def report(node_id: int, last_index: int = 100, *, wait_ms: int = 0, **rest: object) -> Report:
    member = SEVEN.get(node_id)
    assert member is not None
    found = Report(
        node_id=node_id,
        name=member.name,
        region=member.region,
        dc=member.dc,
        state_epoch=1,
        log_epoch=1,
        last_term=4,
        last_index=last_index,
        membership=KNOWN,
        wanted_commit_dcs=2,
        ballot_wait_ms=wait_ms,
    )
    for name, value in rest.items():
        setattr(found, name, value)
    return found


def rank(reports: list[Report], node_id: int) -> int | None:
    turn = turn_of(reports, node_id)
    return None if turn is None else turn.rank


def test_all_come_to_the_same_order() -> None:
    reports = [report(4, 100), report(5, 102), report(6, 101), report(7, 101)]
    assert [rank(reports, node_id) for node_id in (4, 5, 6, 7)] == [0, 1, 2, 3]
    assert [rank(reports[::-1], node_id) for node_id in (4, 5, 6, 7)] == [0, 1, 2, 3]
    reports[3].last_index = 103
    assert [rank(reports, node_id) for node_id in (6, 7, 4, 5)] == [0, 1, 2, 3], "the region with the most goes first"


def test_nothing_is_begun_that_could_not_be_won() -> None:
    three = [report(4), report(5), report(6)]
    assert rank(three, 4) is None
    assert rank([*three, report(7, wait_ms=-1)], 4) is None, "it takes no part"
    assert rank([*three, report(7, wait_ms=900)], 4) is None, "it has granted the lease"
    assert rank([*three, report(1)], 4) == 0


def test_a_leader_that_answers_is_not_replaced() -> None:
    """Nor is one without a lease at once: it may be about to get it (promoter.py)."""
    willing = [report(4), report(5), report(6), report(7)]
    assert rank([*willing, report(1, wait_ms=-1, leads=True, holds_lease=True)], 6) is None
    turn = turn_of([*willing, report(1, wait_ms=-1, leads=True)], 6)
    assert turn is not None and turn.is_early and not turn_of(willing, 6).is_early  # type: ignore[union-attr]


def test_who_holds_more_and_will_vote_in_a_moment_is_waited_for() -> None:
    willing = [report(4), report(5), report(6), report(7)]

    def is_early(other: Report) -> bool:
        turn = turn_of([*willing, other], 6)
        assert turn is not None
        return turn.is_early

    assert is_early(report(1, 101, wait_ms=900))
    assert not is_early(report(1, 101, wait_ms=-1)), "it never votes"
    assert not is_early(report(1, 99, wait_ms=900))


def test_who_knows_of_a_later_epoch_keeps_the_others_from_a_ballot() -> None:
    willing = [report(4), report(5), report(6), report(7)]
    assert rank([*willing, report(1, wait_ms=-1, state_epoch=2)], 4) is None
    assert rank([*willing, report(1, promised_epoch=2)], 6) == 0


def test_a_region_that_is_not_whole_does_not_stand() -> None:
    five = [report(1), report(2), report(4), report(6), report(7)]
    assert rank(five, 4) is None, "one of two data centers"
    assert rank(five, 6) == 0
    hesitating = [report(1), report(2), report(4), report(5, wait_ms=900), report(6), report(7)]
    assert rank(hesitating, 4) is None and rank(hesitating, 6) == 0


def test_a_ballot_is_won_by_every_membership_that_a_voter_knows() -> None:
    require_won([report(4), report(5), report(6), report(7)])
    grown = replace(SEVEN, members=(*SEVEN.members, replace(SEVEN.members[0], node_id=8, name="n8", address="h:8")))
    with pytest.raises(Unavailable) as refused:
        require_won([report(4), report(5), report(6), report(7, membership=encode_membership(grown))])
    assert refused.value.code == "BALLOT_LOST"
    with pytest.raises(Unavailable):
        require_won([])
