"""The table of ratios."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from bench import report


def item(system: str, transport: str, per_second: float, **more: Any) -> dict[str, Any]:
    return {
        "system": system, "transport": transport, "mode": "put", "callers": 64, "operations_per_second": per_second,
        "p50_ms": 2.0, "p99_ms": 5.0, "server_cpu_us_per_operation": 100.0, "errors": 0, **more,
    }  # fmt: skip


def test_medians_ratios_and_targets() -> None:
    measurements = [item("etcd", "unary", rate) for rate in (900, 1_000, 5_000)]
    measurements += [item("kvnode", "session", rate) for rate in (500, 2_500, 2_600)]
    measurements += [item("kvnode", "unary", 100, errors=1)]
    rows = report.rows(report.medians(measurements))
    assert [(row["transport"], row["ratio"], row["target"], row["met"]) for row in rows] == [
        ("session", 2.5, ">= 1x", True),
        ("unary", 0.1, None, None),
    ]
    assert rows[1]["errors"] == 1


def test_a_single_callers_put_is_held_to_its_latency() -> None:
    measurements = [item("etcd", "unary", 10, callers=1), item("kvnode", "session", 10, callers=1, p50_ms=2.1)]
    (row,) = report.rows(report.medians(measurements))
    assert (row["target"], row["met"]) == ("p50 <= 1x", False)


def test_shows_everything() -> None:
    result: dict[str, Any] = {
        "table": report.rows(report.medians([item("etcd", "unary", 100), item("kvnode", "session", 90)])),
        "memory": {
            "keys_count": 100_000,
            "etcd": {"resident_bytes": 200e6},
            "kvnode": {"resident_bytes": 150e6},
        },
        "restart": {"keys_count": 1_000_000, "kvnode": 6.0, "etcd": 2.0},
    }
    result["extras"] = report.extras(result)
    assert [extra["met"] for extra in result["extras"]] == [True, False]
    console = Console(width=150, record=True, file=io.StringIO())
    report.show(result, console)
    text = console.export_text()
    assert "kvnode session" in text and "0.90" in text and "missed" in text and "1,000,000 keys" in text
