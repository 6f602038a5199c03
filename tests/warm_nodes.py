"""Nodes of a test's cluster without the start of an interpreter for each (see warm.py).

Three nodes take two to three seconds of processor time until they have imported what they need, and the suite starts
some hundreds. The nodes of the demo, the drills and the benchmarks, and those of tests that ask for `cold_nodes`, start
as a user's do.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from cluster.launcher import own_environment
from cluster.processes import Process, spawn
from tests.warm import WarmCommands

_NODE = [sys.executable, "-m", "kvnode"]
_OF_INTERPRETERS = ("GRPC_", "LD_", "MALLOC_", "PYTHON")  # read before main(), or by libraries as they are loaded


def spawn_warm(command: Sequence[str], output: BinaryIO, environment: Mapping[str, str]) -> Process:
    """As cluster.processes.spawn; what is no node, or wants an interpreter of its own, starts as ever."""
    if list(command[: len(_NODE)]) != _NODE or _of_interpreters(environment) != _of_interpreters(own_environment()):
        return spawn(command, output, environment)
    with open(os.devnull, "rb") as nothing:
        streams = (nothing.fileno(), output.fileno(), output.fileno())
        return _warm().start(command[len(_NODE) :], environment, streams, session=True)


def _of_interpreters(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_OF_INTERPRETERS)}


@functools.cache
def _warm() -> WarmCommands:
    warm = WarmCommands(own_environment(), ["kvnode.api.serve"])
    atexit.register(warm.close)
    return warm
