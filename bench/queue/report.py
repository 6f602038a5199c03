"""From measurements of queues to tables; pure functions over what run.py wrote."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

MIN_PER_SECOND = 3_000.0  # at TARGET_CALLERS, kvnode
MAX_HANDLED_P50_MS = 10.0  # from the enqueue until the handler has it, which does nothing here
TARGET_CALLERS = 64
MAX_LATE_P50_MS = 100.0
MAX_LATE_P99_MS = 1_000.0
MAX_MEMORY_BYTES_PER_WAITING = 50.0  # anonymous memory of a node, beyond what its caches take
CACHES_FULL_WAITING_COUNT = 100_000  # so many messages fill every cache of a node; growth is judged from there on


def rows(measurements: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The medians of the rounds, a row a system and number of messages in flight."""
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for item in measurements:
        rounds.setdefault((item["system"], item["callers"]), []).append(item)
    made = []
    for (system, callers), items in sorted(rounds.items(), key=lambda each: (each[0][1], each[0][0])):

        def middle(field: str, items: list[dict[str, Any]] = items) -> float:
            return float(statistics.median(item.get(field, 0.0) for item in items))

        row: dict[str, Any] = {
            "system": system, "in_flight": callers, "per_second": middle("operations_per_second"),
            "p50_ms": middle("p50_ms"), "p99_ms": middle("p99_ms"), "delivered_p50_ms": middle("delivered_p50_ms"),
            "delivered_p99_ms": middle("delivered_p99_ms"), "cpu_us": middle("server_cpu_us_per_operation"),
            "errors": sum(item["errors"] for item in items), "target": None, "met": None,
        }  # fmt: skip
        if (system, callers) == ("kvnode", TARGET_CALLERS):
            row["target"] = f">= {MIN_PER_SECOND:,.0f}/s, handled p50 <= {MAX_HANDLED_P50_MS:g} ms"
            row["met"] = row["per_second"] >= MIN_PER_SECOND and 0 < row["delivered_p50_ms"] <= MAX_HANDLED_P50_MS
        made.append(row)
    return made


def delay_rows(delays: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lateness by how many wait, judged."""
    return [{**item, "met": item["p50_ms"] <= MAX_LATE_P50_MS and item["p99_ms"] <= MAX_LATE_P99_MS} for item in delays]


def memory_growth(memory: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Anonymous bytes a node took for each message that waits, once its caches are full.

    They have sizes of their own (the state's pages, the log's newest entries) and fill with whatever is written, so
    what a node grows by before is no growth with the number of messages: it is not judged (None).
    """
    judged = [item for item in memory if item["waiting"] >= CACHES_FULL_WAITING_COUNT]
    if len(judged) < 2:
        return None
    before, after = judged[0], judged[-1]
    grown = [
        (later["anonymous_bytes"] - earlier["anonymous_bytes"]) / (after["waiting"] - before["waiting"])
        for earlier, later in zip(before["nodes"], after["nodes"], strict=True)
    ]
    worst = max(grown)
    return {
        "from": before["waiting"], "to": after["waiting"], "bytes_per_waiting_message": round(worst, 1),
        "met": worst <= MAX_MEMORY_BYTES_PER_WAITING,
    }  # fmt: skip


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    if result["table"]:
        table = Table(
            title="Messages through one queue: medians of the rounds; ms from the enqueue until a message is handled, "
            "and until its ack is confirmed (push: until it arrives)"
        )
        titles = ("system", "in flight", "messages/s", "handled p50", "p99", "acked p50", "p99", "CPU us", "target")
        for title in titles:
            table.add_column(title, justify="left" if title in ("system", "target") else "right")
        for row in result["table"]:
            delivered = [f"{row[name]:.2f}" if row[name] else "" for name in ("delivered_p50_ms", "delivered_p99_ms")]
            cells = [f"{row['per_second']:,.0f}", *delivered, f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.1f}"]
            errors = f" [red]{row['errors']} errors[/]" if row["errors"] else ""
            table.add_row(row["system"] + errors, str(row["in_flight"]), *cells, f"{row['cpu_us']:.0f}", _target(row))
        console.print(table)
    if result.get("delays"):
        table = Table("waiting", "late p50 ms", "p99", "max", "target", title="How late delayed messages come")
        target = f"p50 <= {MAX_LATE_P50_MS:g}, p99 <= {MAX_LATE_P99_MS:g}"
        for row in result["delays"]:
            late = [f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")]
            table.add_row(f"{row['waiting']:,}", *late, _target({**row, "target": target}))
        console.print(table)
    if result.get("memory"):
        table = Table("waiting", "anonymous memory of the nodes, MB", title="Memory for messages that wait")
        for item in result["memory"]:
            sizes = ", ".join(f"{node['anonymous_bytes'] / 1e6:.1f}" for node in item["nodes"])
            table.add_row(f"{item['waiting']:,}", sizes)
        console.print(table)
        growth = result["memory_growth"]
        if growth is None:
            console.print(f"not judged: two steps of {CACHES_FULL_WAITING_COUNT:,} and more are needed (--waiting)")
        else:
            console.print(f"{growth['bytes_per_waiting_message']} bytes a message {_target({**growth, 'target': ''})}")


def _target(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return ""
    return f"{row['target']} [green]met[/]" if row["met"] else f"{row['target']} [red]missed[/]"
