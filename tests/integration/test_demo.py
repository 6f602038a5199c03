"""`kvnode demo` end to end, with a part of its input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cluster.launcher import ROOT

LIMIT = 4_000


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvnode", "demo", "--limit", str(LIMIT), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_demo_as_json() -> None:
    done = run_demo("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["acknowledged"] == LIMIT
    assert summary["lost"] == summary["duplicated"] == 0
    assert summary["digests_equal"] is True
    assert 0 < summary["gap_ms"] < 5_000
    assert summary["transactions_per_second"] > 0
    assert set(summary["applied"]) == {"a", "b", "c"}
    assert len(set(summary["applied"].values())) == 1


def test_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_demo("--data-dir", str(tmp_path / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing acknowledged was lost" in done.stdout
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed
