"""`kvnode demo` end to end, with a part of its input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.launcher import ROOT
from cluster.topology import load_topology

LIMIT = 4_000
NODES = {node.name for node in load_topology().nodes}


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvnode", "demo", "--limit", str(LIMIT), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_demo_as_json_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_demo("--json", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["acknowledged"] == LIMIT
    assert summary["lost"] == summary["duplicated"] == 0
    assert summary["digests_equal"] is True
    assert 0 < summary["gap_ms"] < 5_000
    assert summary["transactions_per_second"] > 0
    assert set(summary["applied"]) == NODES
    assert len(set(summary["applied"].values())) == 1
    assert set(summary["lag_ms"]) == NODES
    assert "Nothing acknowledged was lost" in done.stderr
    assert "asia-b" in done.stderr
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed


def test_the_nodes_of_a_killed_demo_die_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvnode", "demo", "--data-dir", str(tmp_path / "data")]
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=out)
    try:
        wait_until(lambda: len(nodes_of(tmp_path)) == len(NODES), "seven nodes", 30)
    finally:
        demo.kill()
        demo.wait()
    wait_until(lambda: not nodes_of(tmp_path), "the nodes of the killed demo to end", 5)


def nodes_of(folder: Path) -> list[str]:
    """The processes, dead ones that nobody has buried left out, that serve from below a folder."""
    listed = subprocess.run(["ps", "-eww", "-o", "stat,args"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listed.splitlines() if " serve " in line and str(folder) in line]
    return [line for line in lines if not line.startswith("Z")]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
