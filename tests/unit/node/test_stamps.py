"""Versionstamps against the history that a node has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvnode.codec.epoch import EpochStart
from kvnode.codec.membership import Membership
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.epochs import EpochRow, epoch_began
from kvnode.node.epochs import Epochs
from kvnode.node.stamps import is_reached, refusal
from tests.simulation.state import SimulatedState
from tests.unit.node.fakes import HandClock


def row(epoch: int, fork_index: int) -> EpochRow:
    return EpochRow(epoch, fork_index, 1, "europe", False, 2)


TWO_FAILOVERS = (row(2, 100), row(3, 150))


@pytest.mark.parametrize(
    ("epoch", "index", "lost"),
    [(1, 100, False), (1, 101, True), (1, 90, False), (2, 101, False), (2, 150, False), (2, 151, True),
     (1, 140, True), (3, 151, False), (3, 10_000, False), (4, 151, False)],
)  # fmt: skip
def test_a_stamp_beyond_the_fork_of_its_epoch_is_lost(epoch: int, index: int, lost: bool) -> None:
    error = refusal(versionstamp(epoch, index, 0), TWO_FAILOVERS)
    assert (error is not None) == lost
    if error is not None:
        assert error.code == "VERSIONSTAMP_LOST" and versionstamp(epoch, index, 0).hex() in error.message
        assert error.not_applied


def test_without_a_failover_nothing_is_lost() -> None:
    assert refusal(versionstamp(1, 1 << 40, 0), ()) is None


def test_what_is_reached() -> None:
    stamp = versionstamp(2, 50, 65_535)
    assert is_reached(stamp, 2, 50) and is_reached(stamp, 2, 51) and is_reached(stamp, 3, 50)
    assert not is_reached(stamp, 2, 49)
    assert not is_reached(stamp, 1, 60), "this state has not heard of the epoch yet"


def test_the_table_is_that_of_the_state_before_anybody_is_told(tmp_path: Path) -> None:
    """Reads that wait hear of a run first: one that begins an epoch must not answer what that epoch has lost."""
    state: Any = SimulatedState(tmp_path, clock=HandClock(), latency_s=lambda: 0.0)
    epochs = Epochs(object(), state, lambda: state.meta, lambda: None)  # type: ignore[arg-type]
    assert epochs.current() == ()
    start = EpochStart(2, 7, "europe", Membership((), 2), 2, False)
    state.apply(epoch_began(start, 101), applied_index=101, applied_term=9, log_time_ms=5, epoch=2, membership=b"m")
    (found,) = epochs.current()
    assert (found.epoch, found.fork_index) == (2, 100)
    assert refusal(versionstamp(1, 101, 0), epochs.current()) is not None


def test_a_stamp_of_an_epoch_that_never_came_about_is_not_said_to_be_beyond_a_fork() -> None:
    error = refusal(versionstamp(2, 9, 0), (row(3, 9),))
    assert error is not None and error.code == "VERSIONSTAMP_LOST"
    assert "that epoch is no part of this cluster's history" in error.message and "beyond" not in error.message
