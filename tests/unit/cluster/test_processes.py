"""Child processes and ports."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvloop

from cluster import launcher
from cluster.launcher import LocalCluster
from cluster.ports import free_ports
from cluster.processes import Child, cpu_seconds, resident_bytes, run_command
from kvnode.client.session import Session
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.client.fake_server import FakeServer


def test_ports_are_free_and_outside_the_range_of_outgoing_connections() -> None:
    ports = free_ports(6)
    assert len(set(ports)) == 6
    assert max(ports) < 32_768
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_life_of_a_child(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('here', flush=True); input()"], tmp_path / "log")
    assert (child.pid, child.exit_status, child.running) == (0, None, False)
    sleeper = Child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "sleep", {"X": "1"})
    sleeper.start()
    assert sleeper.running
    assert resident_bytes(sleeper.pid)[0] > 0
    sleeper.signal(signal.SIGSTOP)
    assert sleeper.terminate(5)  # a frozen child is woken, so that it can end
    assert sleeper.exit_status == -signal.SIGTERM
    assert resident_bytes(sleeper.pid) == (0, 0)
    assert cpu_seconds(sleeper.pid) == 0
    sleeper.start()
    sleeper.kill()
    assert sleeper.exit_status == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_a_child_that_started_aside_is_an_equal_afterwards(tmp_path: Path) -> None:
    code = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); print('up', flush=True)"
    child = Child([sys.executable, "-c", code], tmp_path / "log")
    child.start(niceness=19)
    deadline = time.monotonic() + 30
    while "up" not in child.log_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def niceness() -> list[int]:
        return [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{child.pid}/task")]

    def of_its_session() -> str:
        group = Path(f"/proc/{child.pid}/autogroup")
        return group.read_text().rpartition(" ")[2].strip() if group.exists() else ""

    assert niceness() == [19, 19]
    assert of_its_session() in ("19", "")
    child.renice(0)
    assert niceness() == [0, 0]
    assert of_its_session() in ("0", "")
    child.kill()
    child.renice(0)  # nobody is left


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_who_starts_aside_and_is_not_ready_for_long_gets_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would starve beside others that leave nothing of the processors."""
    monkeypatch.setattr(launcher, "_STARTING_ASIDE_S", 0.2)
    cluster = LocalCluster.__new__(LocalCluster)
    child = Child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    cluster.nodes = {"a": SimpleNamespace(child=child)}  # type: ignore[dict-item]
    seen: list[int] = []

    def wait_ready(_names: Sequence[str]) -> None:
        deadline = time.monotonic() + 10
        while not seen or (seen[-1] != 0 and time.monotonic() < deadline):
            seen.append(os.getpriority(os.PRIO_PROCESS, child.pid))
            time.sleep(0.01)

    monkeypatch.setattr(cluster, "wait_ready", wait_ready)
    cluster.restart_elsewhere(["a"])
    child.kill()
    assert seen[0] == 19 and seen[-1] == 0


def test_a_command_survives_its_start_beside_live_calls() -> None:
    async def story() -> list[int]:
        async with FakeServer() as server:
            sessions = [Session([server.address]) for _ in range(6)]
            calls = [asyncio.ensure_future(_call_on(session)) for session in sessions]
            ended = [(await run_command(["true"], dict(os.environ), 10)).returncode for _ in range(100)]
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            for session in sessions:
                await session.close()
            return ended

    assert uvloop.run(story()) == [0] * 100


async def _call_on(session: Session) -> None:
    while True:
        await session.read(kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=b"a", end=b"b", limit=1)]))


async def test_a_command_tells_what_it_said_and_ends_in_time() -> None:
    told = await run_command([sys.executable, "-c", "import sys; print('out'); sys.exit('error')"], {}, 10)
    assert (told.returncode, told.stdout, told.stderr) == (1, "out\n", "error\n")
    with pytest.raises(subprocess.TimeoutExpired):
        await run_command([sys.executable, "-c", "import time; time.sleep(60)"], {}, 0.2)


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('here')"], tmp_path / "log")
    for _ in range(2):
        child.start()
        assert child.wait(10) == 0
    assert child.log_text() == "here\nhere\n"
