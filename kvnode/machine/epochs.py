"""The epochs that failovers have begun, as rows of the state: what of an earlier one still counts, and what was lost.

Theory of operation. The log's index goes on through all epochs. An epoch that a failover began has a row with its fork
point, the last index of what came before that it kept. So of the versionstamps of an earlier epoch those up to the
fork point are in this history, and those beyond were lost. A planned move writes such a row too; nothing lies beyond
its fork point. The cluster's first epoch has no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvnode.codec.entry import Entry
from kvnode.codec.epoch import FIRST_EPOCH, EpochStart, decode_epoch_start
from kvnode.codec.row import Row
from kvnode.codec.versionstamp import split, versionstamp
from kvnode.machine.keyspace import EPOCH_PREFIX, EPOCHS_END, SEAL_KEY
from kvnode.machine.state_reader import StateReader

_MAX_ROWS = 65_536


class EpochRow(NamedTuple):
    """An epoch that a failover began.

    Attributes:
        epoch, ballot, region, planned, wanted_commit_dcs: see codec.epoch.EpochStart.
        fork_index: the last index of the histories before it that it kept; its own first one is the next.
    """

    epoch: int
    fork_index: int
    ballot: int
    region: str
    planned: bool
    wanted_commit_dcs: int


def epoch_began(start: EpochStart, index: int) -> dict[bytes, Row | None]:
    """What the EPOCH entry at `index` writes."""
    key = EPOCH_PREFIX + start.epoch.to_bytes(2, "big")
    fields = {
        "fork_index": index - 1,
        "ballot": start.ballot,
        "region": start.region,
        "planned": start.planned,
        "wanted_commit_dcs": start.wanted_commit_dcs,
    }
    return {key: Row(key, json.dumps(fields).encode(), 0, versionstamp(start.epoch, index, 0)), SEAL_KEY: None}


def sealed(entry: Entry) -> dict[bytes, Row | None]:
    """What a SEAL entry writes: itself, until the epoch that it announces begins."""
    start = decode_epoch_start(entry.data)
    return {SEAL_KEY: Row(SEAL_KEY, entry.data, 0, versionstamp(start.epoch - 1, entry.index, 0))}


def read_epochs(state: StateReader) -> tuple[EpochRow, ...]:
    """The table, in order."""
    table = []
    for row in state.scan(EPOCH_PREFIX, EPOCHS_END, _MAX_ROWS):
        fields = json.loads(row.value)
        epoch = int.from_bytes(row.key[len(EPOCH_PREFIX) :], "big")
        table.append(
            EpochRow(
                epoch,
                int(fields["fork_index"]),
                int(fields["ballot"]),
                str(fields["region"]),
                bool(fields["planned"]),
                int(fields["wanted_commit_dcs"]),
            )
        )
    return tuple(table)


def read_seal(state: StateReader) -> tuple[EpochStart, int] | None:
    """The seal at which the log stands, and its index; None when it is not sealed."""
    row = state.get(SEAL_KEY)
    return None if row is None else (decode_epoch_start(row.value), split(row.versionstamp)[1])


def is_lost(stamp: bytes, table: Sequence[EpochRow]) -> bool:
    """Whether a versionstamp is of a history that a failover has cut off.

    Args:
        stamp: 10 bytes; one that is still to come is not lost.
        table: the epochs that the reader knows (read_epochs); with fewer it may not know of the loss yet.
    """
    epoch, index, _ = split(stamp)
    fork_index = fork_of(epoch, table)
    if fork_index is not None and index > fork_index:
        return True
    # An epoch that was begun and never became part of this history.
    is_of_another = epoch != FIRST_EPOCH and all(row.epoch != epoch for row in table)
    return fork_index is not None and is_of_another


def fork_of(epoch: int, table: Sequence[EpochRow]) -> int | None:
    """Up to which index this history holds what that epoch wrote; None while that epoch goes on."""
    return next((row.fork_index for row in table if row.epoch > epoch), None)


def parting(table: Sequence[EpochRow], end: int, begun: Iterable[tuple[int, int]]) -> int | None:
    """Up to which index this history and another log's are one; None while the epoch in which that log ends goes on.

    Where that epoch began on the other side of a cut, and never became part of this history, the two have parted
    before it: where either left the last epoch that both have.

    Args:
        table: of this history.
        end: the epoch of the other log's last entry.
        begun: each epoch that the other log has, with its fork index.
    """
    if fork_of(end, table) is None:
        return None
    forks = {epoch: fork_index for epoch, fork_index in begun if epoch <= end}
    common = max(({FIRST_EPOCH} | {row.epoch for row in table}) & {FIRST_EPOCH, end, *forks})
    left = min((fork for epoch, fork in forks.items() if epoch > common), default=None)
    ended = fork_of(common, table)
    return min(fork for fork in (ended, left) if fork is not None)
