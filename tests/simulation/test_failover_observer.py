"""What is known of histories that a failover has ended."""

from __future__ import annotations

import pytest

from cluster.history import CheckFailed, Committed, Rejected, Unknown
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import TERMS_PER_EPOCH
from kvnode.codec.versionstamp import versionstamp
from tests.simulation.failover import is_judged_on_data
from tests.simulation.failover_observer import EpochObserver
from tests.simulation.observer import DurableLog, Violation

SECOND = 2 * TERMS_PER_EPOCH + 1  # a term of epoch 2


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(term, index, EntryKind.DATA, data)


def cut_behind_2() -> EpochObserver:
    """Entries 1 to 4 were committed in epoch 1; epoch 2 begins at 3; a node that has not heard of it applies 5."""
    observer = EpochObserver()
    old = {index: entry(index, 1) for index in range(1, 5)}
    observer.ended.update({(index, 1): old[index] for index in (3, 4)})
    observer.ended[5, 1] = entry(5, 1)
    observer.cuts.append((2, 2))
    observer.committed = {1: old[1], 2: old[2], 3: entry(3, SECOND), 4: entry(4, SECOND)}
    observer.appending(1, [*old.values(), observer.ended[5, 1]], 0)
    observer.appending(2, [observer.committed[3], observer.committed[4]], 1)
    return observer


def test_a_history_that_has_ended_is_kept_with_what_was_made_of_it_later() -> None:
    observer = cut_behind_2()
    ended, last = observer.histories()
    assert [(each.index, each.term) for each in ended.values()] == [(index, 1) for index in range(1, 6)]
    assert last is observer.committed


def test_a_history_is_known_that_began_in_one_that_had_ended_already() -> None:
    observer = cut_behind_2()
    between = TERMS_PER_EPOCH + 3  # an epoch before the one that goes on, begun where nobody had heard of that
    observer.appending(3, [entry(5, between), entry(6, between)], 1)
    observer.ended.update({(index, between): entry(index, between) for index in (5, 6)})
    found = [[(each.index, each.term) for each in history.values()] for history in observer.histories()]
    before = [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert found[:-1] == [[*before, (5, 1)], [*before, (5, between), (6, between)]]
    assert found[-1] == [(1, 1), (2, 1), (3, SECOND), (4, SECOND)]


def test_a_history_whose_beginning_nobody_has_applied_is_a_fault() -> None:
    observer = cut_behind_2()
    observer.appending(3, [entry(9, 1)], 1)
    observer.ended[9, 1] = entry(9, 1)
    with pytest.raises(Violation):
        observer.histories()


def test_an_entry_is_committed_in_its_own_epoch_alone() -> None:
    observer = cut_behind_2()
    assert observer.is_committed(versionstamp(1, 2, 0)) and not observer.is_lost(versionstamp(1, 2, 0))
    assert observer.is_committed(versionstamp(1, 5, 0)) and observer.is_lost(versionstamp(1, 5, 0))
    assert observer.is_committed(versionstamp(2, 4, 0)) and not observer.is_lost(versionstamp(2, 4, 0))
    assert not observer.is_committed(versionstamp(2, 2, 0))
    assert not observer.is_committed(versionstamp(2, 5, 0))
    assert not observer.is_committed(versionstamp(1, 6, 0))


@pytest.mark.parametrize(("held", "is_fault"), [({1: 1, 2: 1}, False), ({1: 1}, True)])
def test_a_leader_behind_a_fence_holds_all_up_to_where_an_earlier_loss_was_vouched_for(
    held: dict[int, int], is_fault: bool
) -> None:
    """Epoch 2, for which an operator vouched, began at 3; nobody has applied that before epoch 3 began behind it."""
    observer = EpochObserver()
    observer.committed = {index: entry(index, 1) for index in range(1, 5)}
    observer.vouched = {2}
    third = 3 * TERMS_PER_EPOCH + 1
    log = observer.durable.setdefault(2, DurableLog())
    for index, term in {**held, 3: SECOND, 4: third}.items():
        log.keep(index, term)
    observer._elected(third, 2)
    assert (observer.violation is not None) == is_fault


def test_what_another_history_might_not_have_refused() -> None:
    assert is_judged_on_data(CheckFailed(())) and is_judged_on_data(Rejected("SUM_NON_U64_VALUE"))
    for outcome in (Rejected("SUM_NON_U64_OPERAND"), Rejected("DEADLINE_EXCEEDED"), Rejected("UNAVAILABLE")):
        assert not is_judged_on_data(outcome), "another history would have done the same, or nobody has judged it"
    assert not is_judged_on_data(Unknown()) and not is_judged_on_data(Committed(b""))
