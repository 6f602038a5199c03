"""How the suite is spread over processes (`make test`)."""

from __future__ import annotations

import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# These start clusters of real processes and measure them, so no two may run beside each other.
REAL_PROCESSES = ("tests/integration/", "tests/compat/")
# These start clusters as well, but ask what happens and not how fast: they share the machine like any other test.
UNHURRIED = tuple(
    f"tests/integration/test_{name}.py"
    for name in ("bad_input", "cli_json", "crons", "damage", "databases", "tls", "topology")
)
YIELDING_NICENESS = 5  # of the workers that measure nothing, and of the nodes that they start


def is_measuring(nodeid: str) -> bool:
    """Whether a test is to have the machine before the others."""
    return nodeid.startswith(REAL_PROCESSES) and not nodeid.startswith(UNHURRIED)


class OneClusterAtATime(LoadScopeScheduling):
    """All tests that measure real processes go to one worker, one after the other; the simulation, the unit tests and
    the unhurried ones share the rest, a module at a time where they share a cluster. (The mark xdist_group would say
    the same, but pytest-xdist 3.8 does not see it under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        if is_measuring(nodeid):
            return "real processes"
        return nodeid.partition("::")[0] if nodeid.startswith(UNHURRIED) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneClusterAtATime:
    return OneClusterAtATime(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The other workers let the measured processes go first."""
    if "PYTEST_XDIST_WORKER" in os.environ and not is_measuring(item.nodeid) and os.nice(0) < YIELDING_NICENESS:
        os.nice(YIELDING_NICENESS - os.nice(0))
