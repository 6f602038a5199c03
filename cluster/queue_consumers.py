"""The consumer processes of the queue drill: one of a kind each, killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.keeper import Keeper
from cluster.launcher import ROOT
from cluster.processes import Child
from cluster.queue_consumer import Settings
from cluster.queue_history import SUFFIX

KINDS = ("python", "deno", "node")
_PROGRAM = Path(__file__).with_suffix("").with_name("queue_consumer.mjs")
_DENO_FLAGS = ("run", "--quiet", "--no-lock", "--no-check", "--allow-net", "--allow-write", "--allow-import")
_STOP_TIMEOUT_S = 20.0


class ConsumersMissing(Exception):
    """A kind of consumer cannot run here; the message says why."""


def command_of(kind: str, deno: str = "") -> list[str]:
    """What runs a consumer of a kind; its settings follow. Raises ConsumersMissing.

    Args:
        kind: python, deno or node.
        deno: the executable; the one on PATH when empty.
    """
    if kind == "python":
        return [sys.executable, "-m", "cluster.queue_consumer"]
    program = (deno or shutil.which("deno")) if kind == "deno" else shutil.which("node")
    if not program:
        raise ConsumersMissing(f"{kind} is not installed: leave it out with --kinds, or install it")
    return [program, *(_DENO_FLAGS if kind == "deno" else ("--no-warnings",)), str(_PROGRAM)]


class ConsumerProcess:
    """One process with several consumers. Each start has a journal of its own.

    Args:
        command: what runs it.
        settings: what it is told; name and journal are of the first start.
        folder: for journals, logs and what Deno keeps.
        keeper: ends it with this process.
    """

    def __init__(self, command: Sequence[str], settings: Settings, folder: Path, keeper: Keeper) -> None:
        self.name = settings.name
        self.kills_count = 0
        self._command = list(command)
        self._settings = settings
        self._folder = folder
        self._starts_count = 0
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DENO_", "NODE_"))}
        environment |= {"PYTHONPATH": str(ROOT), "DENO_DIR": str(folder / "deno"), "DENO_NO_UPDATE_CHECK": "1"}
        self._child = Child([], folder / f"{settings.name}.log", environment, keeper)

    def start(self) -> None:
        """Start it, again perhaps."""
        journal = self._folder / f"{self.name}-{self._starts_count}{SUFFIX}"
        self._starts_count += 1
        settings = self._settings._replace(journal=str(journal))
        self._child.command = [*self._command, json.dumps(settings._asdict())]
        self._child.start()

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()
        self.kills_count += 1

    def stop(self) -> bool:
        """SIGTERM; False when it did not end by itself, or not well."""
        return self._child.terminate(_STOP_TIMEOUT_S) and self._child.exit_status == 0

    @property
    def running(self) -> bool:
        """Whether it runs; one that has ended by itself has failed, and its log says why."""
        return self._child.running

    def log_text(self) -> str:
        """All that it has written beside its journal."""
        return self._child.log_text()


def consumer_processes(
    kinds: Sequence[str], shared: Settings, folder: Path, keeper: Keeper, deno: str = ""
) -> list[ConsumerProcess]:
    """A process of each kind, which may be there twice; `shared.consumers` of all together. Raises ConsumersMissing."""
    made = []
    for at, kind in enumerate(kinds):
        share = shared.consumers // len(kinds) + (at < shared.consumers % len(kinds))
        settings = shared._replace(name=f"{kind}{at}", consumers=share)
        made.append(ConsumerProcess(command_of(kind, deno), settings, folder, keeper))
    return made
