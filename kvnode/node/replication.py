"""What the leader knows of the replica regions, and what follows when all of them are far behind.

Theory of operation. No commit waits for a replica, and the leader hears of none directly, unless one follows it: the
nodes that replicas follow tell it every HELD_INTERVAL_TICKS how far they are (`Held`). A row names the last moment, on
a leader's clock, of which the replica holds durably all that was committed by then; it comes from the heartbeat rounds
by which ages are counted (freshness.py), so that nothing is added to any write. A region is as far as its best node.
One that holds all that this leader has committed is current, however long ago it was heard: there is nothing to lose.

From there the lag of a region is how much of the acknowledged history would be lost with the primary one. When every
region lags more than `max_unreplicated_ms`, the replication is *stalled*: with the policy `alarm` the node says so,
with `stop` it holds writes (gateway.py) until a region has caught up. A region that this leader has not heard of counts
from when it first saw it among the members. A cluster without replicas never stalls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from kvnode.base.clock import Clock
from kvnode.codec.membership import Membership
from kvnode.node.ports import Held


class StallPolicy(StrEnum):
    """What is done when every replica region is too far behind."""

    ALARM = "alarm"  # writes go on; status and a metric say that more than allowed could be lost
    STOP = "stop"  # writes are held


class Committed(Protocol):
    """What is looked at of the core."""

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""

    @property
    def commit(self) -> int:
        """The commit index."""


class RegionLag(NamedTuple):
    """How far a region is behind."""

    region: str
    node_id: int  # of its node that is furthest; 0 = none was heard of
    durable_index: int
    lag_entries: int
    lag_ms: int
    silent_ms: int = 0  # since any of its nodes was heard of


@dataclass(slots=True)
class _Region:
    current_at_ms: int  # it held what was committed by then, or the first time that it was seen
    node_id: int = 0
    index: int = 0
    is_known: bool = False
    heard_at_ms: int = 0


class Replication:
    """The regions, as long as this node leads.

    Args:
        raft: this node's core.
        membership: the members, as of now.
        clock: its wall clock is the leader's.
        policy: what a stall means.
        max_unreplicated_ms: how far every region must be behind for one.
    """

    def __init__(
        self,
        raft: Committed,
        membership: Callable[[], Membership],
        clock: Clock,
        policy: StallPolicy,
        max_unreplicated_ms: int,
    ) -> None:
        self._raft = raft
        self._membership = membership
        self._clock = clock
        self.policy = policy
        self.max_unreplicated_ms = max_unreplicated_ms
        self._regions: dict[str, _Region] = {}
        self.is_stalled = False

    def take(self, rows: Sequence[Held]) -> None:
        """What a node says of the replicas that follow it."""
        if not self._raft.is_leader:
            return
        self._see_regions()
        region_of = {member.node_id: member.region for member in self._membership().replicas}
        now = self._clock.now_ms()
        for node_id, index, at_ms, silent_ms in rows:
            region = self._regions.get(region_of.get(node_id, ""))
            if region is None or not (at_ms or index >= self._raft.commit):
                continue
            if not region.is_known:
                region.is_known, region.current_at_ms = True, at_ms
            if index >= region.index:
                region.node_id, region.index = node_id, index
            region.current_at_ms = max(region.current_at_ms, at_ms)
            region.heard_at_ms = max(region.heard_at_ms, now - silent_ms)
        self._judge()

    def tick(self) -> None:
        """Time has passed."""
        if not self._raft.is_leader:
            self._regions.clear()
            self.is_stalled = False
            return
        self._see_regions()
        self._judge()

    def lags(self) -> list[RegionLag]:
        """Every replica region, by name; empty unless this node leads."""
        if self._raft.is_leader:
            self._judge()
        now, commit = self._clock.now_ms(), self._raft.commit
        return [
            RegionLag(
                region=name,
                node_id=r.node_id,
                durable_index=r.index,
                lag_entries=max(0, commit - r.index),
                lag_ms=max(0, now - r.current_at_ms),
                silent_ms=max(0, now - r.heard_at_ms) if r.is_known else 0,
            )
            for name, r in sorted(self._regions.items())
        ]

    @property
    def holds_writes(self) -> bool:
        """Whether the leader takes no writes now."""
        return self.is_stalled and self.policy is StallPolicy.STOP

    def sentence(self) -> str:
        """What a stall means, for people; empty without one."""
        if not self.is_stalled:
            return ""
        lags = ", ".join(f"{lag.region} by {lag.lag_ms / 1_000:.1f} s" for lag in self.lags())
        bound = f"every replica region is more than {self.max_unreplicated_ms / 1_000:g} s behind ({lags})"
        if self.policy is StallPolicy.STOP:
            return f"writes are held: {bound}; they go on once one has caught up"
        return f"{bound}: if the primary region were lost now, so would be what was written since"

    def _see_regions(self) -> None:
        now = self._clock.now_ms()
        names = {member.region: None for member in self._membership().replicas}
        for gone in [name for name in self._regions if name not in names]:
            del self._regions[gone]
        for name in names:
            self._regions.setdefault(name, _Region(now))

    def _judge(self) -> None:
        now, commit = self._clock.now_ms(), self._raft.commit
        for region in self._regions.values():
            if region.is_known and region.index >= commit:
                region.current_at_ms = max(region.current_at_ms, now)
        behind = [now - region.current_at_ms > self.max_unreplicated_ms for region in self._regions.values()]
        self.is_stalled = bool(behind) and all(behind)
