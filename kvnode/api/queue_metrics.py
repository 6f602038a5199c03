"""How the queues stand, for /metrics: read from this node's own state at each scrape.

The counters are replicated rows, so that every node shows the same and a new leader goes on where the old one was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kvnode.base import limits
from kvnode.codec.row import Row
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.queue import keys
from kvnode.node.push.stats import PushStats
from kvnode.node.queue.views import status_of

_LABELS = ("database", "queue")
_GAUGES = (
    ("kvnode_queue_waiting_count", "Messages that are due or delayed", "waiting_count"),
    ("kvnode_queue_in_flight_count", "Messages under a lease", "in_flight_count"),
    ("kvnode_queue_dead_count", "Dead letters that are kept", "dead_count"),
)
_COUNTERS = (
    ("kvnode_queue_enqueued", "Messages that came in", "enqueued_total"),
    (
        "kvnode_queue_delivered",
        "Messages claimed for consumers, with those that came back before their consumer saw them",
        "delivered_total",
    ),
    ("kvnode_queue_redelivered", "Those among them that a consumer had been given before", "redelivered_total"),
    ("kvnode_queue_acknowledged", "Messages that were handled", "acknowledged_total"),
    ("kvnode_queue_dead", "Messages that were given up", "dead_total"),
)


class QueueRows(Protocol):
    """The applied state."""

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        """See kvnode.machine.state_reader."""

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """See kvnode.machine.state_reader."""


class QueueStats(Collector):
    """The queues of one node's databases.

    Args:
        state: of the node.
        view: names the databases.
        now_ms: the node's clock.
        consumers: how many are connected to it.
        pushed: what it has pushed.
    """

    def __init__(
        self,
        state: QueueRows,
        view: DirectoryView,
        now_ms: Callable[[], int],
        consumers: Callable[[], int],
        pushed: PushStats,
    ) -> None:
        self._pushed = pushed
        self._state = state
        self._view = view
        self._now_ms = now_ms
        self._consumers = consumers

    def collect(self) -> Iterator[Family]:
        """Every metric, a sample for each queue."""
        gauges = {field: GaugeMetricFamily(name, what, labels=_LABELS) for name, what, field in _GAUGES}
        counters = {field: CounterMetricFamily(name, what, labels=_LABELS) for name, what, field in _COUNTERS}
        oldest = GaugeMetricFamily(
            "kvnode_queue_oldest_due_ms", "For how long the message that fell due first has waited", labels=_LABELS
        )
        for database in list(self._view.databases.values()):
            for row in self._state.scan(*keys.queue_bounds(database.number), limits.MAX_QUEUES_COUNT):
                name = keys.queue_of_key(row.key)
                labels = (database.name, name)
                status = status_of(name, row.value)
                for field, gauge in gauges.items():
                    gauge.add_metric(labels, getattr(status, field))
                for field, counter in counters.items():
                    counter.add_metric(labels, getattr(status, field))
                oldest.add_metric(labels, self._oldest_due_ms(database.number, name))
        yield from gauges.values()
        yield oldest
        yield from counters.values()
        yield self._pushes()
        yield GaugeMetricFamily("kvnode_queue_consumers_count", "Consumers connected to this node", self._consumers())

    def _pushes(self) -> Family:
        found = CounterMetricFamily(
            "kvnode_queue_pushed", "Requests by which this node pushed messages to a URL", labels=(*_LABELS, "result")
        )
        for (number, queue), pushed in list(self._pushed.queues.items()):
            database = self._view.databases.get(number)
            if database is not None:
                found.add_metric((database.name, queue, "ok"), pushed.ok)
                found.add_metric((database.name, queue, "failed"), pushed.failed)
        return found

    def _oldest_due_ms(self, database: int, name: str) -> int:
        first = self._state.scan_keys(keys.due_prefix(database, name), keys.due_end(database, name), 1)
        return max(0, self._now_ms() - keys.due_of_key(first[0])[0]) if first else 0
