"""The units of the log: an entry and the hard state, as consensus, storage and machine share them."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class EntryKind(IntEnum):
    """What an entry's data holds."""

    DATA = 0  # an EntryPayload (protos/kv/internal/v1/log.proto)
    NOOP = 1  # a new leader's first entry; data is empty
    MEMBERSHIP = 2  # an encoded membership (codec/membership.py)


class Entry(NamedTuple):
    """One log entry. `data` is opaque to consensus and to the log."""

    term: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    kind: EntryKind
    data: bytes


class HardState(NamedTuple):
    """What a voter must remember across a crash (Raft, figure 2). `vote` 0 = none."""

    term: int = 0
    vote: int = 0
    commit: int = 0
