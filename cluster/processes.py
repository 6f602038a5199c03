"""One child process: its log, its signals, what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from cluster.keeper import Keeper

_CLOCK_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process(Protocol):
    """What a Child needs of a process; as subprocess.Popen has it."""

    pid: int

    def poll(self) -> int | None:
        """How it ended, negative = by that signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int, /) -> None:
        """Send it a signal; nothing when it has ended."""


Spawn = Callable[[Sequence[str], BinaryIO, Mapping[str, str]], Process]


def spawn(command: Sequence[str], output: BinaryIO, environment: Mapping[str, str]) -> Process:
    """Start a process of its own session, with what it says going to `output`."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


class Child:
    """A process of its own session, so that a Ctrl-C reaches the one who started it first.

    Args:
        command: what to run.
        log: where its output goes.
        environment: all of its variables; those of this process when None.
        keeper: sees to it that the child ends with this process, however that ends.
    """

    spawn: Spawn = staticmethod(spawn)  # the suite puts a quicker one here

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self.environment = dict(os.environ if environment is None else environment)
        self._keeper = keeper
        self._process: Process | None = None

    def start(self, niceness: int = 0) -> None:
        """Start it, unless it runs. Output is appended to the log.

        Args:
            niceness: by how much it comes after others that want the processor (nice(1)), until `renice`.
        """
        if self.running:
            return
        with self.log.open("ab") as output:
            self._process = self.spawn(self.command, output, self.environment)
        if niceness:
            self.renice(niceness)
        if self._keeper is not None:
            self._keeper.started(self._process.pid)

    def renice(self, niceness: int) -> None:
        """Set the priority of all its threads, each of which has its own on Linux; only root may raise one.

        Where Linux weighs sessions against each other first (sched(7), the autogroup feature), that of its session too:
        each child has one to itself, and within it there is nobody to come after.
        """
        if not self.running:
            return
        with contextlib.suppress(OSError):  # no such feature here, or it has ended
            Path(f"/proc/{self.pid}/autogroup").write_text(str(niceness))
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.setpriority(os.PRIO_PROCESS, int(thread), niceness)

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the last start; 0 before it."""
        return self._process.pid if self._process else 0

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative = the signal that ended it."""
        return self._process.poll() if self._process else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing when it has ended."""
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait(30)

    def terminate(self, timeout_s: float) -> bool:
        """SIGTERM, then SIGKILL after `timeout_s`; True when the first was enough."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end; returns the exit status. Raises subprocess.TimeoutExpired."""
        if self._process is None:
            return None
        status = self._process.wait(timeout_s)
        if self._keeper is not None:
            self._keeper.ended(self._process.pid)
        return status

    def log_text(self) -> str:
        """All that it has written."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


async def run_command(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end beside the loop; its output is text.

    Not by the loop: uvloop forks for it, gRPC starts its threads anew in the child, and one child of ten dies of
    SIGSEGV there before it has become the command. `subprocess` takes vfork, which runs nothing of gRPC's.

    Raises:
        subprocess.TimeoutExpired: it has not ended after `timeout_s`, and was killed.
    """
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def resident_bytes(pid: int) -> tuple[int, int]:
    """(resident, resident and not backed by a file) memory of a process; zeros when it is gone."""
    fields = {"VmRSS": 0, "RssAnon": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    for line in lines:
        name, _, rest = line.partition(":")
        if name in fields:
            fields[name] = int(rest.split()[0]) * 1024
    return fields["VmRSS"], fields["RssAnon"]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text[text.rindex(")") + 1 :].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_SECOND
