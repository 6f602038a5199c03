"""Whose clock may set log time, and how log time moves."""

from __future__ import annotations

import pytest

from kvnode.node.clock_guard import SAMPLE_LIFETIME_MS, ClockGuard, LogTime
from tests.unit.node.fakes import HandClock


def guard(clock: HandClock | None = None) -> ClockGuard:
    return ClockGuard(clock or HandClock(), 500)


def test_one_voter_alone_trusts_itself() -> None:
    assert guard().trusted([])


def test_who_is_left_alone_with_a_wrong_clock_is_told_so_by_those_whom_it_has_heard() -> None:
    judge = guard()
    judge.sample(2, -3_600_000.0, 1.0)
    assert not judge.outvoted([], [2, 3, 4]), "of two clocks that differ either may be right, and somebody has to lead"
    judge.sample(3, -3_600_000.0, 1.0)
    assert judge.outvoted([], [2, 3, 4]) and judge.trusted([]), "a leader stays, nobody is elected"
    assert judge.offset_ms([], [2, 3, 4]) == 3_600_000.0
    assert not judge.outvoted([], []), "they are members no more"


def test_two_voters_that_agree_are_outvoted_by_three() -> None:
    judge = guard()
    judge.sample(5, 0.0, 1.0)
    for member in (1, 2):
        judge.sample(member, 9_000.0, 1.0)
    assert not judge.outvoted([5], [1, 2, 3, 5]), "two and two"
    judge.sample(3, 9_000.0, 1.0)
    assert judge.outvoted([5], [1, 2, 3, 5])
    judge.sample(6, 0.0, 1.0)
    assert not judge.outvoted([5, 6], [1, 2, 3, 5, 6]), "three voters decide among themselves"


@pytest.mark.parametrize(("others", "needed"), [([2], 1), ([2, 3], 1), ([2, 3, 4], 2), ([2, 3, 4, 5], 2)])
def test_a_majority_must_have_been_asked(others: list[int], needed: int) -> None:
    judge = guard()
    for heard, peer in enumerate(others):
        assert judge.trusted(others) is (heard >= needed)
        judge.sample(peer, 0.0, 1.0)
    assert judge.trusted(others)


def test_strangers_bear_no_witness() -> None:
    judge = guard()
    judge.sample(9, 0.0, 1.0)
    assert not judge.trusted([2, 3])


def test_the_median_decides() -> None:
    judge = guard()
    judge.sample(2, 90_000.0, 1.0)  # one wrong peer
    judge.sample(3, 5.0, 1.0)
    assert judge.trusted([2, 3]) and judge.offset_ms([2, 3]) == -5.0
    judge.sample(3, 90_100.0, 1.0)
    assert not judge.trusted([2, 3])
    assert judge.offset_ms([2, 3]) == -90_000.0


def test_between_two_middle_clocks_nothing_is_known_against_ours() -> None:
    judge = guard()
    for peer, offset_ms in ((2, -5_000.0), (3, 5_000.0), (4, 0.0)):
        judge.sample(peer, offset_ms, 1.0)
    assert judge.offset_ms([2, 3]) == 0.0
    judge.sample(2, 5_000.0, 1.0)
    assert judge.offset_ms([2, 3, 4]) == 0.0  # 0, 0, 5000, 5000: ours is one of the middle two


def test_of_two_clocks_that_differ_neither_is_trusted() -> None:
    judge = guard()
    judge.sample(2, 5_000.0, 1.0)
    assert not judge.trusted([2, 3]), "which of the two is right, only the third can say"
    judge.sample(3, 0.0, 1.0)
    assert judge.trusted([2, 3])


def test_the_bound_itself_is_allowed() -> None:
    judge = guard()
    judge.sample(2, 500.0, 0.0)
    judge.sample(3, 500.0, 0.0)
    assert judge.trusted([2, 3])
    judge.sample(3, 501.0, 0.0)
    judge.sample(2, 501.0, 0.0)
    assert not judge.trusted([2, 3])


def test_a_step_of_our_own_clock_shows_without_a_new_sample() -> None:
    clock = HandClock()
    judge = guard(clock)
    judge.sample(2, 0.0, 1.0)
    judge.sample(3, 0.0, 1.0)
    clock.step_ms(2_000)
    assert judge.offset_ms([2, 3]) == 2_000.0
    assert not judge.trusted([2, 3])
    clock.step_ms(-2_000)
    clock.pass_ms(10_000)
    assert judge.trusted([2, 3])


def test_the_sample_with_the_shortest_trip_is_kept_while_they_agree() -> None:
    clock = HandClock()
    judge = guard(clock)
    judge.sample(2, 10.0, 4.0)
    judge.sample(2, 200.0, 600.0)  # agrees within its error and says less
    assert judge.offset_ms([2]) == 0.0  # of two clocks there is no middle
    judge.sample(3, 10.0, 4.0)
    assert judge.offset_ms([2, 3]) == -10.0
    clock.pass_ms(5_001)
    judge.sample(2, 200.0, 600.0)
    judge.sample(3, 200.0, 600.0)
    assert judge.offset_ms([2, 3]) == -200.0, "an old sample gives way even to a poor one"


def test_a_peers_clock_that_moved_is_believed_at_once() -> None:
    judge = guard()
    judge.sample(2, 0.0, 1.0)
    judge.sample(3, 0.0, 1.0)
    judge.sample(2, 3_000.0, 50.0)
    judge.sample(3, 3_000.0, 50.0)
    assert not judge.trusted([2, 3])


def test_a_witness_is_forgotten_after_a_while() -> None:
    clock = HandClock()
    judge = guard(clock)
    judge.sample(2, 0.0, 1.0)
    clock.pass_ms(SAMPLE_LIFETIME_MS)
    assert judge.trusted([2, 3])
    clock.pass_ms(1)
    assert not judge.trusted([2, 3])


def test_log_time_is_the_wall_clock_while_that_runs_straight() -> None:
    clock = HandClock()
    log_time = LogTime(clock, 500)
    clock.pass_ms(1_234)
    assert log_time.next_ms(0) == clock.now_ms()


def test_log_time_never_goes_back() -> None:
    clock = HandClock()
    log_time = LogTime(clock, 500)
    before = log_time.next_ms(0)
    clock.step_ms(-10_000)
    assert log_time.next_ms(before) == before
    assert log_time.next_ms(before + 99_999) == before + 99_999, "what a former leader wrote counts"


def test_log_time_does_not_run_ahead_on_a_step_forward() -> None:
    clock = HandClock()
    log_time = LogTime(clock, 500)
    start = clock.now_ms()
    clock.step_ms(3_600_000)
    assert log_time.next_ms(start) == start + 500
    clock.pass_ms(1_000)
    assert log_time.next_ms(start) == start + 1_500
    log_time.re_anchor()
    assert log_time.next_ms(start) == clock.now_ms()
