from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.client.fake_server import FakeServer
from tests.warm import WarmCommands


@dataclass
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """Runs `kvnode` as a process, as a user does."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def environment(self) -> dict[str, str]:
        # Where PYTHONUNBUFFERED is set, a line that nobody flushes is seen all the same.
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("KVNODE_") and name != "PYTHONUNBUFFERED"
        }
        return {**clean, "KVNODE_ENDPOINTS": self.endpoint, "COLUMNS": "200", "NO_COLOR": "1"}

    async def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ran:
        """Run it to its end, in a fork of an interpreter that has started already; see tests/warm.py."""
        if any(name.startswith("PYTHON") for name in environment):
            return await self.cold(*arguments, stdin=stdin, **environment)
        variables = {**self.environment(), **environment}
        done = await asyncio.to_thread(warm_commands().run, arguments, variables, stdin.encode())
        return _ran(done.returncode, done.stdout, done.stderr)

    async def cold(self, *arguments: str, stdin: str = "", **environment: str) -> Ran:
        """Run it to its end, in an interpreter of its own."""
        process = await self.start(*arguments, **environment)
        out, err = await process.communicate(stdin.encode())
        return _ran(process.returncode or 0, out, err)

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        """Start it, in an interpreter of its own."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kvnode",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self.environment(), **environment},
        )


def _ran(status: int, out: bytes, err: bytes) -> Ran:
    assert b"Traceback" not in err
    return Ran(status, out.decode(errors="replace"), err.decode(), out)


@functools.cache
def warm_commands() -> WarmCommands:
    """What forks the commands of this process' tests."""
    warm = WarmCommands(Cli("").environment())
    atexit.register(warm.close)
    return warm


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A suite that a shell runs in the background would hand Ctrl-C down to commands as ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as running:
        yield running


@pytest.fixture
def cli(server: FakeServer) -> Cli:
    return Cli(server.address)
