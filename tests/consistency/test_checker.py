"""The checker accepts what a correct database does and sees each planted error."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.checker import check
from cluster.history import (
    Check,
    CheckFailed,
    Committed,
    Mutation,
    MutationKind,
    Operation,
    Range,
    Read,
    Rejected,
    Seen,
    SeenEntry,
    SeenRange,
    Unknown,
    Write,
)
from cluster.replay import UnsupportedHistory, suffixed
from tests.consistency.histories import COUNTER, Database, commit, get, le64, put, stamp

VALUE = b"a value of its own"
OTHER = b"another value of its own"


def rules(operations: list[Operation], **options: float) -> set[str]:
    return {violation.rule for violation in check(operations, **options).violations}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_accepts_what_a_correct_database_does(seed: int, count: int) -> None:
    operations = Database(seed).run(count)
    report = check(operations, clock_slack_ms=0)
    assert report.ok, report.summary()
    assert report.reads_count >= 1


def test_settles_unanswered_writes_both_ways() -> None:
    operations = [
        Operation(0, None, put(b"a", VALUE), Unknown()),
        Operation(0, None, put(b"b", OTHER), Unknown()),
        get(5, 6, b"a", 9, SeenEntry(b"a", VALUE, stamp(4))),
        get(5, 6, b"b", 9, None),
    ]
    report = check(operations)
    assert report.ok, report.summary()
    assert (report.settled_as_applied_count, report.settled_as_lost_count) == (1, 1)
    assert "1 unanswered writes applied" in report.summary()


# Planted errors. Each history is the smallest that shows it.


def test_sees_a_lost_acknowledged_write() -> None:
    assert rules([commit(0, 1, put(b"a", VALUE), 5), get(2, 3, b"a", 9, None)]) == {"read-matches"}


def test_sees_two_commits_with_one_stamp() -> None:
    assert "unique-stamps" in rules([commit(0, 9, put(b"a", VALUE), 5), commit(0, 9, put(b"b", OTHER), 5)])


def test_sees_a_commit_before_one_that_had_ended() -> None:
    assert rules([commit(0, 1, put(b"a", VALUE), 6), commit(2, 3, put(b"b", OTHER), 5)]) == {"commit-order"}


@pytest.mark.parametrize("kind", [MutationKind.SUM, MutationKind.MIN, MutationKind.MAX])
def test_sees_arithmetic_on_what_is_no_number(kind: MutationKind) -> None:
    wrong = Write((), (Mutation(kind, b"a", le64(1)),))
    assert rules([commit(0, 1, put(b"a", VALUE), 5), commit(2, 3, wrong, 6)]) == {"number-type"}


def test_concurrent_commits_may_stand_either_way() -> None:
    assert not rules([commit(0, 3, put(b"a", VALUE), 6), commit(2, 4, put(b"b", OTHER), 5)])


def test_sees_a_stale_strong_read_and_allows_a_stale_eventual_one() -> None:
    write = commit(0, 1, put(b"a", VALUE), 5)
    assert rules([write, get(2, 3, b"a", 4, None)]) == {"stale-read"}
    assert not rules([write, get(2, 3, b"a", 4, None, strong=False)])


def test_a_read_names_a_whole_entry() -> None:
    write = commit(0, 1, put(b"a", VALUE), 5, order=7)
    assert not rules([write, get(2, 3, b"a", 5, SeenEntry(b"a", VALUE, stamp(5, 7)))])
    assert rules([write, get(2, 3, b"a", 5, None)]) == {"read-matches"}


def test_sees_an_eventual_read_older_than_it_claims() -> None:
    write = commit(0, 10, put(b"a", VALUE), 5)
    read = get(1_000, 1_001, b"a", 4, None, strong=False, age_ms=100)
    assert rules([write, read]) == {"age"}
    assert not rules([write, read], clock_slack_ms=1_000)


def test_sees_a_strong_read_behind_an_eventual_one() -> None:
    write = Operation(0, None, put(b"a", VALUE), Unknown())
    early = get(1, 2, b"a", 5, SeenEntry(b"a", VALUE, stamp(5)), strong=False)
    assert rules([write, early, get(3, 4, b"a", 4, None)]) == {"stale-read"}


def test_sees_a_read_older_than_the_stamp_it_had_to_wait_for() -> None:
    read = get(2, 3, b"a", 4, None, strong=False, min_versionstamp=stamp(5))
    assert rules([commit(0, 9, put(b"a", VALUE), 5), read]) == {"min-versionstamp"}


def test_sees_a_read_older_than_it_may_be() -> None:
    for age_ms in (101, -1):
        read = get(2, 3, b"a", 4, None, strong=False, max_staleness_ms=100, age_ms=age_ms)
        assert rules([read]) == {"max-staleness"}
    assert not rules([get(2, 3, b"a", 4, None, strong=False, max_staleness_ms=100, age_ms=100)])


def test_sees_a_commit_whose_check_did_not_hold() -> None:
    guarded = Write((Check(b"a"),), (Mutation(MutationKind.SET, b"a", OTHER),))
    first = commit(0, 9, put(b"a", VALUE), 5)
    assert rules([first, commit(0, 9, guarded, 6)]) == {"check-holds"}
    wrong = Write((Check(b"a", stamp(4)),), guarded.mutations)
    assert rules([first, commit(0, 9, wrong, 6)]) == {"check-holds"}
    right = Write((Check(b"a", stamp(5)),), guarded.mutations)
    assert not rules([first, commit(0, 9, right, 6)])


def test_sees_a_failed_check_that_never_conflicted() -> None:
    guarded = Write((Check(b"a"),), (Mutation(MutationKind.SET, b"a", OTHER),))
    write = commit(10, 11, put(b"a", VALUE), 5)
    assert rules([write, Operation(0, 5, guarded, CheckFailed((0,)))]) == {"failed-check-conflicts"}
    assert not rules([write, Operation(0, 10.5, guarded, CheckFailed((0,)))])
    assert not rules([write, Operation(20, 25, guarded, CheckFailed((0,)))])


def test_sees_a_stale_failed_check_of_a_deposed_leader() -> None:
    gone = Write((), (Mutation(MutationKind.DELETE, b"a"),))
    guarded = Write((Check(b"a"),), (Mutation(MutationKind.SET, b"a", OTHER),))
    past = [commit(0, 1, put(b"a", VALUE), 5), commit(2, 3, gone, 6)]
    assert rules([*past, Operation(4, 5, guarded, CheckFailed((0,)))]) == {"failed-check-conflicts"}
    assert not rules([*past, Operation(2.5, 5, guarded, CheckFailed((0,)))])


def test_sees_wrong_indexes_of_failed_checks() -> None:
    guarded = Write((Check(b"a"), Check(b"b")), ())
    write = commit(0, 1, put(b"a", VALUE), 5)
    assert not rules([write, Operation(2, 3, guarded, CheckFailed((0,)))])
    assert rules([write, Operation(2, 3, guarded, CheckFailed((1,)))]) == {"failed-check-conflicts"}
    assert rules([write, Operation(2, 3, guarded, CheckFailed((0, 1)))]) == {"failed-check-conflicts"}
    assert rules([write, Operation(2, 3, guarded, CheckFailed(()))]) == {"failed-check-conflicts"}


def test_sees_failed_checks_that_cannot_be_put_in_one_order() -> None:
    """Each alone could stand somewhere, but the first ended before the second began."""
    set_then_gone = [
        commit(0, 30, put(b"a", VALUE), 5),
        commit(0, 30, Write((), (Mutation(MutationKind.DELETE, b"a"),)), 6),
    ]
    wants_present = Operation(0, 0, Write((Check(b"a", stamp(5)),)), CheckFailed((0,)))
    wants_absent = Operation(0, 0, Write((Check(b"a"),)), CheckFailed((0,)))
    ordered = [
        replace(wants_present, invoked_ms=1, completed_ms=2),  # absent: before 5 or after 6
        replace(wants_absent, invoked_ms=3, completed_ms=4),  # present: at 5
        replace(wants_present, invoked_ms=5, completed_ms=6),
    ]
    assert not rules([*set_then_gone, *ordered])
    assert rules([*set_then_gone, *ordered, replace(wants_absent, invoked_ms=7, completed_ms=8)]) == {
        "failed-check-conflicts"
    }


def test_sees_a_failed_check_after_a_strong_read_that_excludes_it() -> None:
    write = Operation(0, None, put(b"a", VALUE), Unknown())
    failed = Operation(0, 5, Write((Check(b"a"),)), CheckFailed((0,)))
    later = get(9, 10, b"a", 9, SeenEntry(b"a", VALUE, stamp(5)), strong=False)
    assert not rules([write, failed, later])
    assert rules([write, failed, get(6, 7, b"a", 4, None), later]) == {"failed-check-conflicts"}


def test_sees_a_sum_applied_twice() -> None:
    add = Write((), (Mutation(MutationKind.SUM, COUNTER, le64(1)),))
    first = commit(0, 1, add, 5)
    assert not rules([first, get(2, 3, COUNTER, 6, SeenEntry(COUNTER, le64(1), stamp(5)))])
    assert rules([first, get(2, 3, COUNTER, 6, SeenEntry(COUNTER, le64(2), stamp(6)))]) == {"read-matches"}


def test_sees_a_resent_write_applied_twice() -> None:
    write = Write((), (Mutation(MutationKind.SET_SUFFIX_VERSIONSTAMPED_KEY, b"log", VALUE),))
    rows = tuple(SeenEntry(suffixed(b"log", stamp(index)), VALUE, stamp(index)) for index in (5, 6))
    everything = Read((Range(b"", b"\xff", 100),))
    once = Operation(2, 3, everything, Seen(stamp(9), (SeenRange(rows[:1]),)))
    twice = Operation(2, 3, everything, Seen(stamp(9), (SeenRange(rows),)))
    for outcome, end in ((Committed(stamp(5)), 1.0), (Unknown(), None)):
        operation = Operation(0, end, write, outcome)
        assert not rules([operation, once])
        assert rules([operation, twice]) == {"read-matches"}


def test_sees_the_effect_of_a_refused_write() -> None:
    refused = Operation(0, 1, put(b"a", VALUE), Rejected("KEY_TOO_LARGE"))
    assert rules([refused, get(2, 3, b"a", 9, SeenEntry(b"a", VALUE, stamp(5)))]) == {"read-matches"}


def test_sees_a_torn_transaction() -> None:
    both = Write((), (Mutation(MutationKind.SET, b"a", VALUE), Mutation(MutationKind.SET, b"b", VALUE)))
    torn = Read((Range(b"", b"\xff", 100),), strong=False)
    half = Seen(stamp(9), (SeenRange((SeenEntry(b"a", VALUE, stamp(5)),)),))
    assert rules([commit(0, 1, both, 5), Operation(2, 3, torn, half)]) == {"read-matches"}


def test_sees_wrong_order_limit_and_count_of_a_range() -> None:
    writes = [commit(0, 1, put(b"a", VALUE), 5), commit(0, 1, put(b"b", OTHER), 6)]
    a, b = SeenEntry(b"a", VALUE, stamp(5)), SeenEntry(b"b", OTHER, stamp(6))

    def read(asked: Range, *entries: SeenEntry, count: int = 0) -> set[str]:
        seen = Seen(stamp(9), (SeenRange(entries, count),))
        return rules([*writes, Operation(2, 3, Read((asked,)), seen)])

    assert not read(Range(b"a", b"c", 2), a, b)
    assert not read(Range(b"a", b"c", 2, reverse=True), b, a)
    assert not read(Range(b"a", b"c", 1), a)
    assert not read(Range(b"a", b"c", 5, keys_only=True), a._replace(value=b""), b._replace(value=b""))
    assert not read(Range(b"a", b"c", 0, count_only=True), count=2)
    assert read(Range(b"a", b"c", 2), b, a)
    assert read(Range(b"a", b"c", 2), a)
    assert read(Range(b"a", b"c", 1), a, b)
    assert read(Range(b"a", b"c", 0, count_only=True), count=1)
    assert read(Range(b"a", b"b", 2), a, b)


def test_a_key_may_be_gone_after_its_time_never_before_and_never_comes_back() -> None:
    expiring = Write((), (Mutation(MutationKind.SET, b"a", VALUE, expire_at_ms=10_000),))
    write = commit(0, 1, expiring, 5)
    row = SeenEntry(b"a", VALUE, stamp(5))
    assert rules([write, get(9_000, 9_001, b"a", 6, None)]) == {"read-matches"}
    assert not rules([write, get(10_000, 10_001, b"a", 6, None)])
    assert not rules([write, get(10_000, 10_001, b"a", 6, row)])
    gone_then_back = [get(10_000, 10_001, b"a", 6, None), get(10_002, 10_003, b"a", 7, row)]
    assert rules([write, *gone_then_back]) == {"read-matches"}


def test_checks_of_a_row_past_its_time_may_go_either_way() -> None:
    write = commit(0, 1, Write((), (Mutation(MutationKind.SET, b"a", VALUE, expire_at_ms=10_000),)), 5)
    fresh = Write((Check(b"a"),), (Mutation(MutationKind.SET, b"b", OTHER),))
    assert not rules([write, commit(10_000, 10_001, fresh, 6)])
    assert rules([write, commit(8_000, 8_001, fresh, 6)]) == {"check-holds"}
    assert not rules([write, Operation(10_000, 10_001, fresh, CheckFailed((0,)))])


def test_refuses_to_judge_arithmetic_on_rows_that_expire() -> None:
    write = Write((), (Mutation(MutationKind.SET, COUNTER, le64(1), expire_at_ms=10),))
    add = Write((), (Mutation(MutationKind.SUM, COUNTER, le64(1)),))
    with pytest.raises(UnsupportedHistory):
        check([commit(0, 1, write, 5), commit(2, 3, add, 6)])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_sees_any_acknowledged_commit_that_is_missing_from_the_replay(seed: int) -> None:
    """Every write of the random histories has a row of its own, so forgetting any one of them must show."""
    operations = Database(seed).run(60)
    commits = [number for number, item in enumerate(operations) if isinstance(item.outcome, Committed)]
    if commits:
        number = commits[seed % len(commits)]
        operations[number] = replace(operations[number], outcome=Rejected())
        assert not check(operations, clock_slack_ms=0).ok


def test_judges_a_long_history_in_no_time() -> None:
    operations: list[Operation] = []
    for number in range(50_000):
        value = b"value %d" % number
        key = b"key %d" % (number % 20_000)
        operations.append(commit(number, number + 5.5, put(key, value), number + 1))
        operations.append(get(number + 6, number + 9, key, number + 1, SeenEntry(key, value, stamp(number + 1))))
    started = time.process_time()  # whatever else the machine is busy with
    assert check(operations).ok
    assert time.process_time() - started < 20
