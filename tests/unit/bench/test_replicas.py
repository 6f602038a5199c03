"""What replicas cost the leader: medians and a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from bench.replicas import sentence, summarize


def item(replicas: int, cpu_us: float, **more: Any) -> dict[str, Any]:
    measured = {"operations_per_second": 1_000.0, "p99_ms": 3.0, "errors": 0, "server_cpu_us_per_operation": cpu_us}
    return {"replicas": replicas, **measured, **more}


@pytest.mark.parametrize(("with_us", "cost", "met"), [(104.0, 0.04, True), (106.0, 0.06, False), (99.0, -0.01, True)])
def test_medians_are_compared(with_us: float, cost: float, met: bool) -> None:
    measurements = [item(0, cpu_us) for cpu_us in (90.0, 100.0, 500.0)] + [item(2, with_us, errors=1)] * 3
    summary = summarize(measurements)
    assert (summary["cost"], summary["met"]) == (cost, met)
    assert summary["without"]["leader_cpu_us_per_write"] == 100.0 and summary["with"]["errors"] == 3
    assert ("met" if met else "missed") in sentence(summary) and f"{cost:+.1%}" in sentence(summary)
