"""What a node is told at its start; it changes only with a restart."""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.base import limits
from kvnode.node.replication import StallPolicy


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Who the node is, and how patient. Counts of ticks are multiples of `tick_ms`."""

    node_id: int
    name: str
    region: str
    dc: str
    address: str
    cluster_id: str
    epoch: int = 1
    replica: bool = False  # it was adopted as one; counts until its log says what it is
    tick_ms: int = limits.TICK_MS
    leader_lease: bool = False
    election_ticks: int = limits.ELECTION_TIMEOUT_TICKS
    heartbeat_ticks: int = limits.HEARTBEAT_TICKS
    max_clock_offset_ms: int = limits.MAX_CLOCK_OFFSET_MS
    log_retention_bytes: int = limits.LOG_RETENTION_BYTES
    log_retention_age_ms: int = 0  # 0 = by size alone
    on_replication_stall: StallPolicy = StallPolicy.ALARM
    max_unreplicated_ms: int = limits.MAX_UNREPLICATED_MS
    automatic_promotion: bool = False
    primary_lease_ms: int = limits.PRIMARY_LEASE_MS
    operation_timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS

    @property
    def vote_hold_ms(self) -> int:
        """For how long the node surely holds its vote for a leader lease: the first tick may come at once."""
        return (self.election_ticks - 1) * self.tick_ms
