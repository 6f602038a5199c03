"""Ctrl-C in the programs that start whole clusters: they end what they have started, say so, and exit with 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.launcher import ROOT

QUEUE_DRILL = ["-m", "cluster.queue_drill", "--kinds", "python", "--no-namespaces", "--messages", "50000"]
DRILL = ["-m", "cluster.drill", "--short"]
DEMO = ["-m", "kvnode", "demo"]


def running(folder: Path) -> list[str]:
    """Processes that are told of a folder."""
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is started inherits that SIGINT is ignored, as it is behind `nohup ... &`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("command", "until"),
    [(QUEUE_DRILL, "serve;"), (QUEUE_DRILL, "kill -9 of"), (QUEUE_DRILL, ""), (DRILL, ""), (DEMO, "")],
)
def test_ctrl_c(tmp_path: Path, command: list[str], until: str) -> None:
    """As soon as its output has `until`; as soon as it has started a node when that is empty."""
    data, temporary, out = tmp_path / "data", tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    own = ["--data-dir", str(data)] if not until else []
    more = ["--kill-leader-every", "2", "--kill-consumer-every", "2"] if command is QUEUE_DRILL else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    with out.open("wb") as output:
        program = subprocess.Popen(
            [sys.executable, *command, *more, *own], env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        if until:
            wait_until(lambda: until in out.read_text(), until)
        else:
            wait_until(lambda: any(" serve " in line for line in running(tmp_path)), "a node")
        program.send_signal(signal.SIGINT)
        status = program.wait(30)
    finally:
        program.kill()
        program.wait()
    text = out.read_text()
    assert (status, "interrupted" in text, "Traceback" in text) == (130, True, False), text
    assert running(tmp_path) == []
    assert list(temporary.iterdir()) == []
