"""Child processes and ports."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

from cluster.ports import free_ports
from cluster.processes import Child, cpu_seconds, resident_bytes


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


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('here')"], tmp_path / "log")
    for _ in range(2):
        child.start()
        assert child.wait(10) == 0
    assert child.log_text() == "here\nhere\n"
