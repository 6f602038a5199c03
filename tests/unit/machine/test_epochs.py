"""The table of epochs: what of an earlier one still counts."""

from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import EpochStart, encode_epoch_start, epoch_entry
from kvnode.codec.membership import Member, Membership
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.epochs import EpochRow, fork_of, is_lost, parting, read_epochs, read_seal
from tests.unit.machine.fakes import MemoryState

MEMBERS = Membership((Member(1, "n1", "eu", "a", "h:1"),), 1)


def start(epoch: int, *, planned: bool = False) -> EpochStart:
    return EpochStart(epoch, 77, "eu", MEMBERS, 2, planned)


def row(epoch: int, fork_index: int) -> EpochRow:
    return EpochRow(epoch, fork_index, 1, "eu", False, 2)


def lost(epoch: int, index: int, *table: EpochRow) -> bool:
    return is_lost(versionstamp(epoch, index, 3), table)


def test_without_a_failover_nothing_is_lost() -> None:
    assert not lost(1, 1) and not lost(1, 10**9) and not lost(7, 5)


def test_what_lies_beyond_the_fork_is_lost() -> None:
    table = (row(2, 100), row(4, 250))
    assert not lost(1, 100, *table) and lost(1, 101, *table)
    assert not lost(2, 101, *table) and not lost(2, 250, *table) and lost(2, 251, *table)
    assert not lost(4, 251, *table) and not lost(4, 10**6, *table)
    assert lost(3, 251, *table) and lost(3, 200, *table), "an epoch that never became part of this history"
    assert not lost(5, 1, *table), "it is still to come, for all that this node knows"
    assert (fork_of(0, table), fork_of(2, table), fork_of(4, table)) == (100, 250, None)


def test_where_another_log_parts_from_this_history() -> None:
    table = (row(5, 100), row(19, 250))
    assert parting(table, 19, [(5, 100), (19, 250)]) is None, "its epoch goes on"
    assert parting(table, 33, [(5, 100), (33, 90)]) is None, "or is still to come, for all that this node knows"
    assert parting(table, 5, [(5, 100)]) == 250, "it ends in an epoch of this history"
    assert parting(table, 16, [(5, 100), (16, 180)]) == 180, "in one that began elsewhere, behind less"
    assert parting(table, 16, [(5, 100), (16, 300)]) == 250, "or behind more"
    assert parting(table, 16, [(16, 180)]) == 100, "or without having heard of an earlier one"
    assert parting(table, 18, [(5, 100), (16, 180), (18, 220)]) == 180, "or behind another such"
    assert parting(table, 5, [(5, 100), (19, 250)]) == 250, "what begins behind the entry in question is no matter"
    assert parting(table, 16, []) == 100, "with nothing known of it, what both have for certain"


def test_an_epoch_and_a_seal_are_rows_of_the_state() -> None:
    state = MemoryState()
    seal = Entry(3, 8, EntryKind.SEAL, encode_epoch_start(start(2, planned=True)))
    run = state.apply([Entry(3, 7, EntryKind.NOOP, b""), seal])
    assert run.epoch == 0 and run.log_time_ms == 0
    assert read_seal(state) == (start(2, planned=True), 8) and read_epochs(state) == ()
    run = state.apply([epoch_entry(start(2, planned=True), 9)])
    assert run.epoch == 2 and read_seal(state) is None
    assert read_epochs(state) == (EpochRow(2, 8, 77, "eu", True, 2),)
