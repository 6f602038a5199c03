"""Which topologies keep the promises.

A data center stands in one region: what is counted by one and what is lost with the other would not fit otherwise. And
a pure rule over (data center, region, votes): the loss of any one data center must leave a majority of the voters
and at least `min_commit_dcs` data centers, or a single loss stops every write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

RECOMMENDED_DCS_COUNT = 6
RECOMMENDED_REGIONS_COUNT = 3
RECOMMENDED_PRIMARY_DCS_COUNT = 3


class Place(NamedTuple):
    """Where one member stands, and whether it votes."""

    dc: str
    region: str
    votes: bool


class Problem(NamedTuple):
    """`severity` is "error" (refused without the override) or "advice"."""

    severity: str
    text: str


def other_region(dc: str, region: str, places: Iterable[tuple[str, str]]) -> str:
    """The region in which a data center stands already, if that is another one; else empty.

    Args:
        places: (data center, region) of the members that there are.
    """
    return next((known for at, known in places if at == dc and known != region), "")


def topology_problems(places: Sequence[tuple[str, str, bool]], min_commit_dcs: int) -> list[Problem]:
    """What is wrong with a placement, errors first; empty when nothing is."""
    members = [Place(*place) for place in places]
    voters = [member for member in members if member.votes]
    dcs = sorted({voter.dc for voter in voters})
    majority = len(voters) // 2 + 1
    problems: list[Problem] = []
    if len(dcs) < min_commit_dcs:
        text = f"a commit needs {min_commit_dcs} data centers and the voters stand in {len(dcs)}: nothing can commit"
        return [Problem("error", text)]
    for dc in dcs:
        left = [voter for voter in voters if voter.dc != dc]
        if len(left) < majority:
            problems.append(
                Problem(
                    "error", f"the loss of data center {dc} leaves {len(left)} of {len(voters)} voters: no majority"
                )
            )
        elif len(dcs) - 1 < min_commit_dcs:
            problems.append(
                Problem("error", f"the loss of data center {dc} leaves {len(dcs) - 1}, a commit needs {min_commit_dcs}")
            )
    return problems + _advice(members, dcs)


def next_loss(voters: Sequence[tuple[str, bool]], min_commit_dcs: int) -> str:
    """Which data center may be lost next without stopping writes, as a sentence; empty for a single voter that answers.

    Where too few answer already, that writes have stopped, and what they need.

    Args:
        voters: of each the data center, and whether it answers.
        min_commit_dcs: how many data centers a commit needs.
    """
    if not voters:
        return ""
    majority = len(voters) // 2 + 1
    dcs = sorted({dc for dc, _ in voters})
    living = [dc for dc, answers in voters if answers]

    if not can_commit(voters, min_commit_dcs):
        return (
            f"Writes have stopped: {len(living)} of {len(voters)} voters answer, in {len(set(living))} data centers; "
            f"they need {majority} voters, in {min_commit_dcs} data centers."
        )

    if len(voters) == 1:
        return ""

    def survives(lost: str) -> bool:
        left = [dc for dc in living if dc != lost]
        return _can_commit(left, len(voters), min_commit_dcs)

    spare = [dc for dc in dcs if survives(dc)]
    if not spare:
        until = " until a third is added" if len(dcs) == 2 else ""
        return f"No data center of {', '.join(dcs)} can be lost without stopping writes{until}."
    if len(spare) == len(dcs):
        return f"Any one data center of {', '.join(dcs)} can be lost without stopping writes."
    return f"Of the data centers {', '.join(dcs)} only {' or '.join(spare)} can be lost without stopping writes."


def can_commit(voters: Sequence[tuple[str, bool]], min_commit_dcs: int) -> bool:
    """Whether enough voters answer for writes; the arguments are those of next_loss."""
    return _can_commit([dc for dc, answers in voters if answers], len(voters), min_commit_dcs)


def _can_commit(living_dcs: Sequence[str], voters_count: int, min_commit_dcs: int) -> bool:
    return len(living_dcs) >= voters_count // 2 + 1 and len(set(living_dcs)) >= min_commit_dcs


def _advice(members: Sequence[Place], primary_dcs: Sequence[str]) -> list[Problem]:
    all_dcs = {member.dc for member in members}
    regions = {member.region for member in members}
    advice = []
    if len(primary_dcs) < RECOMMENDED_PRIMARY_DCS_COUNT:
        advice.append(
            f"{len(primary_dcs)} primary data centers; {RECOMMENDED_PRIMARY_DCS_COUNT} survive the loss of one"
        )
    if len(all_dcs) < RECOMMENDED_DCS_COUNT:
        advice.append(f"{len(all_dcs)} data centers; {RECOMMENDED_DCS_COUNT} or more are recommended")
    if len(regions) < RECOMMENDED_REGIONS_COUNT:
        advice.append(f"{len(regions)} regions; {RECOMMENDED_REGIONS_COUNT} are recommended")
    return [Problem("advice", text) for text in advice]
