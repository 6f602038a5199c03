"""The arithmetic of the lease: who counts, from when, until when."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from kvnode.codec.epoch import first_term
from kvnode.codec.membership import Member, MemberRole, Membership, decode_membership, encode_membership
from kvnode.node.ports import LeaseAsk, LeaseGrant
from kvnode.node.promotion.granter import NO_PART, Granter
from kvnode.node.promotion.lease import PrimaryLease, usable_ms
from kvnode.node.promotion.quorum import can_promote, digest_of, is_quorum, quorum_value
from kvnode.node.promotion.setting import next_setting

LEASE_MS = 10_000
REGIONS = ("us", "us", "us", "eu", "eu", "asia", "asia")


def membership(*regions: str, lease_ms: int = LEASE_MS, ends: bool = False) -> Membership:
    members = tuple(
        Member(number, f"n{number}", region, f"dc{number}", f"h:{number}", _role(region == (regions or REGIONS)[0]))
        for number, region in enumerate(regions or REGIONS, 1)
    )
    return Membership(members, 2, lease_ms, ends)


def _role(votes: bool) -> MemberRole:
    return MemberRole.VOTER if votes else MemberRole.REPLICA


SEVEN = membership()


def grant(node_id: int, asked_at_ms: int, *, term: int = 5, lease_ms: int = LEASE_MS) -> LeaseGrant:
    return LeaseGrant(node_id, LeaseAsk(term, asked_at_ms), lease_ms, LEASE_MS, digest_of(SEVEN))


# The quorum.


def test_a_quorum_is_a_majority_in_two_regions() -> None:
    assert is_quorum(SEVEN, [1, 2, 3, 4]) and is_quorum(SEVEN, [4, 5, 6, 7])
    assert not is_quorum(SEVEN, [1, 2, 3]) and not is_quorum(SEVEN, [4, 5, 6])
    assert not is_quorum(membership("us", "us", "us", "eu"), [1, 2, 3]), "all of one region"
    assert not is_quorum(SEVEN, [1, 2, 3, 99]), "a stranger"


def test_any_two_quorums_have_a_node_in_common_also_across_a_change_of_one() -> None:
    """Brute force: the memberships of before and after, and every quorum of each."""
    before = membership("us", "us", "us", "eu", "asia")
    for after in (membership("us", "us", "us", "eu", "asia", "asia"), membership("us", "us", "us", "eu"), before):
        for one, other in itertools.product(_quorums(before), _quorums(after)):
            assert one & other


def _quorums(of: Membership) -> list[set[int]]:
    ids = [member.node_id for member in of.members]
    found = (set(chosen) for count in range(len(ids) + 1) for chosen in itertools.combinations(ids, count))
    return [chosen for chosen in found if is_quorum(of, chosen)]


def test_a_region_can_be_promoted_where_the_others_are_a_quorum() -> None:
    assert can_promote(SEVEN)
    assert not can_promote(membership("us", "us", "us", "eu", "eu")), "three of five, all in one region"
    assert not can_promote(membership("us", "us", "us", "eu", "eu", "asia"))


def test_the_quorums_value_is_that_of_the_slowest_that_it_needs() -> None:
    assert quorum_value(SEVEN, {1: 50, 2: 40, 3: 30, 4: 20, 5: 10}) == 20
    assert quorum_value(SEVEN, {1: 50, 2: 50, 3: 50}) == 0


# The leader's side.


def test_the_lease_counts_from_the_sending_less_the_margin() -> None:
    lease = PrimaryLease()
    lease.take([grant(node_id, 1_000 * node_id) for node_id in range(1, 8)])
    assert lease.until_ms(SEVEN, 5) == 4_000 + LEASE_MS - 500
    assert usable_ms(LEASE_MS) == 9_500


@pytest.mark.parametrize(
    "worthless", [{"term": 4}, {"term": 6}, {"lease_ms": 0}, {"lease_ms": LEASE_MS + 1}, {"lease_ms": LEASE_MS - 1}]
)
def test_a_grant_to_another_term_or_for_another_time_is_worth_nothing(worthless: dict[str, int]) -> None:
    lease = PrimaryLease()
    lease.take([grant(1, 1_000), grant(2, 1_000), grant(3, 1_000), grant(4, 1_000, **worthless)])
    assert lease.until_ms(SEVEN, 5) == 0
    lease.take([grant(5, 1_000)])
    assert lease.until_ms(SEVEN, 5) > 0


def test_an_older_grant_takes_nothing_back() -> None:
    lease = PrimaryLease()
    lease.take([grant(node_id, 2_000) for node_id in range(1, 5)])
    lease.take([grant(node_id, 1_000) for node_id in range(1, 5)])
    assert lease.until_ms(SEVEN, 5) == 2_000 + usable_ms(LEASE_MS)


def test_a_change_of_members_counts_at_once() -> None:
    lease = PrimaryLease()
    lease.take([grant(node_id, 2_000) for node_id in range(1, 5)])
    assert lease.until_ms(SEVEN, 5) > 0
    assert lease.until_ms(membership(*REGIONS, "asia"), 5) == 0, "five of eight are needed"


# A member's side.


def test_a_node_that_starts_votes_after_a_leases_length() -> None:
    granter = Granter(4, LEASE_MS, 1_000.0)
    assert granter.wait_ms(SEVEN, 1_000.0) == LEASE_MS
    assert granter.wait_ms(SEVEN, 10_999.5) == 1
    assert granter.wait_ms(SEVEN, 11_000.0) == 0


def test_an_ask_counts_from_its_receipt_and_once() -> None:
    granter = Granter(4, LEASE_MS, 0.0)
    granter.look(SEVEN, 0.0)
    assert granter.take(LeaseAsk(5, 77), 5, 0, 20_000.0)
    assert granter.wait_ms(SEVEN, 25_000.0) == 5_000
    assert not granter.take(LeaseAsk(5, 77), 5, 0, 26_000.0), "the same again"
    assert not granter.take(LeaseAsk(5, 76), 5, 0, 26_000.0), "an older one"
    assert granter.wait_ms(SEVEN, 30_000.0) == 0
    assert granter.take(LeaseAsk(5, 78), 5, 0, 31_000.0) and granter.wait_ms(SEVEN, 31_000.0) == LEASE_MS
    found = granter.grant(SEVEN)
    assert found is not None and (found.ask, found.lease_ms) == (LeaseAsk(5, 78), LEASE_MS)


def test_who_has_promised_an_epoch_grants_nothing_in_an_earlier_one() -> None:
    granter = Granter(4, LEASE_MS, 0.0)
    assert not granter.take(LeaseAsk(5, 77), 5, 2, 1.0)
    assert not granter.take(LeaseAsk(5, 77), 6, 0, 1.0), "a leader of a term that has passed"
    assert granter.grant(SEVEN) is None
    assert granter.take(LeaseAsk(first_term(2) + 1, 3), first_term(2), 2, 1.0)


def test_who_learns_of_a_lease_waits_as_if_it_had_granted_one_just_then() -> None:
    """The leader needs it from the append on, and may count what a node said before it knew."""
    granter = Granter(4, LEASE_MS, 0.0)
    off = replace(SEVEN, primary_lease_ms=0)
    assert granter.wait_ms(off, 50_000.0) == NO_PART
    assert granter.wait_ms(SEVEN, 60_000.0) == LEASE_MS
    longer = replace(SEVEN, primary_lease_ms=2 * LEASE_MS)
    assert granter.wait_ms(longer, 75_000.0) == 2 * LEASE_MS


def test_who_is_not_configured_so_or_hears_of_the_end_takes_no_part_in_ballots() -> None:
    assert Granter(4, 0, 0.0).wait_ms(SEVEN, 90_000.0) == NO_PART
    assert Granter(4, LEASE_MS, 0.0).wait_ms(replace(SEVEN, lease_ends=True), 90_000.0) == NO_PART


# The setting.


def everybody(wished_ms: int = LEASE_MS) -> dict[int, int]:
    return {member.node_id: wished_ms for member in SEVEN.members}


def test_it_begins_when_all_wish_the_same_and_a_promotion_is_possible() -> None:
    off = replace(SEVEN, primary_lease_ms=0)
    assert next_setting(off, LEASE_MS, everybody(), 7) == SEVEN
    assert next_setting(off, LEASE_MS, {**everybody(), 7: 0}, 7) is None
    assert next_setting(off, LEASE_MS, {**everybody(), 7: LEASE_MS + 1}, 7) is None
    assert next_setting(off, 0, everybody(), 7) is None
    small = membership("us", "us", "us", "eu", "eu", lease_ms=0)
    assert next_setting(small, LEASE_MS, everybody(), 5) is None


def test_it_ends_in_two_steps() -> None:
    ending = replace(SEVEN, lease_ends=True)
    assert next_setting(SEVEN, LEASE_MS, {}, 0) is None, "a member that is not heard changes nothing"
    assert next_setting(SEVEN, 0, everybody(), 7) == ending
    assert next_setting(SEVEN, LEASE_MS + 1, everybody(), 7) == ending
    assert next_setting(ending, 0, everybody(), 3) is None, "four that know nothing of the end could hold a ballot"
    assert next_setting(ending, 0, everybody(), 4) == replace(SEVEN, primary_lease_ms=0)


def test_a_membership_keeps_its_lease_and_one_without_is_written_as_before() -> None:
    for each in (SEVEN, replace(SEVEN, lease_ends=True), replace(SEVEN, primary_lease_ms=0)):
        assert decode_membership(encode_membership(each)) == each
    assert b"lease" not in encode_membership(replace(SEVEN, primary_lease_ms=0))
