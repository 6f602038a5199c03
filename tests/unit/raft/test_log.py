"""The log's marks, and what a Ready that is outstanding may find changed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.base.invariant import InvariantViolation
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import Membership
from kvnode.raft.log import RaftLog
from kvnode.raft.types import SnapshotMeta
from tests.raft.harness import MemoryLog


def entries(*places: str) -> tuple[Entry, ...]:
    """`2.5` is the entry of term 2 at index 5."""
    split = [place.split(".") for place in places]
    return tuple(Entry(int(term), int(index), EntryKind.DATA, b"x" * 10) for term, index in split)


def made(*places: str, commit: int = 0, applied: int = 0) -> tuple[RaftLog, MemoryLog]:
    disk = MemoryLog()
    disk.append(list(entries(*places)))
    return RaftLog(disk, commit, applied), disk


def persist(log: RaftLog, disk: MemoryLog) -> None:
    unstable = log.unstable()
    disk.append(unstable)
    log.persisted(unstable, None)


def test_in_order() -> None:
    log, disk = made("1.1")
    assert log.try_append(1, 1, entries("1.2", "1.3")) == 2
    assert (log.last_index, log.stable, log.term(3), log.term(4)) == (3, 1, 1, None)
    persist(log, disk)
    assert log.stable == 3
    assert not log.has_unstable()


def test_no_match_changes_nothing() -> None:
    log, _ = made("1.1", "1.2")
    assert log.try_append(2, 2, entries("2.3")) is None
    assert log.try_append(3, 1, entries("2.4")) is None
    assert log.last_index == 2


def test_duplicate_changes_nothing() -> None:
    log, _ = made("1.1", "1.2", "1.3")
    assert log.try_append(0, 0, entries("1.1", "1.2")) == 4
    assert log.last_index == 3


def test_conflict_truncates_from_there() -> None:
    log, disk = made("1.1", "1.2", "1.3", commit=1)
    assert log.try_append(1, 1, entries("2.2")) == 2
    assert (log.last_index, log.last_term, log.stable) == (2, 2, 1)
    persist(log, disk)
    assert [e.term for e in disk.held] == [1, 2]


def test_a_committed_entry_is_never_truncated() -> None:
    log, _ = made("1.1", "1.2", commit=2)
    with pytest.raises(InvariantViolation, match="committed up to 2"):
        log.try_append(1, 1, entries("2.2"))


def test_persisted_after_the_tail_was_replaced() -> None:
    log, disk = made("1.1")
    log.try_append(1, 1, entries("2.2", "2.3"))
    outstanding = log.unstable()
    log.try_append(2, 2, entries("3.3", "3.4"))
    disk.append(outstanding)
    log.persisted(outstanding, None)
    assert log.stable == 2, "2.2 is on disk and stays; rewriting it could lose what was acknowledged"
    assert [e.index for e in log.unstable()] == [3, 4]


def test_persisted_after_everything_was_replaced() -> None:
    log, _ = made("1.1")
    log.try_append(1, 1, entries("2.2"))
    outstanding = log.unstable()
    log.try_append(1, 1, entries("3.2"))
    log.persisted(outstanding, None)
    assert log.stable == 1


def test_delivers_only_what_is_committed_and_persisted() -> None:
    log, disk = made("1.1")
    log.try_append(1, 1, entries("1.2", "1.3", "1.4"))
    log.commit_to(3)
    assert [e.index for e in log.deliver(1 << 20)] == [1]
    assert log.deliver(1 << 20) == []
    persist(log, disk)
    assert [e.index for e in log.deliver(15)] == [2], "bounded by bytes, at least one"
    assert [e.index for e in log.deliver(1 << 20)] == [3]
    assert log.last_index == 4
    assert [log.term(i) for i in range(6)] == [0, 1, 1, 1, 1, None]


def test_commit_never_goes_back_nor_beyond_the_end() -> None:
    log, _ = made("1.1", "1.2")
    assert log.commit_to(9)
    assert log.commit == 2
    assert not log.commit_to(1)
    assert log.commit == 2


def test_a_commit_index_beyond_a_cut_log_is_lowered() -> None:
    log, _ = made("1.1", commit=7)
    assert log.commit == 1


def test_the_log_must_join_the_applied_index() -> None:
    with pytest.raises(InvariantViolation, match="does not join"):
        made("1.1", applied=3)


def test_snapshot_replaces_everything() -> None:
    log, disk = made("1.1", "1.2")
    snapshot = SnapshotMeta(9, 4, Membership())
    log.restore(snapshot)
    assert (log.first_index(), log.last_index, log.last_term, log.commit) == (10, 9, 4, 9)
    assert log.term(9) == 4
    assert log.term(2) is None
    assert log.entries(2, 5, 100) == []
    assert log.try_append(9, 4, entries("4.10")) == 10
    outstanding = log.unstable()
    disk.reset(9, 4)
    disk.append(outstanding)
    log.persisted(outstanding, snapshot)
    assert (log.stable, log.applied, log.snapshot) == (10, 9, None)


def test_a_snapshot_takes_along_the_tail_beyond_it() -> None:
    """Entries above the snapshot that another leader wrote do not follow it, on the disk or not yet."""
    log, _ = made("1.1", "1.2", "2.3", "2.4")
    assert log.try_append(4, 2, entries("2.5", "2.6")) == 5
    log.restore(SnapshotMeta(3, 4, Membership()))
    assert (log.last_index, log.last_term, log.stable) == (3, 4, 3)
    assert log.term(4) is None and log.term(5) is None
    assert log.unstable() == []
    assert log.try_append(4, 2, entries("2.5")) is None


def test_a_second_snapshot_while_the_first_is_installed() -> None:
    log, disk = made("1.1")
    first, second = SnapshotMeta(9, 4, Membership()), SnapshotMeta(20, 5, Membership())
    log.restore(first)
    log.restore(second)
    disk.reset(9, 4)
    log.persisted([], first)
    assert log.snapshot is second
    assert log.last_index == 20


def test_find_conflict_by_term() -> None:
    log, _ = made("1.1", "1.2", "4.3", "4.4", "5.5")
    assert log.find_conflict_by_term(9, 5) == (5, 5)
    assert log.find_conflict_by_term(5, 4) == (4, 4)
    assert log.find_conflict_by_term(5, 3) == (2, 1)
    assert log.find_conflict_by_term(5, 0) == (0, 0)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_against_a_list(data: st.DataObject) -> None:
    """A log fed by leaders of rising terms, persisted and delivered at will, equals a plain list of terms."""
    log, disk = made()
    model: list[int] = []
    term = 1
    outstanding: list[Entry] | None = None
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["append", "conflict", "begin", "finish", "commit", "deliver"]))
        if action == "append":
            log.append(Entry(term, len(model) + 1, EntryKind.DATA, b""))
            model.append(term)
        elif action == "conflict" and len(model) > log.commit:
            term += 1
            at = data.draw(st.integers(log.commit, len(model)))
            new = tuple(Entry(term, at + 1 + i, EntryKind.DATA, b"") for i in range(data.draw(st.integers(1, 3))))
            assert log.try_append(at, model[at - 1] if at else 0, new) == at + 1
            model[at:] = [term] * len(new)
        elif action == "begin" and outstanding is None:
            outstanding = log.unstable()
            disk.append(outstanding)
        elif action == "finish" and outstanding is not None:
            log.persisted(outstanding, None)
            outstanding = None
        elif action == "commit":
            log.commit_to(data.draw(st.integers(0, len(model))))
        elif action == "deliver":
            before = log.delivered
            got = log.deliver(data.draw(st.integers(1, 5)))
            assert [e.term for e in got] == model[before : before + len(got)]
        assert [log.term(i + 1) for i in range(len(model))] == model
        assert log.last_index == len(model)
        assert [disk.term(i + 1) for i in range(log.stable)] == model[: log.stable], "stable is on disk"
