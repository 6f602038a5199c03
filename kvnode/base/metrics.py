"""The catalogue of metrics: every name that the ops port may show, with what it means.

docs/reference/metrics.md names each of them; a test holds the two together.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class MetricKind(str, Enum):
    """As in Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric. A counter's name is shown with `_total` behind it."""

    name: str
    kind: MetricKind
    help: str
    stat: str = ""  # the attribute of kvnode.node.stats.Stats that holds it; empty = read from the node's status
    labels: tuple[str, ...] = ()


_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

# Counted by the node.
COUNTED: tuple[Metric, ...] = (
    Metric(
        "kvnode_operations", _C, "Operations that came to this node, those that others sent on to it too.", "operations"
    ),
    Metric(
        "kvnode_operation_errors",
        _C,
        "Those among them that were refused on arrival, before any read or batch.",
        "operation_errors",
    ),
    Metric("kvnode_proposals", _C, "Transactions that entered a batch of the log.", "proposals"),
    Metric("kvnode_check_failures", _C, "Transactions that changed nothing because a check failed.", "check_failures"),
    Metric("kvnode_resends_answered", _C, "Resent writes answered from the first copy's outcome.", "conflicts_resent"),
    Metric("kvnode_commit_latency_ms", _H, "From a write's arrival to its answer, at the leader.", "commit_latency_ms"),
    Metric("kvnode_batch_transactions", _H, "Transactions in one entry of the log.", "batch_transactions"),
    Metric("kvnode_batch_bytes", _H, "Size of one entry of the log.", "batch_bytes"),
    Metric("kvnode_fsync_ms", _H, "Time of one append to the log with its fsync.", "fsync_ms"),
    Metric("kvnode_apply_ms", _H, "Time to apply one run of entries to the state.", "apply_ms"),
    Metric("kvnode_proposal_queue_count", _G, "Writes that wait for a batch.", "proposal_queue"),
    Metric("kvnode_reads_strong", _C, "Strong reads answered here.", "reads_strong"),
    Metric("kvnode_reads_eventual", _C, "Eventual reads answered here, and first states of watches.", "reads_eventual"),
    Metric("kvnode_read_rounds", _C, "ReadIndex rounds begun.", "read_rounds"),
    Metric(
        "kvnode_reads_leased", _C, "Strong reads, and failed checks, that the leader lease confirmed.", "reads_leased"
    ),
    Metric(
        "kvnode_read_latency_ms", _H, "From a strong read's arrival to its answer, at the leader.", "read_latency_ms"
    ),
    Metric(
        "kvnode_eventual_read_latency_ms",
        _H,
        "From an eventual read's arrival to its answer, at the node that answers.",
        "eventual_latency_ms",
    ),
    Metric("kvnode_read_age_ms", _H, "Age of the state, as said with each eventual read.", "read_age_ms"),
    Metric("kvnode_reads_onward", _C, "Attempts to have another node answer an eventual read.", "reads_onward"),
    Metric("kvnode_reads_too_stale", _C, "Eventual reads refused: no node was fresh enough.", "reads_too_stale"),
    Metric("kvnode_forwarded", _C, "Operations sent on to the leader.", "forwarded"),
    Metric(
        "kvnode_forwarded_served",
        _C,
        "Operations that another node sent here; both nodes count them as come.",
        "forwarded_served",
    ),
    Metric("kvnode_held", _C, "Operations held because no leader was known.", "held"),
    Metric("kvnode_held_count", _G, "Operations held at present.", "held_now"),
    Metric("kvnode_sessions_count", _G, "Session streams open at present.", "sessions_open"),
    Metric("kvnode_elections", _C, "Campaigns that this node began.", "elections"),
    Metric("kvnode_leader_changes", _C, "Changes of leader that this node saw.", "leader_changes"),
    Metric("kvnode_step_downs", _C, "Times that this node gave up leadership because of its clock.", "step_downs"),
    Metric("kvnode_peer_messages_sent", _C, "Raft messages handed to the transport.", "messages_sent"),
    Metric("kvnode_peer_messages_received", _C, "Raft messages that arrived.", "messages_received"),
    Metric("kvnode_peer_messages_dropped", _C, "Raft messages without an open stream or room.", "messages_dropped"),
    Metric("kvnode_snapshots_created", _C, "Snapshots made.", "snapshots_created"),
    Metric("kvnode_snapshots_sent", _C, "Snapshots that a peer installed.", "snapshots_sent"),
    Metric(
        "kvnode_snapshot_sent_bytes",
        _C,
        "Bytes of snapshots sent to peers, those of broken transfers included.",
        "snapshot_sent_bytes",
    ),
    Metric("kvnode_snapshots_installed", _C, "Snapshots installed here.", "snapshots_installed"),
    Metric("kvnode_cron_late_ms", _H, "From a cron's tick to its firing, at the leader.", "cron_late_ms"),
    Metric(
        "kvnode_snapshot_resumed_bytes",
        _C,
        "Bytes of snapshots that a broken transfer had brought already.",
        "snapshot_resumed_bytes",
    ),
    Metric("kvnode_expired_keys", _C, "Keys deleted because their time had come.", "expired_keys"),
    Metric("kvnode_watches_count", _G, "Watches open at present.", "watches"),
    Metric("kvnode_watch_frames", _C, "Frames handed to watchers.", "watch_frames"),
    Metric("kvnode_watch_resyncs", _C, "Frames that told a watcher to read its range anew.", "watch_resyncs"),
    Metric(
        "kvnode_watches_too_stale",
        _C,
        "Watches ended because the state was older than they allow.",
        "watches_too_stale",
    ),
    Metric("kvnode_loop_lag_ms", _H, "How late the event loop was for a tick.", "loop_lag_ms"),
)

# Read from the node when it is scraped; the key is what api/metrics.py computes.
READ: tuple[Metric, ...] = (
    Metric("kvnode_info", _G, "Always 1; names the node in its labels."),
    Metric("kvnode_ready", _G, "1 when the node serves, as /readyz says."),
    Metric("kvnode_problems_count", _G, "Problems that the node sees; `kvnode status` names them."),
    Metric(
        "kvnode_role",
        _G,
        "1 for the node's role: `leader`, `follower` or `candidate` for a voter, else `learner` or `replica`.",
        labels=("role",),
    ),
    Metric("kvnode_term", _G, "Raft term."),
    Metric("kvnode_epoch", _G, "Epoch."),
    Metric("kvnode_leader_known", _G, "1 when a leader is known."),
    Metric("kvnode_members_count", _G, "Members of the cluster."),
    Metric("kvnode_first_index", _G, "First index that the log still holds."),
    Metric("kvnode_last_index", _G, "Last index in the log."),
    Metric("kvnode_commit_index", _G, "Highest index known to be committed."),
    Metric("kvnode_applied_index", _G, "Last index applied to the state."),
    Metric("kvnode_durable_applied_index", _G, "Last index whose effect on the state is durable by itself."),
    Metric("kvnode_log_time_ms", _G, "Log time of the state, milliseconds since 1970."),
    Metric("kvnode_age_ms", _G, "Upper bound on the age of an eventual read; -1 = not known."),
    Metric("kvnode_replication_lag_ms", _G, "Age of the applied state by the clocks alone; -1 = not known."),
    Metric("kvnode_replication_lag_entries_count", _G, "Entries committed, as far as is known here, and not applied."),
    Metric("kvnode_replication_stalled", _G, "1 when every replica region is too far behind; told by the leader."),
    Metric(
        "kvnode_leader_lease_remaining_ms",
        _G,
        "Of the lease under which strong reads ask no voter; 0 = they ask; -1 = not the leader, or not so configured.",
    ),
    Metric("kvnode_primary_lease_ms", _G, "The primary lease that is in force in the cluster; 0 = none."),
    Metric(
        "kvnode_primary_lease_remaining_ms",
        _G,
        "Of the leader's lease; 0 = run out, it answers nothing strong; -1 = this node does not lead, or needs none.",
    ),
    Metric("kvnode_promotions", _G, "Automatic promotions that this node has coordinated since its start."),
    Metric("kvnode_clock_offset_ms", _G, "This clock less the voters' median, or all members'."),
    Metric("kvnode_resident_bytes", _G, "Resident memory of the process."),
    Metric("kvnode_peer_lag_entries_count", _G, "Entries that a peer lacks; shown by the leader.", labels=("peer",)),
    Metric("kvnode_peer_last_contact_ms", _G, "Since a peer's last message; shown by the leader.", labels=("peer",)),
    Metric(
        "kvnode_replica_lag_ms",
        _G,
        "Since a replica that follows this node held all that was committed; -1 = not known.",
        labels=("peer", "region"),
    ),
    Metric(
        "kvnode_replica_lag_entries_count",
        _G,
        "Entries that a replica which follows this node does not hold.",
        labels=("peer", "region"),
    ),
    Metric("kvnode_region_lag_ms", _G, "What the loss of all else would cost; told by the leader.", labels=("region",)),
    Metric(
        "kvnode_region_lag_entries_count",
        _G,
        "Entries that a replica region does not hold; told by the leader.",
        labels=("region",),
    ),
    Metric(
        "kvnode_snapshot_moved_bytes",
        _G,
        "How much of a snapshot has come (in) or gone (out).",
        labels=("direction", "peer"),
    ),
    Metric("kvnode_snapshot_size_bytes", _G, "Its size.", labels=("direction", "peer")),
    Metric("kvnode_snapshot_waiting", _G, "1 while a replica leaves it to a neighbour to fetch a snapshot."),
)

CATALOGUE: tuple[Metric, ...] = COUNTED + READ
