"""What a figure was measured on: without it the figure says nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PROBES_COUNT = 200
_PROBE_BYTES = 4_096
_CALLS_COUNT = 1_000


def circumstances(folder: Path, options: Namespace) -> dict[str, Any]:
    """How a result begins: when and where it was measured, of what, and with which options.

    Args:
        folder: where the servers' data goes.
        options: of the command; those that are paths say where one machine keeps things, nothing about the result.
    """
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(folder),
        "versions": versions(),
        "settings": {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)},
    }


def describe(folder: Path) -> dict[str, Any]:
    """The machine, with the fsync time of the disk that holds `folder`."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load_average_before": os.getloadavg()[0],
        "fdatasync_4k_overwrite_us": _fdatasync_us(folder),
        "python_call_ns": _python_call_ns(),
    }


def versions() -> dict[str, str]:
    """Of everything that takes part."""
    return {
        "kvnode": metadata.version("kvnode") if _installed("kvnode") else _commit(),
        "commit": _commit(),
        "python": f"{platform.python_version()} {' '.join(platform.python_build())} {platform.python_compiler()}",
        "sqlite": sqlite3.sqlite_version,
        "grpcio": metadata.version("grpcio"),
        "etcd": _first_line("etcd", "--version"),
        "go": _first_line("go", "version"),
        "postgresql": _first_line("psql", "--version"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _python_call_ns() -> float:
    """Median time of a call of a method in this interpreter: how fast processor and build are just now."""
    counter = _Counter()
    took = []
    for _ in range(_PROBES_COUNT):
        began = time.perf_counter_ns()
        for number in range(_CALLS_COUNT):
            counter.add(number)
        took.append((time.perf_counter_ns() - began) / _CALLS_COUNT)
    return round(statistics.median(took), 1)


class _Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int) -> None:
        self.total += number


def _fdatasync_us(folder: Path) -> float:
    """Median time to make one overwritten page durable."""
    path = folder / "probe"
    page = os.urandom(_PROBE_BYTES)
    took = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_PROBES_COUNT):
            file.seek(0)
            file.write(page)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - started)
    path.unlink()
    return round(statistics.median(took) * 1e6, 1)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str:
    return _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


if __name__ == "__main__":
    print(describe(Path.cwd()), versions(), file=sys.stdout)
