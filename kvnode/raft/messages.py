"""What Raft nodes say to each other."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from kvnode.codec.entry import Entry


class MessageKind(IntEnum):
    """Kinds of message; the numbers are on the wire."""

    APPEND = 1
    APPEND_RESPONSE = 2
    HEARTBEAT = 3
    HEARTBEAT_RESPONSE = 4
    VOTE = 5
    VOTE_RESPONSE = 6
    PRE_VOTE = 7
    PRE_VOTE_RESPONSE = 8
    SNAPSHOT = 9  # names a snapshot; its bytes travel beside the messages
    TIMEOUT_NOW = 10


class Message(NamedTuple):
    """One message. Fields that a kind does not use stay at their default."""

    kind: MessageKind
    to: int
    sender: int
    term: int
    log_term: int = 0
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    commit: int = 0
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0
    round: int = 0  # of the leader's heartbeat round, echoed by the response (ReadIndex)
    entries: tuple[Entry, ...] = ()
    context: bytes = b""  # SNAPSHOT: the encoded membership; VOTE: b"transfer" when leadership is handed over
    hold_ms: int = 0  # HEARTBEAT: 1 asks that the vote be held; HEARTBEAT_RESPONSE: it is, for so long (holds.py)
