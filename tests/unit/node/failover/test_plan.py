"""What a forced failover would do, from what the nodes report; each reason not to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.client.status import is_retryable
from kvnode.codec.entry import EntryKind
from kvnode.codec.epoch import TERMS_PER_EPOCH, decode_epoch_start, epoch_of_term, first_term
from kvnode.codec.membership import Member, MemberRole, Membership, encode_membership
from kvnode.codec.versionstamp import split
from kvnode.node.failover.plan import Plan, Report, Wishes, is_forked, make_move, make_plan, require_fenced, unfenced
from kvnode.proto.kv.internal.v1.failover_pb2 import FailoverEpoch, FailoverGroup

US, EU, ASIA = (1, 2, 3), (4, 5), (6, 7)


def member(node_id: int) -> Member:
    region = "us" if node_id in US else "eu" if node_id in EU else "asia"
    role = MemberRole.VOTER if node_id in US else MemberRole.REPLICA
    return Member(node_id, f"n{node_id}", region, f"dc{node_id}", f"h{node_id}:1", role)


MEMBERS = Membership(tuple(member(node_id) for node_id in (*US, *EU, *ASIA)), 2)


def report(node_id: int, index: int = 900, term: int = 3, **more: Any) -> Report:
    fields = {
        "node_id": node_id,
        "name": f"n{node_id}",
        "region": member(node_id).region,
        "dc": f"dc{node_id}",
        "state_epoch": 1,
        "log_epoch": 1,
        "promised_ago_ms": -1,
        "term": term,
        "last_index": index,
        "last_term": term,
        "commit_index": index,
        "commit_term": term,
        "first_index": 1,
        "membership": encode_membership(MEMBERS),
        "now_ms": 100_000,
        "heard_sent_at_ms": 90_000,
        "reached_sent_at_ms": 90_000,
        "wanted_commit_dcs": 2,
        "epochs": [FailoverEpoch(epoch=of, fork_index=850)] if (of := epoch_of_term(term)) else [],
    }
    return Report(**(fields | more))


def plan(reports: Sequence[Report], region: str = "eu", *, force: bool = False, down: bool = False) -> Plan:
    return make_plan(reports, Wishes(region, force=force, primary_is_down=down), 7)


def code(reports: Sequence[Report], region: str = "eu", **wishes: bool) -> str:
    with pytest.raises(KvError) as caught:
        plan(reports, region, **wishes)
    assert not is_retryable(caught.value), "to say it again does not help"
    return caught.value.code


def test_who_is_missing_and_why_is_said_of_each() -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan([report(5, 10), report(6, first_index=500)])
    assert "'n4' did not answer: start it" in caught.value.message
    assert "'n5' lags behind what 'n6' still has in its log" in caught.value.message
    assert "earlier failover" not in caught.value.message


def test_a_move_without_a_leader_names_the_voters_that_do_not_answer() -> None:
    """From a region that is cut off it looks as if the primary one was gone."""
    with pytest.raises(InvalidRequest) as caught:
        make_move(REPLICAS, "eu", 7)
    assert caught.value.code == "FAILOVER_NO_PRIMARY"
    assert "of the voters 'n1', 'n2', 'n3' did not answer" in caught.value.message
    assert "--endpoints" in caught.value.message
    with pytest.raises(InvalidRequest) as caught:
        make_move([*REPLICAS, report(1), report(2)], "eu", 7)
    assert "electing" in caught.value.message and "'n3'" not in caught.value.message


REPLICAS = [report(node_id) for node_id in (*EU, *ASIA)]


def test_the_most_advanced_node_wins_wherever_it_stands() -> None:
    longer = report(1, 950, commit_index=900)
    made = plan([report(4), report(5), longer, report(3, 940, 4, commit_index=900, commit_term=3)])
    assert made.source.node_id == 3, "a later term, though a shorter log: it may have acknowledged that"
    assert (made.epoch, split(made.last_versionstamp)[:2]) == (2, (1, 940))
    assert [m.node_id for m in made.silent] == [2, 6, 7]
    assert not any("forks/" in warning for warning in made.warnings)


def test_without_a_fence_only_what_is_known_to_be_committed_goes_on() -> None:
    """Two others may have put something else in the place of what the survivor holds, and acknowledged it."""
    made = plan([*REPLICAS, report(3, 940, 4, commit_index=900, commit_term=3)])
    assert made.end == (3, 900) and made.entry.index == 901
    assert split(made.last_versionstamp)[:2] == (1, 900)
    assert any("'n3' holds entries 901 to 940" in warning for warning in made.warnings)
    newer = report(5, 920)
    assert plan([report(4), newer, report(3, 940, 4, commit_index=900, commit_term=3)]).source.node_id == 5
    begun = report(5, 901, first_term(2), log_epoch=2, commit_index=900, commit_term=3)
    assert plan([*REPLICAS, begun]).end == (3, 900), "it may have gone on elsewhere"


def test_who_has_committed_what_an_earlier_failover_left_behind_does_not_vote() -> None:
    """It would refuse the tail, after all had promised: every repeat would end the same way."""
    begun = report(
        4, 901, first_term(18), commit_index=900, commit_term=3, epochs=[FailoverEpoch(epoch=18, fork_index=900)]
    )
    behind = report(5, 905)
    primary = [report(1, 905), report(2, 905)]
    made = plan([begun, behind, *primary], force=True)
    assert (made.source.node_id, [m.node_id for m in made.voters]) == (4, [4])
    assert any(warning.startswith("n5, n1, n2: what an earlier failover") for warning in made.warnings)
    assert code([begun, behind, *primary]) == "REGION_TOO_SMALL"
    assert code([begun, behind, *primary], "us", force=True) == "REGION_TOO_SMALL", (
        "not even with force: nobody is left"
    )
    follower = report(5, 900)
    assert [m.node_id for m in plan([begun, follower, *primary]).voters] == [4, 5]


@pytest.mark.parametrize(
    ("term", "index", "forked"),
    [
        (3, 850, False),
        (3, 851, True),
        (first_term(2) + 1, 900, False),
        (first_term(2) + 1, 901, True),
        (first_term(3), 860, True),
        (first_term(18) + 9, 2_000, False),
    ],
)
def test_the_epochs_of_the_source_tell_who_is_in_its_history(term: int, index: int, *, forked: bool) -> None:
    epochs = [FailoverEpoch(epoch=2, fork_index=850), FailoverEpoch(epoch=18, fork_index=900)]
    source = report(4, 2_000, first_term(18) + 9, epochs=epochs)
    assert is_forked(report(5, index, term), source) is forked


def test_the_last_versionstamp_is_of_the_epoch_in_which_it_was_committed() -> None:
    later = [report(node_id, 950, first_term(4), state_epoch=4, log_epoch=4) for node_id in (*EU, *ASIA)]
    assert split(plan(later).last_versionstamp)[:2] == (4, 950)


def test_what_begins_has_the_region_as_voters_and_all_others_as_replicas() -> None:
    entry = plan(REPLICAS).entry
    start = decode_epoch_start(entry.data)
    assert (entry.kind, entry.index, entry.term) == (EntryKind.EPOCH, 901, first_term(18))
    assert [m.node_id for m in start.membership.voters] == [4, 5] and start.membership.min_commit_dcs == 2
    assert {m.role for m in start.membership.members if m.node_id not in EU} == {MemberRole.REPLICA}
    assert (start.ballot, start.region, start.planned) == (7, "eu", False)


def test_commits_ask_for_as_many_data_centers_as_there_are_and_for_more_again_later() -> None:
    one = plan([report(4), report(6)], force=True).start
    assert (one.membership.min_commit_dcs, one.wanted_commit_dcs) == (1, 2)
    later = report(1, wanted_commit_dcs=2, membership=encode_membership(one.membership))
    assert plan([later, report(2), report(3), report(4)], "us").start.membership.min_commit_dcs == 2


def test_an_epoch_is_above_all_that_anybody_knows() -> None:
    fence = [report(1), report(2)]
    assert plan([*REPLICAS[1:], *fence, report(4, promised_epoch=6)]).epoch == 7
    assert plan([*REPLICAS[1:], *fence, report(4, sealed_epoch=9)]).epoch == 10


def test_who_cannot_fence_takes_a_number_that_nobody_else_takes() -> None:
    numbers = [plan(REPLICAS, region).epoch for region in ("asia", "eu")]
    numbers.append(plan([report(1)], "us", force=True).epoch)
    assert numbers == [16, 18, 20], "asia's first, eu's first, us's first"
    sides = [plan([report(5)], "eu", force=True).epoch, plan([report(4)], "eu", force=True).epoch]
    assert sides == [19, 18], "a cut through one region"
    again = report(4, promised_epoch=18, promised_ago_ms=60_000)
    assert plan([again], "eu", force=True).epoch == 50, "who promised says so"
    assert plan([*REPLICAS, report(1), report(2)], "eu").epoch == 2, "fenced: nobody else can"


def test_an_unknown_region_changes_nothing() -> None:
    assert code(REPLICAS, "mars") == "REGION_UNKNOWN"


def test_a_primary_that_lives_is_not_cut_off_unawares() -> None:
    living = [*REPLICAS, report(1, leads=True)]
    assert code(living) == "FAILOVER_PRIMARY_ALIVE" and code(living, "us") == "REGION_IS_PRIMARY"
    assert plan([*living, report(2)], force=True).epoch == 2
    stale = report(1, leads=True)  # of epoch 1, while somebody is in epoch 2 already
    epochs = [FailoverEpoch(epoch=2, fork_index=900)]
    newer = report(5, 990, first_term(2) + 1, state_epoch=2, log_epoch=2, epochs=epochs)
    assert plan([*REPLICAS, stale, report(2), newer]).epoch == 3


def test_nodes_that_wait_for_what_never_began_come_back_by_a_move_to_the_primary_region_itself() -> None:
    stuck = report(4, 10, promised_epoch=5, promised_ago_ms=60_000)
    living = [report(1, leads=True, first_index=500), report(2), report(3)]
    assert code([*living, stuck]) == "FAILOVER_PRIMARY_ALIVE"
    assert code([*living, stuck], force=True) == "REGION_TOO_SMALL", "a repeat does not help: the tail is gone"
    with pytest.raises(InvalidRequest, match="--plan brings n4 back"):
        plan([*living, stuck], "us")
    made = make_move([*living, stuck], "us", 7)
    assert (made.epoch, [m.node_id for m in made.voters], made.source.node_id) == (6, [1, 2, 3], 1)
    with pytest.raises(InvalidRequest) as caught:
        make_move([*living, report(4)], "us", 7)
    assert caught.value.code == "REGION_IS_PRIMARY"


def test_a_region_with_too_few_nodes() -> None:
    assert code([report(4), report(6)]) == "REGION_TOO_SMALL"
    assert code([report(6), report(7)], force=True) == "REGION_TOO_SMALL", "nobody at all is there"
    assert code([report(4, 10), report(5, 10), report(6, first_index=500)]) == "REGION_TOO_SMALL", "the tail is gone"


def test_a_region_that_lags_beyond_the_limit() -> None:
    behind = [report(node_id, reached_sent_at_ms=20_000) for node_id in EU]
    assert code(behind) == "FAILOVER_LAG_TOO_LARGE"
    assert plan(behind, force=True).lag_ms == 70_000
    assert plan([*behind, report(6, 950)]).lag_ms == 0, "somebody else has it"


def test_what_started_anew_since_and_lacks_what_somebody_heard_of_lags_too() -> None:
    """Nothing tells when its state was the newest one: at the latest when its last entry was written."""
    started = [report(4, 700, reached_sent_at_ms=0, log_time_ms=20_000), report(5, 600, heard_commit_index=900)]
    assert code(started) == "FAILOVER_LAG_TOO_LARGE"
    assert plan(started, force=True).lag_ms == 70_000
    assert plan([started[0], report(5, 600, heard_commit_index=700)]).lag_ms == -1, "it lacks nothing of that"
    late = report(4, 700, reached_sent_at_ms=0, log_time_ms=89_000)
    assert plan([late, started[1]]).lag_ms == 1_000


def test_nobody_takes_over_with_nothing() -> None:
    """Who begins anew after an earlier failover holds nothing until it has caught up; all others would follow that."""
    empty = {"term": 0, "last_term": 0, "commit_term": 0, "reached_sent_at_ms": 0, "heard_sent_at_ms": 0}
    begin_anew = [report(node_id, 0, **empty) for node_id in EU]
    assert code(begin_anew) == "FAILOVER_NOTHING_HELD"
    assert code(begin_anew, force=True) == "FAILOVER_NOTHING_HELD"
    assert plan([*begin_anew, report(6)]).source.node_id == 6


def test_two_at_once() -> None:
    begun = [report(4, promised_epoch=2, promised_ago_ms=500, promised_region="asia"), *REPLICAS[1:]]
    assert code(begun, force=True) == "FAILOVER_IN_PROGRESS"
    old = [report(4, promised_epoch=2, promised_ago_ms=60_000), *REPLICAS[1:]]
    assert plan([*old, report(1), report(2)]).epoch == 3, "it broke off long ago"


def test_fenced_is_a_majority_of_the_old_voters() -> None:
    assert [m.node_id for m in plan(REPLICAS).unfenced] == [1, 2, 3]
    assert [m.node_id for m in plan([*REPLICAS, report(1)]).unfenced] == [2, 3]
    assert plan([*REPLICAS, report(1), report(2)]).unfenced == ()
    four = Membership((*MEMBERS.members[:3], Member(9, "n9", "us", "dc9", "h:1", MemberRole.VOTER)), 2)
    assert unfenced(four, [report(1), report(2)], [1, 2]), "half of them could remove a third and go on"


def test_voters_of_a_failover_that_broke_off_are_to_be_fenced_too() -> None:
    half = [report(6, groups=[FailoverGroup(epoch=2, voter_ids=[4, 5])]), report(7), report(1), report(2)]
    assert [m.node_id for m in plan(half, "asia").unfenced] == [4, 5], "they may have begun epoch 2"


def test_a_group_of_which_only_the_epoch_is_known_may_be_anybodys() -> None:
    """An epoch was heard of, or promised before a restart, and nobody who answers has it in its log."""
    heard = [report(1, groups=[FailoverGroup(epoch=2)]), report(2), report(3)]
    made = plan(heard, "us")
    assert [m.node_id for m in made.unfenced] == [4, 5, 6, 7] and made.epoch > 16
    assert plan([*heard, *map(report, (*EU, *ASIA))], "us").unfenced == (), "everybody promises"
    begun = report(3, 950, 2 * TERMS_PER_EPOCH + 1, log_epoch=2)
    assert plan([*heard[:2], begun], "us", force=True).unfenced == (), "somebody has it in its log, and who votes in it"


def test_who_is_not_fenced_is_named() -> None:
    made = plan(REPLICAS)
    with pytest.raises(InvalidRequest, match="'n1', 'n2', 'n3' did not answer") as caught:
        require_fenced(made, Wishes("eu"))
    assert caught.value.code == "FAILOVER_NOT_FENCED"
    require_fenced(made, Wishes("eu", primary_is_down=True))


def test_two_data_centers_are_warned_of() -> None:
    assert "none of them can be lost" in plan(REPLICAS).warnings[0]
