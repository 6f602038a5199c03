"""The numbers of epochs: no two coordinators that cannot see each other take one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.base.errors import InvalidRequest
from kvnode.codec.epoch import MAX_EPOCH
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.failover.numbers import BLOCK, fenced_epoch, unfenced_epoch

LATEST = st.integers(1, MAX_EPOCH - 2 * BLOCK)
MEMBERS = tuple(Member(90 - i, f"n{i}", f"r{i % 3}", f"d{i % 5}", f"h:{i}", MemberRole.REPLICA) for i in range(7))


@given(LATEST, LATEST, st.data())
def test_two_without_a_fence_never_meet_whatever_each_knows(one: int, other: int, data: st.DataObject) -> None:
    sides = data.draw(st.lists(st.sampled_from(MEMBERS), min_size=2, max_size=7, unique=True))
    cut = data.draw(st.integers(1, len(sides) - 1))
    left, right = unfenced_epoch(one, MEMBERS, sides[:cut]), unfenced_epoch(other, MEMBERS, sides[cut:])
    assert left != right and one < left <= one + BLOCK and other < right <= other + BLOCK


@given(LATEST, LATEST, st.sampled_from(MEMBERS))
def test_behind_a_fence_is_never_a_number_of_those_without(one: int, other: int, voter: Member) -> None:
    fenced = fenced_epoch(one)
    assert fenced != unfenced_epoch(other, MEMBERS, [voter]) and one < fenced <= one + BLOCK


def test_behind_a_fence_they_go_up_by_one() -> None:
    numbers = [1]
    for _ in range(16):
        numbers.append(fenced_epoch(numbers[-1]))
    assert numbers == [*range(1, 16), 32, 33]


def test_the_first_of_the_voters_counts_in_whatever_order_they_come() -> None:
    numbers = {unfenced_epoch(1, MEMBERS, voters) for voters in (MEMBERS[:3], MEMBERS[2::-1])}
    assert numbers == {unfenced_epoch(1, reversed(MEMBERS), [MEMBERS[0]])} == {16}


def test_there_is_an_end() -> None:
    for take in (fenced_epoch, lambda latest: unfenced_epoch(latest, MEMBERS, MEMBERS)):
        with pytest.raises(InvalidRequest) as caught:
            take(MAX_EPOCH)
        assert caught.value.code == "EPOCHS_EXHAUSTED"
