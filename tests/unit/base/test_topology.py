from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvnode.base.topology import next_loss, topology_problems

DEFAULT = [("a", "us", True), ("b", "us", True), ("c", "us", True)]
WHOLE = [*DEFAULT, ("d", "eu", False), ("e", "eu", False), ("f", "asia", False)]


def errors(places: list[tuple[str, str, bool]], min_commit_dcs: int = 2) -> list[str]:
    return [problem.text for problem in topology_problems(places, min_commit_dcs) if problem.severity == "error"]


def advice(places: list[tuple[str, str, bool]]) -> list[str]:
    return [problem.text for problem in topology_problems(places, 2) if problem.severity == "advice"]


def test_the_default_topology_is_without_fault() -> None:
    assert topology_problems(WHOLE, 2) == []


def test_fewer_places_than_recommended_are_told_not_refused() -> None:
    assert errors(DEFAULT) == []
    assert len(advice(DEFAULT)) == 2


def test_two_data_centers_cannot_lose_one() -> None:
    assert len(errors(DEFAULT[:2])) == 2


def test_a_data_center_with_the_majority_is_refused() -> None:
    (error,) = errors([("a", "us", True), ("a", "us", True), ("a", "us", True), ("b", "us", True), ("c", "us", True)])
    assert "data center a" in error


def test_a_commit_that_needs_every_data_center_is_refused() -> None:
    assert len(errors(DEFAULT, 3)) == 3


def test_a_single_node_is_refused_but_for_one_dc() -> None:
    assert errors([("a", "us", True)], 2) != []
    assert errors([("a", "us", True)], 1) != []


def test_learners_do_not_count() -> None:
    assert errors([*DEFAULT[:2], ("c", "us", False)]) != []


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=7), st.integers(1, 3))
def test_accepted_means_that_any_loss_leaves_a_quorum(dcs: list[str], min_commit_dcs: int) -> None:
    accepted = not errors([(dc, "us", True) for dc in dcs], min_commit_dcs)
    survives = all(
        len(left := [dc for dc in dcs if dc != lost]) >= len(dcs) // 2 + 1 and len(set(left)) >= min_commit_dcs
        for lost in set(dcs)
    )
    assert accepted == survives


def test_what_may_be_lost_next() -> None:
    three = [("a", True), ("b", True), ("c", True)]
    assert next_loss(three, 2) == "Any one data center of a, b, c can be lost without stopping writes."
    assert next_loss(three[:2], 2).startswith(
        "No data center of a, b can be lost without stopping writes until a third"
    )
    assert next_loss(three[:1], 1) == "" == next_loss([], 1)
    assert next_loss([*three[:2], ("c", False)], 2).endswith("only c can be lost without stopping writes.")
    heavy = [("a", True), ("a", True), ("a", True), ("b", True), ("c", True)]
    assert "only b or c can be lost" in next_loss(heavy, 2)


def test_where_writes_have_stopped_nothing_is_said_of_what_may_be_lost_next() -> None:
    gone = [("a", False), ("b", False), ("c", True)]
    assert next_loss(gone, 2) == (
        "Writes have stopped: 1 of 3 voters answer, in 1 data centers; they need 2 voters, in 2 data centers."
    )
    assert next_loss([("a", True), ("a", True), ("b", False)], 2).startswith("Writes have stopped"), "too few places"
    assert next_loss([("a", False)], 1).startswith("Writes have stopped")
