"""Deno's own database in one file says what a node must answer: a few random sequences of `differential.py`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.compat.clients import install, missing
from tests.compat.differential import EXERCISED, Run, describe, own_databases, run, total
from tests.compat.nodes import Nodes, three_nodes
from tests.compat.results import Route

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

SEEDS_COUNT = 3  # by each route
STARTS = {"leader": 0, "follower": 100}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    install()
    with three_nodes(tmp_path_factory.mktemp("differential")) as running:
        yield running


@pytest.fixture(scope="module")
def runs(nodes: Nodes) -> dict[str, list[Run]]:
    def some(route: Route) -> list[Run]:
        return list(run(route, STARTS[route.name], SEEDS_COUNT))

    with ThreadPoolExecutor(len(STARTS)) as pool:
        return dict(zip(STARTS, pool.map(some, own_databases(nodes).values()), strict=True))


def test_nothing_differs(runs: dict[str, list[Run]]) -> None:
    differing = [describe(found, route) for route, those in runs.items() for found in those if found.differences]
    assert not differing, "\n".join(differing)


@pytest.mark.parametrize("route", STARTS)
def test_every_kind_of_operation_and_outcome_occurs(runs: dict[str, list[Run]], route: str) -> None:
    assert len(runs[route]) == SEEDS_COUNT
    counts = total(runs[route])
    assert not [kind for kind in EXERCISED if not counts[kind]], counts
