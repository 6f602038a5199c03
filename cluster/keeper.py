"""Kills what this process has started, should this process die before it can: SIGKILL lets nobody clean up.

A process of its own holds the reading end of a pipe, is told each child's coming and going, and kills what is left when
the pipe ends. (Linux's PR_SET_PDEATHSIG takes no second process, but it fires when the *thread* that forked ends, and
ours start nodes from the threads of a pool.) A process id alone may be another's by then: the time of its start,
told with it, must still be the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

_START_TIME_FIELD = 19  # of /proc/<pid>/stat, counted behind the name
_STOP_TIMEOUT_S = 5.0


class Keeper:
    """Watches over the children of this process. Use `close`, or `release` to let them live on."""

    def __init__(self) -> None:
        self._is_closed = False  # and not released
        self._process = subprocess.Popen(
            # Isolated and without site: it starts in 20 ms and needs nothing but the standard library.
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def started(self, pid: int) -> None:
        """A child is to end with this process; at once when a thread has started it behind `close`."""
        if self._is_closed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        self._tell(f"+ {pid} {_start_time(pid)}")

    def ended(self, pid: int) -> None:
        """A child has ended by itself."""
        self._tell(f"- {pid}")

    def release(self) -> None:
        """Let every child live on."""
        self._tell("release")
        self._end()

    def close(self) -> None:
        """Kill the children that are left."""
        self._is_closed = True
        self._end()

    def _end(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait(_STOP_TIMEOUT_S)

    def _tell(self, line: str) -> None:
        """One write below PIPE_BUF: lines from several threads do not mix."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                os.write(self._process.stdin.fileno(), f"{line}\n".encode())


def _start_time(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty when it is gone or /proc does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text[text.rindex(")") + 1 :].split()[_START_TIME_FIELD]


def _watch() -> None:
    """The other process: until the pipe ends."""
    children: dict[int, str] = {}
    for line in sys.stdin:
        verb, *rest = line.split()
        if verb == "+":
            children[int(rest[0])] = "".join(rest[1:])
        elif verb == "-":
            children.pop(int(rest[0]), None)
        else:
            children.clear()
    for pid, start_time in children.items():
        if _start_time(pid) == start_time:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _watch()
