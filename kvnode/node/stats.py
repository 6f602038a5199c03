"""What a node counts about itself: plain numbers, so that the hot path pays an addition and no more.

Nothing here knows Prometheus. The ops port reads these numbers when it is scraped (kvnode/api/metrics.py);
each has one writer, the node's loop, so there are no locks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# Bounds are upper ones, inclusive, as Prometheus has them. A duration of 1, 2 or 5 times a power of ten
# keeps the error of a quantile under a factor of 2.5 with few buckets.
LATENCY_BUCKETS_MS: tuple[float, ...] = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
LATE_BUCKETS_MS: tuple[float, ...] = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000, 600_000)
AGE_BUCKETS_MS: tuple[float, ...] = (50, 100, 200, 500, 700, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000)
COUNT_BUCKETS: tuple[float, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096)
SIZE_BUCKETS_BYTES: tuple[float, ...] = tuple(float(256 << 2 * step) for step in range(9))  # 256 B to 16 MiB


class Histogram:
    """A cumulative histogram over fixed bounds; `observe` costs a bisection and three additions.

    Args:
        bounds: inclusive upper bounds, ascending; values above the last fall into one more bucket.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_BUCKETS_MS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the unit that the histogram's name ends with."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def quantile(self, fraction: float) -> float:
        """The upper bound of the bucket that holds the quantile; 0 without values, infinity above the last bound."""
        wanted = fraction * self.count
        if not wanted:
            return 0.0
        seen = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return float("inf")


class Stats:
    """Counters (only ever added to), gauges (set to the present value) and histograms of one node.

    What can be read from the node at a scrape (term, role, indexes, lag) is not kept here a second time.
    """

    __slots__ = (
        "apply_ms",
        "batch_bytes",
        "batch_transactions",
        "check_failures",
        "commit_latency_ms",
        "conflicts_resent",
        "cron_late_ms",
        "elections",
        "eventual_latency_ms",
        "expired_keys",
        "forwarded",
        "forwarded_served",
        "fsync_ms",
        "held",
        "held_now",
        "leader_changes",
        "loop_lag_ms",
        "messages_dropped",
        "messages_received",
        "messages_sent",
        "operation_errors",
        "operations",
        "proposal_queue",
        "proposals",
        "read_age_ms",
        "read_latency_ms",
        "read_rounds",
        "reads_eventual",
        "reads_leased",
        "reads_onward",
        "reads_strong",
        "reads_too_stale",
        "sessions_open",
        "snapshot_resumed_bytes",
        "snapshot_sent_bytes",
        "snapshots_created",
        "snapshots_installed",
        "snapshots_sent",
        "step_downs",
        "watch_frames",
        "watch_resyncs",
        "watches",
        "watches_too_stale",
    )

    def __init__(self) -> None:
        # Writes.
        self.proposals = 0  # transactions that entered a batch
        self.check_failures = 0  # transactions refused by a failed check
        self.conflicts_resent = 0  # resends answered from the session's outcomes
        self.commit_latency_ms = Histogram()  # submit to answer, of writes
        self.cron_late_ms = Histogram(LATE_BUCKETS_MS)  # a tick's time to its firing
        self.batch_transactions = Histogram(COUNT_BUCKETS)
        self.batch_bytes = Histogram(SIZE_BUCKETS_BYTES)
        self.fsync_ms = Histogram()
        self.apply_ms = Histogram()
        self.proposal_queue = 0  # gauge
        # Reads.
        self.reads_strong = 0
        self.reads_eventual = 0
        self.read_rounds = 0  # ReadIndex rounds begun
        self.reads_leased = 0  # strong reads, and failed checks, that the leader lease has confirmed
        self.read_latency_ms = Histogram()  # submit to answer, of strong reads
        self.eventual_latency_ms = Histogram()  # submit to answer, of eventual reads answered here
        self.read_age_ms = Histogram(AGE_BUCKETS_MS)  # as said with each eventual read
        self.reads_onward = 0  # attempts to have another node answer an eventual read
        self.reads_too_stale = 0  # refused: no node was fresh enough
        # Gateway.
        self.operations = 0  # everything submitted to this node
        self.operation_errors = 0  # answered with an error
        self.forwarded = 0  # sent on to the leader
        self.forwarded_served = 0  # served for another node
        self.held = 0  # requests held while no leader was known
        self.held_now = 0  # gauge
        self.sessions_open = 0  # gauge: gRPC sessions connected here
        # Consensus.
        self.elections = 0  # campaigns begun by this node
        self.leader_changes = 0
        self.step_downs = 0
        self.messages_sent = 0
        self.messages_received = 0
        self.messages_dropped = 0
        self.snapshots_created = 0
        self.snapshots_sent = 0
        self.snapshot_sent_bytes = 0  # of all transfers, also of those that broke
        self.snapshots_installed = 0
        self.snapshot_resumed_bytes = 0  # not sent again, because a broken transfer had brought them
        # State.
        self.expired_keys = 0
        # Watch.
        self.watches = 0  # gauge
        self.watch_frames = 0
        self.watch_resyncs = 0
        self.watches_too_stale = 0  # ended: the state was older than they allow
        # The loop itself.
        self.loop_lag_ms = Histogram()
