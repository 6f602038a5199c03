"""How the suite is spread over processes (`make test`)."""

from __future__ import annotations

import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Each of these starts clusters of real processes and measures them, so no two may run beside each other.
REAL_PROCESSES = ("tests/integration/", "tests/compat/")
YIELDING_NICENESS = 5  # of the workers that measure nothing


class OneClusterAtATime(LoadScopeScheduling):
    """All tests of real processes go to one worker, one after the other; the simulation and the unit tests share the
    rest. (The mark xdist_group would say the same, but pytest-xdist 3.8 does not see it under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return "real processes" if nodeid.startswith(REAL_PROCESSES) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneClusterAtATime:
    return OneClusterAtATime(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The other workers let the real processes go first."""
    is_real = item.nodeid.startswith(REAL_PROCESSES)
    if "PYTEST_XDIST_WORKER" in os.environ and not is_real and os.nice(0) < YIELDING_NICENESS:
        os.nice(YIELDING_NICENESS - os.nice(0))
