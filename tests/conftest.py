"""How the suite is spread over processes."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Each of these starts clusters of real processes and measures them, so no two may run beside each other.
REAL_PROCESSES = (TESTS / "integration", TESTS / "compat")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist with --dist loadgroup, all tests of real processes go to one worker, one after the other;
    the simulation and the unit tests share the rest."""
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in REAL_PROCESSES):
            item.add_marker(pytest.mark.xdist_group("real processes"))
