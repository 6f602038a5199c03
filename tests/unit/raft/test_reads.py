"""ReadIndex rounds."""

from __future__ import annotations

from kvnode.raft.reads import ReadRounds
from kvnode.raft.types import ReadState


def test_a_read_is_served_by_its_own_round_or_a_later_one() -> None:
    rounds = ReadRounds()
    rounds.join(1)
    assert rounds.start(10, take_reads=True) == 1
    rounds.join(2)
    assert rounds.confirm(1) == [ReadState(1, 10)]
    assert rounds.start(12, take_reads=True) == 2
    assert rounds.start(13, take_reads=True) == 3
    assert rounds.confirm(3) == [ReadState(2, 12)]
    assert (rounds.pending_count, rounds.idle) == (0, True)


def test_reads_wait_while_they_may_not_be_taken() -> None:
    rounds = ReadRounds()
    rounds.join(1)
    rounds.start(10, take_reads=False)
    assert rounds.confirm(1) == []
    assert rounds.waiting == [1]


def test_voided_rounds_do_not_count_and_their_reads_go_again() -> None:
    rounds = ReadRounds()
    rounds.join(1)
    rounds.start(10, take_reads=True)
    rounds.join(2)
    rounds.void()
    assert rounds.confirm(1) == []
    assert rounds.waiting == [1, 2]
    assert rounds.start(11, take_reads=True) == 2
    assert rounds.confirm(2) == [ReadState(1, 11), ReadState(2, 11)]


def test_dropped_reads_are_not_answered() -> None:
    rounds = ReadRounds()
    rounds.join(1)
    rounds.start(10, take_reads=True)
    rounds.join(2)
    rounds.drop()
    assert rounds.pending_count == 0
    assert rounds.start(11, take_reads=True) == 2
    assert rounds.confirm(2) == []


def test_an_older_confirmation_changes_nothing() -> None:
    rounds = ReadRounds()
    rounds.start(1, take_reads=True)
    rounds.start(1, take_reads=True)
    rounds.confirm(2)
    rounds.confirm(1)
    assert rounds.acknowledged == 2
