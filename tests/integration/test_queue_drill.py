"""The queue drill in short: leaders and consumers are killed, a data center is cut off, and no message is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.queue_checker import check
from cluster.queue_history import read_history
from tests.compat.clients import ClientsMissing, deno_binary

MESSAGES_COUNT = 2_000


def kinds() -> tuple[str, str]:
    """Of consumers that can run here, and the path of Deno; `make compat` installs it."""
    try:
        deno = deno_binary()
    except ClientsMissing:
        deno = ""
    others = ["deno" if deno else "python", "node" if shutil.which("node") else "python"]
    return ",".join(["python", *others]), deno


def test_no_message_is_lost(tmp_path: Path, rounds: int) -> None:
    names, deno = kinds()
    command = [sys.executable, "-m", "cluster.queue_drill", "--kinds", names, "--deno", deno, "--json"]
    command += ["--messages", str(MESSAGES_COUNT * rounds), "--rate", "200", "--lease-ms", "2000"]
    command += ["--kill-leader-every", "6", "--kill-consumer-every", "4", "--cut-at", "5", "--cut-for", "3"]
    # A busy machine is a while behind after so much; it is not disturbed for longer because of that.
    command += ["--disturb-for", str(15 * rounds), "--timeout", str(200 * rounds)]
    command += ["--data-dir", str(tmp_path / "drill")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=270 * rounds)
    assert done.returncode == 0, done.stderr[-5_000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["ok"], summary["lost"], summary["acknowledged"]) == (True, 0, MESSAGES_COUNT * rounds)
    assert summary["handled"] == MESSAGES_COUNT * rounds
    assert min(summary[name] for name in ("leader_kills", "consumer_kills", "cuts", "dead_letters", "failures")) > 0
    # The history is on file, and whoever doubts the drill can check it again.
    assert check(read_history(Path(summary["history"]))).as_json()["ok"]
    assert len({path.name.partition("-")[0] for path in Path(summary["history"]).glob("*.jsonl")}) == 4


def test_what_cannot_run_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.queue_drill", "--kinds", "deno", "--deno", "", "--no-namespaces"]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert (done.returncode, "deno is not installed" in done.stderr) == (2, True)
