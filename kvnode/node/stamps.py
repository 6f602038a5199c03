"""Versionstamps that a client brings along, against the history that this node has.

A stamp names an entry of the log, in an epoch. It is *reached* when the state is at or beyond it; *ahead* when the
state is not there yet, or never will be, which only time can tell; and *lost* when a later epoch began without the
entry: a failover has cut the history before it. Then no state will ever show it, and to answer from what there is
would pass in silence over the loss of what the client wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvnode.base.errors import KvError, VersionstampLost
from kvnode.codec.versionstamp import split


class EpochRow(Protocol):
    """One row of the replicated table of epochs."""

    @property
    def epoch(self) -> int:
        """Its number."""

    @property
    def fork_index(self) -> int:
        """The last entry of the earlier epochs that this one took over; 0 for the first."""


EpochRows = Callable[[], Sequence[EpochRow]]
"""The table as the applied state has it."""


def no_epochs() -> Sequence[EpochRow]:
    """The table of a cluster that never failed over: its first epoch lost nothing."""
    return ()


def is_reached(stamp: bytes, epoch: int, applied_index: int) -> bool:
    """Whether a state at that index, in that epoch, holds what the stamp names, unless that is lost."""
    return split(stamp)[:2] <= (epoch, applied_index)


def refusal(stamp: bytes, rows: Sequence[EpochRow]) -> KvError | None:
    """VERSIONSTAMP_LOST when a later epoch began without the stamp's entry; None otherwise."""
    epoch, index, _ = split(stamp)
    for row in rows:
        if row.epoch > epoch and index > row.fork_index:
            return VersionstampLost(
                f"the versionstamp {stamp.hex()} is lost: a failover began epoch {row.epoch} with entry "
                f"{row.fork_index} of the log as the last one kept, and this is of entry {index} of epoch {epoch}; "
                "what was written under it, and after it in that epoch, must be written again"
            )
    return None
