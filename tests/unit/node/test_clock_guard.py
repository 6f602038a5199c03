"""Whose clock may set log time, and how log time moves."""

from __future__ import annotations

import pytest

from kvnode.node.clock_guard import HOLD_MS, SAMPLE_LIFETIME_MS, ClockGuard, LogTime
from tests.unit.node.fakes import HandClock


def guard(clock: HandClock | None = None) -> ClockGuard:
    return ClockGuard(clock or HandClock(), 500)


def hear(judge: ClockGuard, peer: int, offset_ms: float, round_trip_ms: float) -> None:
    """A peer's clock is so far ahead of ours."""
    clock = judge._clock
    judge.sample(peer, offset_ms + clock.now_ms() - clock.monotonic_ms(), round_trip_ms)


def test_one_voter_alone_trusts_itself() -> None:
    assert guard().trusted([])


def test_who_is_left_alone_with_a_wrong_clock_is_told_so_by_those_whom_it_has_heard() -> None:
    judge = guard()
    hear(judge, 2, -3_600_000.0, 1.0)
    assert not judge.outvoted([], [2, 3, 4]), "of two clocks that differ either may be right, and somebody has to lead"
    hear(judge, 3, -3_600_000.0, 1.0)
    assert judge.outvoted([], [2, 3, 4]) and judge.trusted([]), "a leader stays, nobody is elected"
    assert judge.offset_ms([], [2, 3, 4]) == 3_600_000.0
    assert not judge.outvoted([], []), "they are members no more"


def test_two_voters_that_agree_are_outvoted_by_three() -> None:
    judge = guard()
    hear(judge, 5, 0.0, 1.0)
    for member in (1, 2):
        hear(judge, member, 9_000.0, 1.0)
    assert not judge.outvoted([5], [1, 2, 3, 5]), "two and two"
    hear(judge, 3, 9_000.0, 1.0)
    assert judge.outvoted([5], [1, 2, 3, 5])
    hear(judge, 6, 0.0, 1.0)
    assert not judge.outvoted([5, 6], [1, 2, 3, 5, 6]), "three voters decide among themselves"


def test_of_two_voters_the_one_leads_with_whom_most_members_agree() -> None:
    right, wrong = guard(), guard()
    members = [1, 2, 3, 4, 9]  # and the one that judges: six
    hear(right, 9, 3_000.0, 1.0)
    for member in (1, 2):
        hear(right, member, 0.0, 1.0)
        assert not right.trusted([9], members), "half of them may be wrong alike"
    hear(right, 3, 0.0, 1.0)
    assert right.trusted([9], members) and not right.outvoted([9], members)
    assert not right.trusted([9, 4], members), "of three voters they themselves are the jury"
    for member in members:
        hear(wrong, member, -3_000.0, 1.0)
    assert not wrong.trusted([9], members)


@pytest.mark.parametrize(("others", "needed"), [([2], 1), ([2, 3], 1), ([2, 3, 4], 2), ([2, 3, 4, 5], 2)])
def test_a_majority_must_have_been_asked(others: list[int], needed: int) -> None:
    judge = guard()
    for heard, peer in enumerate(others):
        assert judge.trusted(others) is (heard >= needed)
        hear(judge, peer, 0.0, 1.0)
    assert judge.trusted(others)


def test_strangers_bear_no_witness() -> None:
    judge = guard()
    hear(judge, 9, 0.0, 1.0)
    assert not judge.trusted([2, 3])


def test_the_median_decides() -> None:
    judge = guard()
    hear(judge, 2, 90_000.0, 1.0)  # one wrong peer
    hear(judge, 3, 5.0, 1.0)
    assert judge.trusted([2, 3]) and judge.offset_ms([2, 3]) == -5.0
    hear(judge, 3, 90_100.0, 1.0)
    assert not judge.trusted([2, 3])
    assert judge.offset_ms([2, 3]) == -90_000.0


def test_between_two_middle_clocks_nothing_is_known_against_ours() -> None:
    judge = guard()
    for peer, offset_ms in ((2, -5_000.0), (3, 5_000.0), (4, 0.0)):
        hear(judge, peer, offset_ms, 1.0)
    assert judge.offset_ms([2, 3]) == 0.0
    hear(judge, 2, 5_000.0, 1.0)
    assert judge.offset_ms([2, 3, 4]) == 0.0  # 0, 0, 5000, 5000: ours is one of the middle two


def test_of_two_clocks_that_differ_neither_is_trusted() -> None:
    judge = guard()
    hear(judge, 2, 5_000.0, 1.0)
    assert not judge.trusted([2, 3]), "which of the two is right, only the third can say"
    hear(judge, 3, 0.0, 1.0)
    assert judge.trusted([2, 3])


def test_the_bound_itself_is_allowed() -> None:
    judge = guard()
    hear(judge, 2, 500.0, 0.0)
    hear(judge, 3, 500.0, 0.0)
    assert judge.trusted([2, 3])
    hear(judge, 3, 501.0, 0.0)
    hear(judge, 2, 501.0, 0.0)
    assert not judge.trusted([2, 3])


def test_a_step_of_our_own_clock_shows_without_a_new_sample() -> None:
    clock = HandClock()
    judge = guard(clock)
    hear(judge, 2, 0.0, 1.0)
    hear(judge, 3, 0.0, 1.0)
    clock.step_ms(2_000)
    assert judge.offset_ms([2, 3]) == 2_000.0
    assert not judge.trusted([2, 3])
    clock.step_ms(-2_000)
    clock.pass_ms(10_000)
    assert judge.trusted([2, 3])


def test_the_sample_with_the_shortest_trip_is_kept_while_they_agree() -> None:
    clock = HandClock()
    judge = guard(clock)
    hear(judge, 2, 10.0, 4.0)
    hear(judge, 2, 200.0, 600.0)  # agrees within its error and says less
    assert judge.offset_ms([2]) == 0.0  # of two clocks there is no middle
    hear(judge, 3, 10.0, 4.0)
    assert judge.offset_ms([2, 3]) == -10.0
    clock.pass_ms(5_001)
    hear(judge, 2, 200.0, 600.0)
    hear(judge, 3, 200.0, 600.0)
    assert judge.offset_ms([2, 3]) == -200.0, "an old sample gives way even to a poor one"


def test_a_peers_clock_that_moved_is_believed_at_once() -> None:
    judge = guard()
    hear(judge, 2, 0.0, 1.0)
    hear(judge, 3, 0.0, 1.0)
    hear(judge, 2, 3_000.0, 50.0)
    hear(judge, 3, 3_000.0, 50.0)
    assert not judge.trusted([2, 3])


def test_a_witness_is_forgotten_after_a_while() -> None:
    clock = HandClock()
    judge = guard(clock)
    hear(judge, 2, 0.0, 1.0)
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
    log_time.begin(start, is_witnessed=True)
    assert log_time.next_ms(start) == clock.now_ms()


def test_a_lone_voter_that_nobody_has_told_the_time_goes_on_with_the_logs_own() -> None:
    clock = HandClock()
    log_time = LogTime(clock, 500)
    stood_at = clock.now_ms()
    clock.pass_ms(20_000)  # it is down
    clock.step_ms(3_600_000)
    log_time.begin(stood_at, is_witnessed=False)
    assert log_time.is_held and log_time.next_ms(stood_at) == stood_at + 500
    clock.pass_ms(1_000)
    log_time.look(is_witnessed=False, outvoted=True)
    assert log_time.next_ms(stood_at) == stood_at + 1_500
    clock.step_ms(-3_600_000)
    log_time.look(is_witnessed=True, outvoted=False)
    assert not log_time.is_held and log_time.next_ms(stood_at) == clock.now_ms() == stood_at + 21_000


def test_who_hears_nobody_for_long_goes_by_its_own_clock_and_who_is_outvoted_does_not() -> None:
    clock = HandClock()
    log_time = LogTime(clock, 500)
    stood_at = clock.now_ms()
    clock.pass_ms(7_200_000)
    log_time.begin(stood_at, is_witnessed=False)
    clock.pass_ms(HOLD_MS - 1)
    log_time.look(is_witnessed=False, outvoted=False)
    assert log_time.is_held
    clock.pass_ms(1)
    log_time.look(is_witnessed=False, outvoted=True)
    assert log_time.is_held and log_time.next_ms(stood_at) == stood_at + HOLD_MS + 500
    log_time.look(is_witnessed=False, outvoted=False)
    assert not log_time.is_held and log_time.next_ms(stood_at) == clock.now_ms()


def test_a_clock_that_is_behind_the_log_holds_nothing_back_and_a_log_without_time_has_none_to_hold_to() -> None:
    clock = HandClock()
    log_time = LogTime(clock, 500)
    log_time.begin(clock.now_ms() + 10_000, is_witnessed=False)
    clock.pass_ms(700)
    assert log_time.next_ms(0) == clock.now_ms()
    log_time.begin(0, is_witnessed=False)
    assert not log_time.is_held, "a cluster that is just being made"


def test_who_bears_witness() -> None:
    judge = guard()
    assert judge.is_witnessed([], []), "a single node has nobody to ask"
    assert judge.is_witnessed([2], [2, 3]), "who was elected by others has asked them"
    assert not judge.is_witnessed([], [2, 3])
    hear(judge, 2, 9_000.0, 1.0)
    assert not judge.is_witnessed([], [2, 3])
    hear(judge, 3, 100.0, 1.0)
    assert judge.is_witnessed([], [2, 3])
