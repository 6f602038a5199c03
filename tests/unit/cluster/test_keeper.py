"""Who dies with whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.keeper import Keeper
from cluster.processes import Child

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = """
import sys, time
from pathlib import Path
from cluster.keeper import Keeper
from cluster.processes import Child
keeper = Keeper()
child = Child([sys.executable, "-c", "import time; time.sleep(60)"], Path(sys.argv[1]) / "log", None, keeper)
child.start()
if sys.argv[2] == "release":
    keeper.release()
print(child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def grandchild(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """The child of a process that was killed as soon as it had started it."""
    command = [sys.executable, "-c", PARENT, str(tmp_path), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    yield pid
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("grandchild", ["keep"], indirect=True)
def test_a_child_dies_with_its_killed_parent(grandchild: int) -> None:
    assert ends(grandchild)


@pytest.mark.parametrize("grandchild", ["release"], indirect=True)
def test_a_released_child_lives_on(grandchild: int) -> None:
    assert not ends(grandchild, 0.5)


def test_closing_ends_what_is_left_and_spares_who_has_the_number_of_one_that_ended(tmp_path: Path) -> None:
    keeper = Keeper()
    left, gone = Child(SLEEP, tmp_path / "a", None, keeper), Child(SLEEP, tmp_path / "b", None, keeper)
    stranger = Child(SLEEP, tmp_path / "c")
    for child in (left, gone, stranger):
        child.start()
    gone.kill()
    keeper._tell(f"+ {stranger.pid} 1")  # the id of a child that began at another time
    keeper.close()
    keeper.close()
    assert left.wait(5) == -signal.SIGKILL
    assert stranger.running
    stranger.kill()


def test_what_a_thread_starts_behind_the_end_is_ended(tmp_path: Path) -> None:
    keeper = Keeper()
    keeper.close()
    late = Child(SLEEP, tmp_path / "a", None, keeper)
    late.start()
    assert late.wait(5) == -signal.SIGKILL


def test_what_is_started_behind_a_release_lives_on(tmp_path: Path) -> None:
    keeper = Keeper()
    keeper.release()
    late = Child(SLEEP, tmp_path / "a", None, keeper)
    late.start()
    assert not ends(late.pid, 0.5)
    late.kill()
