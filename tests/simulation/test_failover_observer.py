"""What is known of histories that a failover has ended."""

from __future__ import annotations

from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import TERMS_PER_EPOCH
from kvnode.codec.versionstamp import versionstamp
from tests.simulation.failover_observer import EpochObserver

SECOND = 2 * TERMS_PER_EPOCH + 1  # a term of epoch 2


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(term, index, EntryKind.DATA, data)


def cut_behind_2() -> EpochObserver:
    """Entries 1 to 4 were committed in epoch 1; epoch 2 begins at 3; a node that has not heard of it applies 5."""
    observer = EpochObserver()
    old = {index: entry(index, 1) for index in range(1, 5)}
    observer.past.append(dict(old))
    observer.ended.update({(index, 1): old[index] for index in (3, 4)})
    observer.ended[5, 1] = entry(5, 1)
    observer.cuts.append((2, 2))
    observer.committed = {1: old[1], 2: old[2], 3: entry(3, SECOND), 4: entry(4, SECOND)}
    return observer


def test_a_history_that_has_ended_is_kept_with_what_was_made_of_it_later() -> None:
    observer = cut_behind_2()
    ended, last = observer.histories()
    assert [(each.index, each.term) for each in ended.values()] == [(index, 1) for index in range(1, 6)]
    assert last is observer.committed


def test_an_entry_is_committed_in_its_own_epoch_alone() -> None:
    observer = cut_behind_2()
    assert observer.is_committed(versionstamp(1, 2, 0)) and not observer.is_lost(versionstamp(1, 2, 0))
    assert observer.is_committed(versionstamp(1, 5, 0)) and observer.is_lost(versionstamp(1, 5, 0))
    assert observer.is_committed(versionstamp(2, 4, 0)) and not observer.is_lost(versionstamp(2, 4, 0))
    assert not observer.is_committed(versionstamp(2, 2, 0))
    assert not observer.is_committed(versionstamp(2, 5, 0))
    assert not observer.is_committed(versionstamp(1, 6, 0))
