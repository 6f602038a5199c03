"""What would be lost with the whole primary region."""

from __future__ import annotations

from kvnode.api.outlook import outlook
from kvnode.proto.kv.v1 import admin_pb2


def cluster(*regions: tuple[str, str, int] | tuple[str, str, int, int]) -> str:
    leader = admin_pb2.NodeStatus()
    for region, node, lag_ms, *silent_ms in regions:
        leader.status.regions.add(region=region, node=node, lag_ms=lag_ms, silent_ms=sum(silent_ms))
    return outlook(leader)


def test_the_sentences() -> None:
    assert outlook(None) == ""
    assert cluster() == "No other region has a copy."
    assert cluster(("europe", "e1", 0)) == "With the whole primary region no write would be lost: europe lags 0.0 s."


def test_of_a_region_that_the_leader_has_not_heard_of_it_says_only_that() -> None:
    """It is no new region for that: after a failover the old primary one is silent, and has a copy."""
    assert cluster(("africa", "", 7_000), ("asia", "", 7_000)) == (
        "It is not known what would be left without the primary region: no copy in africa or asia has been heard of "
        "since the leader began to lead."
    )
    assert cluster(("asia", "", 7_000), ("europe", "e1", 210)) == (
        "With the whole primary region the last 0.2 s of writes would be lost: europe lags 0.2 s; no copy in asia has "
        "been heard of since the leader began to lead."
    )


def test_a_region_that_has_fallen_silent_is_not_said_to_be_current() -> None:
    """While nothing is written, it lacks nothing that the leader knows of; its nodes may all be dead."""
    assert cluster(("europe", "e1", 0, 12_300)) == (
        "It is not known what would be left without the primary region: europe has not been heard of for 12.3 s, and "
        "held every write then."
    )
    assert cluster(("asia", "a1", 200, 90), ("europe", "e1", 0, 12_300)) == (
        "With the whole primary region the last 0.2 s of writes would be lost: asia lags 0.2 s; europe has not been "
        "heard of for 12.3 s, and held every write then."
    )
    assert cluster(("africa", "", 0), ("europe", "e1", 1_500, 12_300)) == (
        "It is not known what would be left without the primary region: europe has not been heard of for 12.3 s, and "
        "lags 1.5 s; no copy in africa has been heard of since the leader began to lead."
    )


def answer(role: str, region: str, *, age_ms: int = 0, error: str = "") -> admin_pb2.NodeStatus:
    shown = admin_pb2.NodeStatus(member=admin_pb2.Member(role=role, region=region), error=error)
    if not error:
        shown.status.age_ms = age_ms
    return shown


GONE = [answer("voter", "home", error="gone")] * 2


def test_with_the_primary_region_gone_it_says_who_could_take_over_and_from_when() -> None:
    said = outlook(
        None,
        [
            *GONE,
            answer("replica", "europe", age_ms=9_000),
            answer("replica", "europe", age_ms=4_000),
            answer("replica", "asia", age_ms=-1),
            answer("replica", "africa", error="gone"),
        ],
    )
    assert "asia has the state of an unknown age, europe has the state as of 4.0 s ago" in said
    assert "kvnode failover --to REGION --dry-run" in said and "africa" not in said


def test_with_everybody_gone_it_says_so() -> None:
    assert outlook(None, GONE) == "No node of another region answers that could take over: start the voters."


def test_while_the_voters_can_elect_nobody_is_sent_to_another_region() -> None:
    voting = [answer("voter", "home")] * 2
    assert outlook(None, [*voting, GONE[0], answer("replica", "europe")]) == ""
