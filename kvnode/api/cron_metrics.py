"""How the crons stand, for /metrics: read from this node's own state at each scrape, as the queues are."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kvnode.api.queue_metrics import QueueRows
from kvnode.base import limits
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.queue import keys
from kvnode.node.queue.cron_views import cron_status

_LABELS = ("database", "cron")
_COUNTERS = (
    ("kvnode_cron_fired", "Ticks that sent their message", "fired_total"),
    ("kvnode_cron_skipped", "Ticks at which the message of the one before was not handled yet", "skipped_total"),
    ("kvnode_cron_missed", "Ticks passed over by one that was fired late", "missed_total"),
)


class CronStats(Collector):
    """The crons of one node's databases.

    Args:
        state: of the node.
        view: names the databases.
    """

    def __init__(self, state: QueueRows, view: DirectoryView) -> None:
        self._state = state
        self._view = view

    def collect(self) -> Iterator[Family]:
        """Every metric, a sample for each cron."""
        counters = {field: CounterMetricFamily(name, what, labels=_LABELS) for name, what, field in _COUNTERS}
        blocked = GaugeMetricFamily(
            "kvnode_cron_blocked", "1 while a cron's message finds no room in its queue", labels=_LABELS
        )
        for database in list(self._view.databases.values()):
            for row in self._state.scan(*keys.cron_bounds(database.number), limits.MAX_CRONS_COUNT):
                name = keys.cron_of_key(row.key)
                labels = (database.name, name)
                status = cron_status(name, row.value)
                for field, counter in counters.items():
                    counter.add_metric(labels, getattr(status, field))
                blocked.add_metric(labels, bool(status.blocked_by))
        yield from counters.values()
        yield blocked
