"""`make compat` in short: every client through a follower, and the page that a full run wrote still says the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat import failover
from tests.compat.clients import clients, install, missing
from tests.compat.nodes import Nodes, three_nodes
from tests.compat.results import Result, failures
from tests.compat.run import FAILOVER_TITLE, run_clients
from tests.compat.table import PAGE, cell, cells_of, titles

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    install()
    with three_nodes(tmp_path_factory.mktemp("compat")) as running:
        yield running


@pytest.fixture(scope="module")
def results(nodes: Nodes) -> list[Result]:
    return run_clients(clients(), nodes.by_follower(), quick=True, at_a_time=4)


def test_nothing_fails(results: list[Result]) -> None:
    assert not failures(results), "\n".join(f"{r.client}: {r.title}: {r.detail}" for r in failures(results))


def test_the_page_says_what_the_programs_find(results: list[Result]) -> None:
    written = cells_of(PAGE.read_text())
    for result in results:
        found = cell([r for r in results if (r.client, r.title) == (result.client, result.title)])
        row = written.get((result.section, result.title))
        assert row is not None, f"{PAGE.name} has no row '{result.title}': run `make compat`"
        assert row[result.client] == found, f"{result.title}, {result.client}: run `make compat`"


def test_the_page_has_no_row_that_no_program_fills(results: list[Result]) -> None:
    programs = "".join(path.read_text() for path in Path(__file__).parent.glob("programs/*/*.[mp]*"))
    declared = {(result.section, result.title) for result in results}
    for section, title in cells_of(PAGE.read_text()):
        slow = title in programs or title.startswith(FAILOVER_TITLE.partition(",")[0])
        assert (section, title) in declared or slow, f"{title}: run `make compat`"


def test_the_page_is_of_these_versions() -> None:
    text = PAGE.read_text()
    assert all(title in text for title in titles().values()), "run `make compat`"


def test_a_killed_leader_is_a_pause_and_nothing_else(nodes: Nodes) -> None:
    keep = nodes.follower()
    load = failover.Load(count=200, records=50, seconds=10, kills=1)
    outcomes = failover.run(nodes, nodes.route("node", keep), keep, load, print)
    assert not [outcome for outcome in outcomes if outcome.problems], outcomes
