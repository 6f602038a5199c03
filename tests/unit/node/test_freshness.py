"""How old an eventual read may be."""

from __future__ import annotations

from kvnode.node.freshness import FreshnessTracker
from kvnode.node.ports import Freshness
from tests.unit.node.fakes import HandClock

MAX_OFFSET_MS = 500


def tracker() -> tuple[HandClock, FreshnessTracker]:
    clock = HandClock()
    return clock, FreshnessTracker(clock, MAX_OFFSET_MS)


def test_nothing_is_known_at_first_nor_from_a_round_that_nobody_acknowledged() -> None:
    clock, ages = tracker()
    assert ages.age_ms() == -1
    ages.round_sent(1, 10, 0)
    clock.pass_ms(100)
    assert ages.age_ms() == -1 and ages.latest is None


def test_the_leaders_age_counts_from_the_sending_of_the_acknowledged_round() -> None:
    clock, ages = tracker()
    ages.round_sent(1, 10, 7)
    clock.pass_ms(100)
    ages.round_sent(2, 10, 8)
    clock.pass_ms(50)
    ages.round_acknowledged(1, 10)
    assert ages.age_ms() == 150
    ages.round_acknowledged(2, 10)
    assert ages.age_ms() == 50
    assert ages.latest == Freshness(10, 8, clock.now_ms() - 50)
    clock.pass_ms(1_000)
    assert ages.age_ms() == 1_050, "it grows while no round is acknowledged"


def test_a_round_counts_once_what_was_committed_at_its_sending_is_applied() -> None:
    _, ages = tracker()
    ages.round_sent(1, 10, 0)
    ages.round_acknowledged(1, 9)
    assert ages.age_ms() == -1
    ages.applied(10)
    assert ages.age_ms() == 0


def test_the_same_round_sent_again_keeps_its_first_time() -> None:
    clock, ages = tracker()
    ages.round_sent(1, 10, 0)
    clock.pass_ms(300)
    ages.round_sent(1, 10, 0)
    ages.round_acknowledged(1, 10)
    assert ages.age_ms() == 300


def test_rounds_of_a_lost_leadership_say_nothing() -> None:
    _, ages = tracker()
    ages.round_sent(1, 10, 0)
    ages.forget_rounds()
    ages.round_acknowledged(1, 10)
    assert ages.age_ms() == -1


def test_rounds_of_a_leadership_do_not_hide_what_was_known_before_it() -> None:
    clock, ages = tracker()
    assert ages.before_leading is None
    heard = Freshness(9, 7, clock.now_ms())
    ages.heard(heard, 9)
    assert ages.before_leading == heard
    clock.pass_ms(3_000)
    for number in (1, 2):
        ages.round_sent(number, 10, 8)
        ages.round_acknowledged(number, 10)
        clock.pass_ms(100)
        assert ages.before_leading == heard
    last = ages.latest
    ages.forget_rounds()
    assert ages.before_leading == last != heard
    ages.alone(11, 9, 11)
    ages.alone(11, 9, 11)
    assert ages.before_leading == last != ages.latest


def test_a_peers_word_counts_with_the_clock_bound_against_it() -> None:
    clock, ages = tracker()
    ages.heard(Freshness(10, 0, clock.now_ms() - 20), 10)
    assert ages.age_ms() == 20 + MAX_OFFSET_MS
    ages.heard(Freshness(9, 0, clock.now_ms() - 400), 10)
    assert ages.age_ms() == 20 + MAX_OFFSET_MS, "older word does not make it older"


def test_a_word_from_the_future_is_not_believed() -> None:
    clock, ages = tracker()
    ages.heard(Freshness(10, 0, clock.now_ms() + MAX_OFFSET_MS + 1), 10)
    assert ages.age_ms() == -1
    ages.heard(Freshness(10, 0, clock.now_ms() + MAX_OFFSET_MS), 10)
    assert ages.age_ms() == 0


def test_a_word_that_was_long_on_its_way_is_no_newer_because_our_clock_is_behind() -> None:
    clock, ages = tracker()
    sent_ms = clock.now_ms()
    clock.pass_ms(6_000)
    clock.step_ms(-4_000)
    ages.heard(Freshness(10, 0, sent_ms), 10, stamper_now_ms=sent_ms + 6_000.4)
    assert ages.age_ms() == 6_001 + MAX_OFFSET_MS


def test_a_step_of_the_wall_clock_makes_nothing_fresh() -> None:
    clock, ages = tracker()
    ages.heard(Freshness(10, 0, clock.now_ms()), 10)
    clock.pass_ms(5_000)
    clock.step_ms(-60_000)
    assert ages.age_ms() == 5_000 + MAX_OFFSET_MS
    ages.round_sent(1, 10, 0)
    clock.step_ms(120_000)
    ages.round_acknowledged(1, 10)
    assert ages.age_ms() == 0


def test_what_waits_is_thinned_and_not_forgotten() -> None:
    """A replica that is far behind, and stays so, still learns how old it is."""
    clock, ages = tracker()
    for index in range(1, 1_001):
        clock.pass_ms(100)
        ages.heard(Freshness(index, 0, clock.now_ms()), 0)
    assert ages.age_ms() == -1
    ages.applied(500)
    assert 50_000 <= ages.age_ms() - MAX_OFFSET_MS <= 60_000, "an upper bound, and not far from the truth"
    assert ages.lag_ms() == ages.age_ms() - MAX_OFFSET_MS


def test_the_age_of_what_was_read_before_is_counted_from_then() -> None:
    clock, ages = tracker()
    ages.heard(Freshness(1, 0, clock.now_ms()), 1)
    before = ages.reached
    clock.pass_ms(1_000)
    ages.heard(Freshness(2, 0, clock.now_ms()), 2)
    assert ages.age_ms() == MAX_OFFSET_MS
    assert ages.age_ms(before) == 1_000 + MAX_OFFSET_MS
