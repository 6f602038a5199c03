"""How the suite is spread over processes (`make test`).

There is one worker more than there are cores. One runs all tests that measure, one after the other, and waits for most
of its time: for elections, leases, distances and deadlines. The other two share the rest, at a lower priority, and use
what the first leaves over. What takes longest begins first, so that small tests are left to end with, for whoever is
free.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from cluster.ports import SHARE_VARIABLE
from cluster.processes import Child, spawn
from tests.warm_nodes import spawn_warm

# These start clusters of real processes and measure them, so no two may run beside each other.
REAL_PROCESSES = ("tests/integration/", "tests/compat/")
# These start clusters as well, but ask what happens and not how fast: they share the machine like any other test.
UNHURRIED = (
    "tests/compat/test_differential.py",
    "tests/compat/test_push_module.py",
    *(
        f"tests/integration/test_{name}.py"
        for name in (
            *("bad_input", "cli_json", "cli_queues", "crons", "damage", "databases", "interrupted", "membership"),
            *("push", "queue_bad_input", "replica_removal", "self_join", "startup", "tls", "topology"),
        )
    ),
)
# These start none, but hold the product to times of less than a second: what yields to others cannot measure that.
TIMED = tuple(
    f"tests/unit/{name}"
    for name in (
        *("api/test_frozen_peer.py", "api/test_shutdown.py", "api/test_transport.py", "client/"),
        *("cluster/test_wan.py", "node/changelog/test_neighbour_snapshot.py"),
    )
)
# What begins first, of what does not measure: the longest test, then what waits, then what computes.
LONG = (
    "tests/simulation/test_simulation.py::test_every_seed_keeps_every_promise",
    "tests/integration/test_crons.py",
    *UNHURRIED,
    "tests/simulation/",
    "tests/raft/",
)
# Of the workers that measure nothing, and of the nodes that they start. Two workers, one of which simulates in two
# processes, weigh less together than a single process of the ordinary priority.
YIELDING_NICENESS = 8

# How long random inputs take to make says how busy the machine is. Tests that suppress more repeat it.
settings.register_profile("kvnode", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvnode")


def is_measuring(nodeid: str) -> bool:
    """Whether a test is to have the machine before the others."""
    return nodeid.startswith((*REAL_PROCESSES, *TIMED)) and not nodeid.startswith(UNHURRIED)


def turn(nodeid: str) -> int:
    """When a test's turn comes: the least first."""
    if is_measuring(nodeid):
        return -1
    return next((at for at, prefix in enumerate(LONG) if nodeid.startswith(prefix)), len(LONG))


class OneClusterAtATime(LoadScopeScheduling):
    """All tests that measure go to one worker, one after the other; the simulation, the other unit tests and the
    unhurried ones share the rest, a module at a time where they share a cluster. (The mark xdist_group would say
    the same, but pytest-xdist 3.8 does not see it under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        if is_measuring(nodeid):
            return "measured"
        return nodeid.partition("::")[0] if nodeid.startswith(UNHURRIED) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneClusterAtATime:
    config.option.loadscopereorder = False  # in the order of `turn`, not by how many tests a scope has
    return OneClusterAtATime(config, log)


@pytest.fixture
def cold_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes start as a user's do, in an interpreter of their own."""
    monkeypatch.setattr(Child, "spawn", staticmethod(spawn))


def pytest_configure() -> None:
    """Workers start clusters beside each other: each has ports of its own. Nodes are forked (warm_nodes.py)."""
    Child.spawn = staticmethod(spawn_warm)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker:
        os.environ[SHARE_VARIABLE] = f"{worker}/{os.environ['PYTEST_XDIST_WORKER_COUNT']}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes long first, where there are several workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: turn(item.nodeid))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The other workers let the measured processes go first."""
    if "PYTEST_XDIST_WORKER" in os.environ and not is_measuring(item.nodeid) and os.nice(0) < YIELDING_NICENESS:
        os.nice(YIELDING_NICENESS - os.nice(0))
