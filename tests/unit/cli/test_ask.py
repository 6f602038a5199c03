"""A command that asks, at a terminal of its own."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DELETE = ("database", "delete", "orders", "--endpoints", "127.0.0.1:1", "--timeout", "500ms")
PROMPT = b"[y/N]:"


class Terminal:
    """A process at the other end of a pseudo-terminal."""

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = os.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.shown = b""

    def read_until(self, text: bytes, timeout_s: float = 30.0) -> None:
        until = time.monotonic() + timeout_s
        while text not in self.shown:
            assert select.select([self._ours], [], [], max(0.0, until - time.monotonic()))[0], self.shown
            self.shown += os.read(self._ours, 4096)

    def interrupt(self) -> None:
        """Until it is noticed: the library that reads the line misses a signal just before it begins to wait."""
        while self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)

    def end(self) -> int:
        try:
            status = self.process.wait(30)
            while select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._ours, 4096)
                except OSError:  # nobody is at the other end any more
                    break
            return status
        finally:
            self.process.kill()
            os.close(self._ours)


def asked(*arguments: str) -> Terminal:
    terminal = Terminal([sys.executable, "-m", "kvnode", *arguments])
    terminal.read_until(PROMPT)
    return terminal


def test_ctrl_c_at_the_question_is_an_interruption() -> None:
    terminal = asked(*DELETE)
    terminal.interrupt()
    assert terminal.end() == 130
    assert b"Traceback" not in terminal.shown and b"Aborted" not in terminal.shown


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"\x04"], ids=["no", "nothing", "the end of the input"])
def test_whatever_is_no_yes_deletes_nothing(answer: bytes) -> None:
    terminal = asked(*DELETE)
    terminal.type(answer)
    assert terminal.end() == 2
    assert b"nothing was deleted" in terminal.shown and b"Traceback" not in terminal.shown


def test_yes_goes_on() -> None:
    terminal = asked(*DELETE)
    terminal.type(b"y\n")
    assert terminal.end() == 4, "nobody is at that endpoint"


def test_ctrl_c_at_the_question_of_a_failover_is_one_too(tmp_path: Path) -> None:
    program = tmp_path / "ask.py"
    program.write_text("import typer\nfrom kvnode.cli.failover import _ask\ntyper.run(lambda: _ask('europe'))\n")
    terminal = Terminal([sys.executable, str(program)])
    terminal.read_until(PROMPT)
    terminal.interrupt()
    assert terminal.end() == 130
