"""The units of the log: an entry and the hard state, as consensus, storage and machine share them."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class EntryKind(IntEnum):
    """What an entry's data holds."""

    DATA = 0  # an EntryPayload (protos/kv/internal/v1/log.proto)
    NOOP = 1  # a new leader's first entry; data is empty
    MEMBERSHIP = 2  # an encoded membership (codec/membership.py)
    EPOCH = 3  # the first entry of an epoch (codec/epoch.py)
    SEAL = 4  # the last entry of an epoch whose primary moves as planned; holds the EPOCH entry that follows


class Entry(NamedTuple):
    """One log entry. `data` is opaque to consensus and to the log."""

    term: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    kind: EntryKind
    data: bytes


class HardState(NamedTuple):
    """What a voter must remember across a crash (Raft, figure 2). `vote` 0 = none.

    Attributes:
        epoch, ballot: the epoch that this node has promised to a failover, and which one; 0 = none. It takes no part
            in an earlier epoch any more, and in this one only under that ballot.
    """

    term: int = 0
    vote: int = 0
    commit: int = 0
    epoch: int = 0
    ballot: int = 0
