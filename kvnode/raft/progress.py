"""What a leader knows of one peer, and how fast it may send to it.

Theory of operation (etcd-io/raft, progress). A peer is in one of three states:

    probe      the leader does not know where the logs meet: one append at a time, then wait
    replicate  they have met: appends are pipelined optimistically, bounded by count and by bytes in flight
    snapshot   the peer needs entries that were compacted: nothing is sent until the snapshot is reported

Acknowledged in probe -> replicate. Rejected, or unreachable, in replicate -> probe. Compacted -> snapshot, and
back to probe when it is reported. `match` is a fact and never moves back; `next` is a guess.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from kvnode.raft.types import RaftConfig


class PeerState(Enum):
    """How appends flow to a peer."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One peer's progress. Ticks are the leader's own count since it was elected."""

    __slots__ = (
        "_inflight",
        "_inflight_bytes",
        "acked_round",
        "contact_tick",
        "hold_ms",
        "leaving_index",
        "match",
        "match_at_heartbeat",
        "next",
        "node_id",
        "nudge",
        "paused",
        "sent_commit",
        "snapshot_index",
        "stalled",
        "state",
    )

    def __init__(self, node_id: int, next_index: int, tick: int) -> None:
        self.node_id = node_id
        self.match = 0
        self.next = next_index
        self.state = PeerState.PROBE
        self.paused = False  # probe: one append is on its way
        self.stalled = False  # match stood still between two heartbeats, with something unacknowledged or in PROBE
        self.nudge = False  # send an empty append, to learn whether the last ones were lost
        self.contact_tick = tick
        self.acked_round = 0
        self.hold_ms = 0  # for how long it holds its vote, as it said with that round
        self.sent_commit = 0
        self.snapshot_index = 0
        self.match_at_heartbeat = -1
        self.leaving_index = 0  # removed from the membership by this entry; served until it knows
        self._inflight: deque[tuple[int, int]] = deque()  # (last index, bytes) of each append on its way
        self._inflight_bytes = 0

    def become_probe(self) -> None:
        """Look for the place where the logs meet, from the last known match or snapshot."""
        self._reset(PeerState.PROBE)
        self.next = max(self.match, self.snapshot_index) + 1
        self.snapshot_index = 0
        self.sent_commit = 0

    def become_replicate(self) -> None:
        """The logs have met at `match`: pipeline."""
        self._reset(PeerState.REPLICATE)
        self.next = self.match + 1
        self.snapshot_index = 0

    def become_snapshot(self, index: int) -> None:
        """Wait for a snapshot at `index` or later."""
        self._reset(PeerState.SNAPSHOT)
        self.snapshot_index = index

    def _reset(self, state: PeerState) -> None:
        self.state = state
        self.paused = self.stalled = self.nudge = False
        self._inflight.clear()
        self._inflight_bytes = 0

    def can_send(self, config: RaftConfig) -> bool:
        """Whether flow control lets another append with entries go."""
        if self.state is PeerState.REPLICATE:
            inflight = self._inflight
            return len(inflight) < config.max_inflight_count and self._inflight_bytes < config.max_inflight_bytes
        return self.state is PeerState.PROBE and not self.paused

    def sent(self, last_index: int, count: int, size_bytes: int) -> None:
        """An append of `count` entries up to last_index goes out."""
        if self.state is PeerState.PROBE:
            self.paused = True
        elif count:
            self.next = last_index + 1
            self._inflight.append((last_index, size_bytes))
            self._inflight_bytes += size_bytes

    def acknowledge(self, index: int) -> bool:
        """The peer has persisted everything up to `index`. Returns whether that was news."""
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            self._inflight_bytes -= inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        return True

    def reject(self, rejected: int, hint: int) -> bool:
        """The peer has no entry that matches at `rejected`, but may have one at `hint`. False when stale."""
        if self.state is PeerState.REPLICATE:
            if rejected <= self.match:
                return False
            self.become_probe()
            return True
        if self.state is not PeerState.PROBE or self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.paused = False
        return True
