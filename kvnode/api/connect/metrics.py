"""What KV Connect counts, in Prometheus' terms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kvnode.base.errors import KvError
from kvnode.node.stats import Histogram

_log = logging.getLogger(__name__)

METHODS = ("metadata", "snapshot_read", "atomic_write", "watch", "module", "listen", "settle", "enqueue")
_BOUNDS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000)


class ConnectStats(Collector):
    """Counts requests by method and status; asked by the ops port at each scrape."""

    def __init__(self) -> None:
        self.under_way = 0
        self.watches = 0
        self.listeners = 0
        self.connections_count: Callable[[], int] = lambda: 0
        self._unknown = 0
        self._requests: dict[tuple[str, int], int] = {}
        self._duration_ms = {method: Histogram(_BOUNDS_MS) for method in METHODS}
        self._received_bytes = dict.fromkeys(METHODS, 0)
        self._sent_bytes = dict.fromkeys(METHODS, 0)

    def unknown(self, error: KvError) -> None:
        """A write will never be answered."""
        self._unknown += 1
        _log.error("the outcome of a write over KV Connect cannot be known, so it stays unanswered: %s", error)

    def received(self, method: str, size_bytes: int) -> None:
        """A body has come in."""
        self._received_bytes[method] += size_bytes

    def sent(self, method: str, size_bytes: int) -> None:
        """A body, or a frame of one, goes out."""
        self._sent_bytes[method] += size_bytes

    def answered(self, method: str, status: int, duration_ms: float) -> None:
        """A request was answered; status 0 = its client left before."""
        key = (method, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        self._duration_ms[method].observe(duration_ms)

    def collect(self) -> Iterator[Family]:
        """Every metric of KV Connect."""
        requests = CounterMetricFamily(
            "kvnode_connect_requests",
            "Requests over KV Connect, by method and HTTP status",
            labels=("method", "status"),
        )
        for (method, status), count in sorted(self._requests.items()):
            requests.add_metric((method, str(status)), count)
        yield requests
        durations = HistogramMetricFamily(
            "kvnode_connect_request_duration_ms",
            "From a request's headers to its answer; of a watch, to its first frame",
            labels=("method",),
        )
        for method, histogram in self._duration_ms.items():
            durations.add_metric((method,), _cumulative(histogram), histogram.sum)
        yield durations
        for name, what, counts in (
            ("received", "Bodies of requests over KV Connect", self._received_bytes),
            ("sent", "Bodies of answers over KV Connect, frames of watches included", self._sent_bytes),
        ):
            family = CounterMetricFamily(f"kvnode_connect_{name}_bytes", what, labels=("method",))
            for method, size_bytes in counts.items():
                family.add_metric((method,), size_bytes)
            yield family
        yield GaugeMetricFamily(
            "kvnode_connect_under_way_count",
            "Requests not answered yet; one whose client has left stays until its outcome is known",
            self.under_way,
        )
        yield GaugeMetricFamily("kvnode_connect_connections_count", "Open connections", self.connections_count())
        yield GaugeMetricFamily("kvnode_connect_watches_count", "Open watches over KV Connect", self.watches)
        yield GaugeMetricFamily("kvnode_connect_listeners_count", "Listeners of queues over HTTP", self.listeners)
        yield CounterMetricFamily(
            "kvnode_connect_unknown_outcomes", "Writes whose outcome could not be known, left unanswered", self._unknown
        )


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Buckets, each with all that are smaller."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append((floatToGoString(bound), total))  # type: ignore[no-untyped-call]
    return buckets
