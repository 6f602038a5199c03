"""What the alerts say in a failure, by Prometheus' own promtool: where it is installed, as for `make compose-check`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

RULES = Path(__file__).resolve().parents[3] / "cluster" / "prometheus" / "alerts.yml"
LEADS = 'kvnode_role{role="leader",node="%s"}'

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: on Debian 'apt install prometheus'"
)


def fires(folder: Path, alert: str, series: Mapping[str, str], at: str = "1m") -> bool:
    """Whether an alert fires when these series have been so (promtool's notation, a value each 5 s)."""
    given = [{"series": name, "values": values} for name, values in series.items()]
    # To expect nothing and to be told what there is instead is how promtool is asked.
    asked = {"eval_time": at, "alertname": alert, "exp_alerts": []}
    tests = [{"interval": "5s", "input_series": given, "alert_rule_test": [asked]}]
    file = folder / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "5s", "tests": tests}))
    command = ["promtool", "test", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or f'alertname="{alert}"' in said, said
    return done.returncode != 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("1x30", "0x30", False),
        ("1 1 0x30", "0x30", True),
        ("1 1 stale", "0x30", True),  # the leader does not answer
        ("1 1 stale", "0 0 stale", True),  # no node does
        ("1 1 stale", "0 0 0 1x30", False),  # another one has followed
    ],
)
def test_nobody_leads(tmp_path: Path, a: str, b: str, expected: bool) -> None:
    assert fires(tmp_path, "KvnodeNoLeader", {LEADS % "a": a, LEADS % "b": b}) is expected


AGE = 'kvnode_age_ms{node="e%d",region="europe"}'
TOLD = 'kvnode_region_lag_ms{node="a",region="us-east",exported_region="europe"}'  # its own label and its target's


@pytest.mark.parametrize(
    ("ages", "told", "expected"),
    [
        (("600x30", "700x30"), "300x30", False),
        (("600x30", "0+5000x30"), "300x30", False),  # one node of the region is near
        (("0+5000x30", "0+5000x30"), "0+5000x30", True),
        (("-1x30", "-1x30"), "-1x30", True),
        (("600 stale", "600 stale"), "0+5000x30", True),  # the region is gone
        (("600 stale", "600 stale"), "0x30", False),  # nothing was written since
    ],
)
def test_a_region_lags(tmp_path: Path, ages: tuple[str, str], told: str, expected: bool) -> None:
    series = {AGE % number: values for number, values in enumerate(ages)} | {TOLD: told}
    assert fires(tmp_path, "KvnodeRegionLags", series) is expected
