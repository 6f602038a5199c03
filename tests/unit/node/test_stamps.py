"""Versionstamps against the history that a node has."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from kvnode.codec.versionstamp import versionstamp
from kvnode.node.stamps import is_reached, no_epochs, refusal


class Row(NamedTuple):
    epoch: int
    fork_index: int


TWO_FAILOVERS = (Row(1, 0), Row(2, 100), Row(3, 150))


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
    assert refusal(versionstamp(1, 1 << 40, 0), no_epochs()) is None


def test_what_is_reached() -> None:
    stamp = versionstamp(2, 50, 65_535)
    assert is_reached(stamp, 2, 50) and is_reached(stamp, 2, 51) and is_reached(stamp, 3, 50)
    assert not is_reached(stamp, 2, 49)
    assert not is_reached(stamp, 1, 60), "this state has not heard of the epoch yet"
