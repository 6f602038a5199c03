"""Grafana's overview dashboard: one table of panels and their queries, from which compose.py writes the JSON.

A test holds every query against the metrics of live nodes; `make compose-check` has Prometheus itself run them.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

DATASOURCE_UID = "kvnode-prometheus"
RATE_INTERVAL = "$__rate_interval"
_COLUMNS_COUNT = 24  # of Grafana's grid
_STAT_HEIGHT, _GRAPH_HEIGHT = 4, 8


class Query(NamedTuple):
    """An expression and the legend of its series."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """One panel. `kind` is Grafana's type; `unit` one of its units."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 12
    description: str = ""


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[{RATE_INTERVAL}]))"


def _quantile(fraction: float, histogram: str, by: str = "le") -> str:
    return f"histogram_quantile({fraction:g}, {_rate(f'{histogram}_bucket', by)})"


PANELS: tuple[Panel, ...] = (
    Panel("Nodes up", "short", (Query('sum(up{job="kvnode"})', "up"),), "stat", 3),
    Panel("Nodes ready", "short", (Query("sum(kvnode_ready)", "ready"),), "stat", 3),
    Panel("Leader", "short", (Query('kvnode_role{role="leader"} == 1', "{{node}}"),), "stat", 8),
    Panel("Term", "short", (Query("max(kvnode_term)", "term"),), "stat", 3),
    Panel("Epoch", "short", (Query("max(kvnode_epoch)", "epoch"),), "stat", 3),
    Panel("Problems", "short", (Query("sum(kvnode_problems_count)", "problems"),), "stat", 4),
    Panel(
        "Writes a second",
        "ops",
        (Query(_rate("kvnode_proposals_total", "node"), "{{node}}"),),
        description="Transactions that entered the log, at the node that led.",
    ),
    Panel(
        "Reads a second",
        "ops",
        (
            Query(_rate("kvnode_reads_eventual_total", "region"), "eventual, {{region}}"),
            Query(_rate("kvnode_reads_strong_total", "region"), "strong, {{region}}"),
        ),
        description="Each where it was answered: strong reads by the leader, eventual ones by any node.",
    ),
    Panel(
        "Commit latency",
        "ms",
        (
            Query(_quantile(0.5, "kvnode_commit_latency_ms"), "p50"),
            Query(_quantile(0.99, "kvnode_commit_latency_ms"), "p99"),
        ),
        description="From a write's arrival at the leader to its answer.",
    ),
    Panel(
        "Lag by region",
        "ms",
        (Query("max by (region) (kvnode_replication_lag_ms)", "{{region}}"),),
        description="Age of the applied state by the clocks, at the region's worst node; -1 is not known.",
    ),
    Panel(
        "Age of eventual reads by region, bound",
        "ms",
        (Query("max by (region) (kvnode_age_ms)", "{{region}}"),),
        description="What the region's worst node promises: lag and the allowed offset of clocks; -1 is not known.",
    ),
    Panel(
        "Lag by region, entries",
        "short",
        (Query("scalar(max(kvnode_commit_index)) - min by (region) (kvnode_applied_index)", "{{region}}"),),
        description="Entries of the log that the region's worst node has not applied yet.",
    ),
    Panel(
        "Leader and term",
        "short",
        (
            Query('max by (node) (kvnode_role{role="leader"})', "{{node}} leads"),
            Query("max by (region) (kvnode_term)", "term, {{region}}"),
        ),
    ),
    Panel(
        "Queue depth",
        "short",
        (
            Query("max by (database, queue) (kvnode_queue_waiting_count)", "waiting, {{database}} {{queue}}"),
            Query("max by (database, queue) (kvnode_queue_in_flight_count)", "in flight, {{database}} {{queue}}"),
            Query("max by (database, queue) (kvnode_queue_dead_count)", "dead, {{database}} {{queue}}"),
        ),
        description="Messages; every node shows the same numbers.",
    ),
    Panel(
        "Operations that wait",
        "short",
        (
            Query("sum by (node) (kvnode_proposal_queue_count)", "for a batch, {{node}}"),
            Query("sum by (node) (kvnode_held_count)", "for a leader, {{node}}"),
        ),
    ),
    Panel("fsync p99", "ms", (Query(_quantile(0.99, "kvnode_fsync_ms", "node, le"), "{{node}}"),)),
    Panel("Event loop lag p99", "ms", (Query(_quantile(0.99, "kvnode_loop_lag_ms", "node, le"), "{{node}}"),)),
    Panel(
        "KV Connect requests a second",
        "ops",
        (Query(_rate("kvnode_connect_requests_total", "region, method"), "{{method}}, {{region}}"),),
    ),
    Panel("Memory", "bytes", (Query("kvnode_resident_bytes", "{{node}}"),)),
)


def expressions() -> list[str]:
    """Every query of the dashboard, as Grafana sends it but for the interval."""
    return [query.expression for panel in PANELS for query in panel.queries]


def dashboard_text() -> str:
    """overview.json."""
    document = {
        "uid": "kvnode-overview",
        "title": "kvnode overview",
        "tags": ["kvnode"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "panels": _placed(),
    }
    return json.dumps(document, indent=2) + "\n"


def _placed() -> list[dict[str, Any]]:
    """The panels from left to right, and on to the next row where one does not fit."""
    placed, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(PANELS, 1):
        height = _STAT_HEIGHT if panel.kind == "stat" else _GRAPH_HEIGHT
        if x + panel.width > _COLUMNS_COUNT:
            x, y, row_height = 0, y + row_height, 0
        placed.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height}))
        x, row_height = x + panel.width, max(row_height, height)
    return placed


def _panel(panel: Panel, number: int, position: dict[str, int]) -> dict[str, Any]:
    datasource = {"type": "prometheus", "uid": DATASOURCE_UID}
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": datasource,
            "expr": query.expression,
            "legendFormat": query.legend,
        }
        for index, query in enumerate(panel.queries)
    ]
    options: dict[str, Any] = {}
    if panel.kind == "stat":
        options = {
            "textMode": "name" if panel.title == "Leader" else "value",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": datasource,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": options,
        "targets": targets,
    }
