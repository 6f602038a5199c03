"""Commands of `kvnode` without the start of an interpreter for each.

Of what a short command costs, and of what a node costs until it serves, some four fifths are the start of Python and
its imports, the same each time. So one process makes them and forks for every command. The command is a process of its
own as before: with its own standard streams, variables and folder, run by kvnode/__main__.py, and it ends as an
interpreter ends. What depends on how an interpreter starts (PYTHONUNBUFFERED, a terminal, signals) belongs to tests
that start one.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

_LONGEST_S = 60  # a command that takes longer hangs: it dies of SIGALRM, and its test fails with what it has said
_LOOK_S = 0.02
_IMPORTED_LATE = ("typer.rich_utils", "rich.markdown", "kvnode.client")  # by commands, as they run


class WarmCommands:
    """Runs commands, several at once if need be.

    Args:
        environment: in which the imports are made.
        modules: what else to import.
    """

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = ()) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process that forks."""
        self._control.close()
        self._process.wait()

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, in the present folder; blocks."""
        pipes = [os.pipe() for _ in range(3)]
        (given, write), (out, said), (err, complained) = pipes
        command = self.start(arguments, environment, (given, said, complained), longest_s=_LONGEST_S)
        for passed in (given, said, complained):
            os.close(passed)
        with ThreadPoolExecutor(3) as threads, open(out, "rb") as stdout, open(err, "rb") as stderr:
            threads.submit(_feed, write, stdin)
            read = [threads.submit(stream.read) for stream in (stdout, stderr)]
            status = command.wait()
            return subprocess.CompletedProcess(arguments, status, *(each.result() for each in read))

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        *,
        longest_s: int = 0,
        session: bool = False,
    ) -> WarmCommand:
        """Start a command in the present folder.

        Args:
            streams: its standard streams; the caller's own to close.
            longest_s: it dies of SIGALRM when it takes longer; 0 = it may.
            session: it gets a session of its own.
        """
        here, there = socket.socketpair()
        with there:
            socket.send_fds(self._control, [b"."], [*streams, there.fileno()])
        request = {
            "arguments": list(arguments), "environment": dict(environment), "folder": os.getcwd(),
            "longest_s": longest_s, "session": session,
        }  # fmt: skip
        here.sendall(json.dumps(request).encode())
        here.shutdown(socket.SHUT_WR)
        return WarmCommand(arguments, here)


class WarmCommand:
    """A command that was started; as much of subprocess.Popen as is needed."""

    def __init__(self, arguments: Sequence[str], conversation: socket.socket) -> None:
        self._arguments = arguments
        self._conversation = conversation
        self._reading = threading.Lock()
        self._status: int | None = None
        line = b""
        while not line.endswith(b"\n"):
            said = conversation.recv(1)
            assert said, "the process that forks has died"
            line += said
        self.pid = int(line)

    def poll(self) -> int | None:
        """How it ended, negative = by that signal; None while it runs."""
        return self._read_for(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self._read_for(_LOOK_S)) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(list(self._arguments), timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _read_for(self, timeout_s: float) -> int | None:
        with self._reading:  # no longer than a look, for another thread may want to know whether it runs
            if self._status is None:
                self._read(timeout_s)
            return self._status

    def _read(self, timeout_s: float) -> None:
        self._conversation.settimeout(timeout_s)
        try:
            said = self._conversation.recv(64)  # the status is one write of a few bytes
        except (BlockingIOError, TimeoutError):
            return
        self._conversation.close()
        assert said, "who waits for the command has died"
        self._status = int(said)


def _feed(pipe: int, data: bytes) -> None:
    try:
        with open(pipe, "wb") as stream:
            stream.write(data)
    except BrokenPipeError:
        pass  # as subprocess has it: a command need not read


def _all_of(conversation: socket.socket) -> bytes:
    with conversation.makefile("rb") as stream:
        return stream.read()


# The process that forks.


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """None at the end; in the processes of the commands, what is to be run there."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for commands
    while True:
        word, descriptors, *_ = socket.recv_fds(control, 1, 4)
        if not word:
            return None
        assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot fork"
        if os.fork() == 0:
            control.close()
            return _begin(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _begin(descriptors: Sequence[int]) -> dict[str, Any]:
    """Fork the command, and in between wait for its end to say how it was; returns in the command alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, answer = descriptors
    conversation = socket.socket(fileno=answer)
    request: dict[str, Any] = json.loads(_all_of(conversation))
    if request["session"]:
        os.setsid()
    command = os.fork()
    if command:
        for stream in streams:
            os.close(stream)
        conversation.sendall(b"%d\n" % command)
        _, status = os.waitpid(command, 0)
        conversation.sendall(b"%d" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    conversation.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return request


def _become(request: dict[str, Any]) -> None:
    """Be the command, up to its end."""
    signal.alarm(request["longest_s"])
    sys.stdin = _text(io.BufferedReader(io.FileIO(0, closefd=False)), sys.__stdin__)
    sys.stdout = _text(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), sys.__stdout__)
    sys.stderr = _text(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), sys.__stderr__)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["kvnode", *request["arguments"]]
    runpy.run_module("kvnode", run_name="__main__", alter_sys=True)


def _text(stream: io.BufferedReader | io.BufferedWriter, like: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, like.encoding, like.errors, line_buffering=like.line_buffering)


def main() -> None:
    """The process that forks, and every command."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # as the command has it before it imports gRPC
    from kvnode.cli.main import COMMANDS

    commands = (command.module for command in COMMANDS.values())
    for module in dict.fromkeys([*commands, *_IMPORTED_LATE, *sys.argv[2:]]):
        importlib.import_module(module)
    gc.freeze()
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        _become(request)


if __name__ == "__main__":
    main()
