"""The core's seam: what goes in at construction, and the one object that comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from kvnode.base import limits
from kvnode.codec.entry import Entry, HardState
from kvnode.codec.membership import Membership
from kvnode.raft.messages import Message


class Role(Enum):
    """What a node is in its term. A learner is a FOLLOWER whose member role is LEARNER."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """What the core needs to know beside the log.

    Args:
        node_id: this node; never 0.
        election_ticks: silence of a leader, in ticks, after which an election may begin (the actual wait is
            drawn from (election_ticks, 2 * election_ticks]); also the window of check-quorum.
        heartbeat_ticks: ticks between two heartbeat rounds; well below election_ticks.
        max_append_bytes: data bytes in one append message (one entry always fits).
        max_inflight_count: append messages to one peer that are not yet acknowledged.
        max_inflight_bytes: data bytes of the same.
        max_uncommitted_bytes: data bytes that a leader takes in and that are not yet committed and on its own disk.
        max_unapplied_bytes: data bytes handed out as committed and not yet reported by applied_to().
        holds_commit_notices: followers hear of a commit with the next append or heartbeat, or when
            Raft.release_notices() is called; otherwise by a message of its own as soon as nothing is in flight.
        asks_holds: as the leader, ask the voters to hold their votes, for a lease (holds.py).
        vote_hold_ms: what this node surely holds its vote for when it is asked to: less than election_ticks take.
        holds_vote_at_start: it may have granted a hold before it started, if it has taken part at all.
    """

    node_id: int
    election_ticks: int = limits.ELECTION_TIMEOUT_TICKS
    heartbeat_ticks: int = limits.HEARTBEAT_TICKS
    max_append_bytes: int = limits.MAX_APPEND_BYTES
    max_inflight_count: int = limits.MAX_INFLIGHT_APPENDS_COUNT
    max_inflight_bytes: int = limits.MAX_INFLIGHT_APPEND_BYTES
    max_uncommitted_bytes: int = limits.MAX_UNCOMMITTED_BYTES
    max_unapplied_bytes: int = limits.MAX_UNAPPLIED_BYTES
    holds_commit_notices: bool = False
    asks_holds: bool = False
    vote_hold_ms: int = 0
    holds_vote_at_start: bool = False


class ReadState(NamedTuple):
    """A strong read may be served once the state has applied `index`; `context` is the caller's own number."""

    context: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs


class SnapshotMeta(NamedTuple):
    """A snapshot replaces the log up to `index`; `membership` is the one in force there."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    term: int
    membership: Membership


class Ready(NamedTuple):
    """All that the core wants done. The contract, in this order:

    1. Send `messages` at once.
    2. If there is a `snapshot`: install its state durably, and reset the log to begin after it.
    3. Persist `entries` and `hard_state`, with one fsync when `must_sync`. A conflicting tail of the log is
       truncated durably before anything is written over it. When `snapshot` and `hard_state` are None and
       `entries` is empty, the disk has no part in this Ready.
    4. Send `messages_after_persist`.
    5. Call `raft.persisted(ready)`.
    6. Apply `committed` in order, then call `raft.applied_to(last index)`; this may be long after the next Ready.

    The core may be stepped, ticked and proposed to between any two of these. One Ready is outstanding between
    ready() and persisted(); in that time urgent() still hands out what needs no disk.

    Why `messages` need not wait for the disk: they are a leader's appends, heartbeats and snapshots, which
    promise nothing about the sender's own disk (its own acknowledgement is counted in step 5, Ongaro's thesis,
    10.2.1, and its term was durable before its own vote counted); and answers to heartbeats, which say only
    "at this moment I knew of no later term". Votes, vote requests and acknowledgements of entries and snapshots
    are promises about the disk: they follow it. `committed` holds only entries that are persisted here already,
    so that the state never runs ahead of the log.
    """

    hard_state: HardState | None
    entries: list[Entry]
    must_sync: bool
    snapshot: SnapshotMeta | None
    committed: list[Entry]
    read_states: list[ReadState]
    messages: list[Message]
    messages_after_persist: list[Message]


class PeerProgress(NamedTuple):
    """What a leader knows of a peer; `state` is "probe", "replicate" or "snapshot"."""

    node_id: int
    match: int
    next: int
    state: str
    ticks_since_contact: int


class LogView(Protocol):
    """The persisted log, read only. Index 0 is before every log and has term 0."""

    def first_index(self) -> int:
        """The first index still held (last_index() + 1 when it holds none)."""

    def last_index(self) -> int:
        """The last persisted index."""

    def term(self, index: int) -> int | None:
        """The term of an entry, first_index() - 1 included; None when compacted or beyond the end."""

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low <= index < high, cut at max_bytes of data but at least one; [] if low is compacted."""
