"""From measurements to one table of ratios; pure functions over what run.py wrote."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

MODE_TITLES = {
    "put": "put",
    "cas": "check and set",
    "get": "strong get",
    "stale": "eventual get",
}
# (mode, callers) -> the least ratio kvnode / etcd in operations a second, over Session.
TARGETS = {
    ("put", 16): 1.0,
    ("put", 64): 1.0,
    ("put", 256): 1.0,
    ("cas", 64): 2.0,
    ("get", 64): 1.0,
    ("stale", 64): 1.5,
}
MAX_P50_RATIO_OF_ONE_CALLER_PUT = 1.0
MAX_RESIDENT_RATIO = 1.0
MAX_RESTART_S = 5.0


class Median(NamedTuple):
    """The medians of one setting's rounds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    errors: int


Medians = dict[tuple[str, str, str, int], Median]
"""By (system, transport, mode, callers)."""


def medians(measurements: Iterable[dict[str, Any]]) -> Medians:
    """Group the rounds."""
    rounds: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for item in measurements:
        rounds.setdefault((item["system"], item["transport"], item["mode"], item["callers"]), []).append(item)
    return {setting: _median(items) for setting, items in rounds.items()}


def _median(items: Sequence[dict[str, Any]]) -> Median:
    def middle(field: str) -> float:
        return float(statistics.median(item.get(field, 0.0) for item in items))

    return Median(
        middle("operations_per_second"),
        middle("p50_ms"),
        middle("p99_ms"),
        middle("server_cpu_us_per_operation"),
        sum(item["errors"] for item in items),
    )


def rows(found: Medians) -> list[dict[str, Any]]:
    """One row a setting of another system than etcd, beside etcd's of the same mode and callers."""
    made = []
    for (system, transport, mode, callers), median in found.items():
        base = found.get(("etcd", "unary", mode, callers))
        if system == "etcd" or base is None or not base.per_second or not median.per_second:
            continue
        target = TARGETS.get((mode, callers)) if transport == "session" else None
        ratio = median.per_second / base.per_second
        row = {
            "system": system, "transport": transport, "mode": mode, "callers": callers,
            "per_second": median.per_second, "etcd_per_second": base.per_second, "ratio": ratio,
            "p50_ms": median.p50_ms, "etcd_p50_ms": base.p50_ms, "p99_ms": median.p99_ms, "etcd_p99_ms": base.p99_ms,
            "cpu_us": median.cpu_us, "etcd_cpu_us": base.cpu_us, "errors": median.errors,
            "target": None if target is None else f">= {target:g}x", "met": None if target is None else ratio >= target,
        }  # fmt: skip
        if (transport, mode, callers) == ("session", "put", 1):
            row["target"] = f"p50 <= {MAX_P50_RATIO_OF_ONE_CALLER_PUT:g}x"
            row["met"] = median.p50_ms <= MAX_P50_RATIO_OF_ONE_CALLER_PUT * base.p50_ms
        made.append(row)
    order = {"session": 0, "unary": 1, "streams": 2, "connections": 3}
    return sorted(made, key=lambda row: (order[row["transport"]], list(MODE_TITLES).index(row["mode"]), row["callers"]))


def extras(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory and restart, in the form of rows."""
    made = []
    memory = result.get("memory") or {}
    if {"etcd", "kvnode"} <= memory.keys():
        ours, theirs = memory["kvnode"]["resident_bytes"], memory["etcd"]["resident_bytes"]
        made.append(_extra(f"resident memory, {memory['keys_count']:,} keys, MB", ours / 1e6, theirs / 1e6, "<= 1x",
                           ours <= MAX_RESIDENT_RATIO * theirs))  # fmt: skip
    restart = result.get("restart") or {}
    if "kvnode" in restart:
        seconds = restart["kvnode"]
        target, met = f"<= {MAX_RESTART_S:g} s", seconds <= MAX_RESTART_S
        made.append(_extra(f"restart, {restart['keys_count']:,} keys, s", seconds, restart.get("etcd"), target, met))
    return made


def _extra(what: str, ours: float, theirs: float | None, target: str, met: bool) -> dict[str, Any]:
    return {"what": what, "kvnode": ours, "etcd": theirs, "target": target, "met": met}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table(title="kvnode / etcd: medians of the rounds; latency in ms; CPU of all servers in us an operation")
    for title in ("system", "operation", "callers"):
        table.add_column(title)
    for title in ("ops/s", "etcd", "ratio", "p50", "etcd", "p99", "etcd", "CPU", "etcd", "target"):
        table.add_column(title, justify="right")
    before = ""
    for row in result["table"]:
        system = f"{row['system']} {row['transport']}"
        if before and system != before:
            table.add_section()
        before = system
        table.add_row(*_cells(system, row))
    if result["table"]:
        console.print(table)
    if result["extras"]:
        extra = Table("", "kvnode", "etcd", "target")
        for item in result["extras"]:
            theirs = "" if item["etcd"] is None else f"{item['etcd']:.1f}"
            extra.add_row(item["what"], f"{item['kvnode']:.1f}", theirs, _target(item))
        console.print(extra)


def _cells(system: str, row: dict[str, Any]) -> list[str]:
    errors = f" [red]{row['errors']} errors[/]" if row["errors"] else ""
    return [
        system,
        MODE_TITLES[row["mode"]] + errors,
        str(row["callers"]),
        f"{row['per_second']:,.0f}",
        f"{row['etcd_per_second']:,.0f}",
        f"{row['ratio']:.2f}",
        f"{row['p50_ms']:.2f}",
        f"{row['etcd_p50_ms']:.2f}",
        f"{row['p99_ms']:.1f}",
        f"{row['etcd_p99_ms']:.1f}",
        f"{row['cpu_us']:.0f}",
        f"{row['etcd_cpu_us']:.0f}",
        _target(row),
    ]


def _target(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return ""
    return f"{row['target']} [green]met[/]" if row["met"] else f"{row['target']} [red]missed[/]"
