"""From measurements of queues to rows, targets and tables."""

from __future__ import annotations

import io

from rich.console import Console

from bench.queue import report


def measured(system: str, callers: int, per_second: float, handled_ms: float) -> dict[str, object]:
    item = {"system": system, "callers": callers, "operations_per_second": per_second, "p50_ms": 2 * handled_ms}
    item |= {"delivered_p50_ms": handled_ms, "delivered_p99_ms": 3 * handled_ms}
    return {**item, "p99_ms": 6 * handled_ms, "server_cpu_us_per_operation": 100.0, "errors": 0}


def node(anonymous_bytes: int) -> dict[str, int]:
    return {"resident_bytes": 2 * anonymous_bytes, "anonymous_bytes": anonymous_bytes}


def test_medians_and_the_target() -> None:
    rows = report.rows(
        [
            *(measured("kvnode", 64, per_second, 9.0) for per_second in (2_000.0, 3_000.0, 9_000.0)),
            measured("postgresql", 64, 5_000.0, 12.0),
            measured("kvnode", 1, 200.0, 5.0),
        ]
    )
    assert [(row["system"], row["in_flight"], row["met"]) for row in rows] == [
        ("kvnode", 1, None), ("kvnode", 64, True), ("postgresql", 64, None),
    ]  # fmt: skip
    assert rows[1]["per_second"] == 3_000.0
    assert not report.rows([measured("kvnode", 64, 2_999.0, 9.0)])[0]["met"]
    assert not report.rows([measured("kvnode", 64, 9_000.0, 10.5)])[0]["met"]
    assert not report.rows([measured("kvnode", 64, 9_000.0, 0.0)])[0]["met"], "nothing was measured"


def test_lateness_and_memory() -> None:
    (on_time, late) = report.delay_rows([{"p50_ms": 5.0, "p99_ms": 50.0}, {"p50_ms": 5.0, "p99_ms": 1_001.0}])
    assert (on_time["met"], late["met"]) == (True, False)


def test_memory_is_judged_once_the_caches_are_full() -> None:
    sizes = ((0, 10), (99_999, 30_000_000), (100_000, 40_000_000), (200_000, 44_000_000), (300_000, 51_000_000))
    memory = [{"waiting": count, "nodes": [node(size), node(size - 1_000)]} for count, size in sizes]
    growth = report.memory_growth(memory)
    assert growth == {"from": 100_000, "to": 300_000, "bytes_per_waiting_message": 55.0, "met": False}
    met = report.memory_growth(memory[:4])
    assert met == {"from": 100_000, "to": 200_000, "bytes_per_waiting_message": 40.0, "met": True}
    assert report.memory_growth(memory[:3]) is None


def test_tables() -> None:
    console = Console(file=io.StringIO(), width=200)
    rows = report.rows([measured("kvnode", 64, 2_000.0, 9.0)])
    delays = [{"waiting": 1_000_000, "p50_ms": 5.0, "p99_ms": 9.0, "max_ms": 11.0, "met": True}]
    memory = [{"waiting": count, "nodes": [node(50_000_000)]} for count in (0, 100_000, 200_000)]
    result = {"table": rows, "delays": delays, "memory": memory, "memory_growth": report.memory_growth(memory)}
    report.show(result, console)
    report.show({**result, "memory": memory[:2], "memory_growth": None}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(
        part in text for part in ("2,000", "missed", "1,000,000", "met", "50.0", "0.0 bytes a message", "not judged")
    )
