"""The node's numbers in Prometheus' terms, gathered when they are asked for and at no other time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kvnode.api.ports import ServedNode
from kvnode.base.metrics import COUNTED, READ, Metric, MetricKind
from kvnode.node.stats import Histogram, Stats
from kvnode.proto.kv.v1 import admin_pb2

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
ROLES = ("leader", "follower", "candidate", "learner", "replica")

Samples = Mapping[tuple[str, ...], float]


class NodeCollector(Collector):
    """Reads a node at each scrape."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    def collect(self) -> Iterator[Family]:
        """Every metric of the catalogue, in its order."""
        for metric in COUNTED:
            yield _counted(metric, self._node.stats)
        status = self._node.status()
        values = _values(self._node, status)
        for metric in READ:
            if metric.name == "kvnode_info":
                yield _info(metric, status)
            else:
                yield _read(metric, values[metric.name])


class Metrics:
    """The text of /metrics for one node and what else it serves, from a registry of its own."""

    def __init__(self, node: ServedNode, collectors: Sequence[Collector] = ()) -> None:
        self._registry = CollectorRegistry()
        for collector in (NodeCollector(node), *collectors):
            self._registry.register(collector)

    def text(self) -> bytes:
        """The exposition, in the format that CONTENT_TYPE names."""
        return generate_latest(self._registry)


def _counted(metric: Metric, stats: Stats) -> Family:
    value = getattr(stats, metric.stat)
    if metric.kind is MetricKind.HISTOGRAM:
        return _histogram(metric, value)
    family = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    return family(metric.name, metric.help, value=value)


def _histogram(metric: Metric, histogram: Histogram) -> Family:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append((floatToGoString(bound), total))  # type: ignore[no-untyped-call]
    return HistogramMetricFamily(metric.name, metric.help, buckets=buckets, sum_value=histogram.sum)


def _info(metric: Metric, status: admin_pb2.StatusResponse) -> Family:
    own = status.self
    labels = {
        "node": own.name,
        "node_id": str(own.node_id),
        "region": own.region,
        "dc": own.dc,
        "cluster_id": status.cluster_id,
        "version": status.version,
    }
    family = GaugeMetricFamily(metric.name, metric.help, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _read(metric: Metric, samples: Samples) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for labels, value in samples.items():
        family.add_metric(list(labels), value)
    return family


def _values(node: ServedNode, status: admin_pb2.StatusResponse) -> dict[str, Samples]:
    """The samples of every metric that is read, by its name."""
    ready, _ = node.ready
    single: dict[str, float] = {
        "kvnode_ready": ready,
        "kvnode_problems_count": len(status.problems),
        "kvnode_term": status.term,
        "kvnode_epoch": status.epoch,
        "kvnode_leader_known": status.leader_id != 0,
        "kvnode_members_count": len(status.members),
        "kvnode_first_index": status.first_index,
        "kvnode_last_index": status.last_index,
        "kvnode_commit_index": status.commit_index,
        "kvnode_applied_index": status.applied_index,
        "kvnode_durable_applied_index": status.durable_applied_index,
        "kvnode_log_time_ms": status.log_time_ms,
        "kvnode_age_ms": status.age_ms,
        "kvnode_replication_lag_ms": status.lag_ms,
        "kvnode_replication_lag_entries_count": status.lag_entries,
        "kvnode_replication_stalled": status.replication_stalled,
        "kvnode_snapshot_waiting": status.HasField("snapshot_wait"),
        "kvnode_leader_lease_remaining_ms": (
            status.leader_lease.remaining_ms if status.HasField("leader_lease") else -1
        ),
        "kvnode_primary_lease_ms": status.primary_lease.lease_ms,
        "kvnode_primary_lease_remaining_ms": status.primary_lease.remaining_ms,
        "kvnode_promotions": status.primary_lease.promotions,
        "kvnode_clock_offset_ms": status.clock_offset_ms,
        "kvnode_resident_bytes": status.resident_bytes,
    }
    values: dict[str, Samples] = {name: {(): value} for name, value in single.items()}
    role = status.role if status.role in ROLES else "candidate"  # a pre-candidate is one too
    values["kvnode_role"] = {(name,): float(name == role) for name in ROLES}
    values["kvnode_peer_lag_entries_count"] = {(peer.name,): peer.lag_entries for peer in status.peers}
    values["kvnode_peer_last_contact_ms"] = {(peer.name,): peer.last_contact_ms for peer in status.peers}
    replicas, regions = status.replicas, status.regions
    values["kvnode_replica_lag_ms"] = {(each.name, each.region): each.lag_ms for each in replicas}
    values["kvnode_replica_lag_entries_count"] = {(each.name, each.region): each.lag_entries for each in replicas}
    values["kvnode_region_lag_ms"] = {(each.region,): each.lag_ms for each in regions}
    values["kvnode_region_lag_entries_count"] = {(each.region,): each.lag_entries for each in regions}
    ends = {("in" if each.incoming else "out", each.name): each for each in status.snapshots}
    values["kvnode_snapshot_moved_bytes"] = {end: each.moved_bytes for end, each in ends.items()}
    values["kvnode_snapshot_size_bytes"] = {end: each.size_bytes for end, each in ends.items()}
    return values
