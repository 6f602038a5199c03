"""Versionstamps that a client brings along, against the history that this node has.

A stamp names an entry of the log, in an epoch. It is *reached* when the state is at or beyond it; *ahead* when the
state is not there yet, or never will be, which only time can tell; and *lost* when a later epoch began without the
entry: a failover has cut the history before it. Then no state will ever show it, and to answer from what there is
would pass in silence over the loss of what the client wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvnode.base.errors import KvError, VersionstampLost
from kvnode.codec.versionstamp import split
from kvnode.machine.epochs import EpochRow, fork_of, is_lost

EpochRows = Callable[[], Sequence[EpochRow]]
"""The table of epochs as the applied state has it."""


def is_reached(stamp: bytes, epoch: int, applied_index: int) -> bool:
    """Whether a state at that index, in that epoch, holds what the stamp names, unless that is lost."""
    return split(stamp)[:2] <= (epoch, applied_index)


def refusal(stamp: bytes, rows: Sequence[EpochRow]) -> KvError | None:
    """VERSIONSTAMP_LOST when a later epoch began without the stamp's entry; None otherwise."""
    if not rows or not is_lost(stamp, rows):
        return None
    epoch, index, _ = split(stamp)
    fork_index = fork_of(epoch, rows)
    if fork_index is not None and index > fork_index:
        why = f"a failover kept nothing beyond entry {fork_index} of that epoch; what was written from there on"
    else:
        why = "that epoch is no part of this cluster's history, which a failover has led on without it; what it wrote"
    return VersionstampLost(
        f"the versionstamp {stamp.hex()} is lost: it names entry {index} of epoch {epoch}, and {why} must be written "
        "again"
    )
