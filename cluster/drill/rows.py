"""The failure table: what happens, what is promised, what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.drill import faults
from cluster.drill.faults import Choose, Fault

Statistic = Literal["median", "worst"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure must not exceed `most`.

    Args:
        measure: its name among those of judge.Measured.
        most: in the measure's unit.
        statistic: over the repetitions.
        promised: whether to break it fails the drill; otherwise it is an aim.
    """

    measure: str
    most: float
    statistic: Statistic = "worst"
    promised: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Args:
        name: for --rows.
        what: befalls the cluster.
        promise: in words.
        fault: does it.
        bounds: promises and aims in figures; that nothing acknowledged is lost holds for all.
        hold_s: how long it lasts.
        changes_count: so many writes are made meanwhile, besides the traffic (the long form).
        flags: of `kvnode failover` to the first replica region; none = no failover (failovers.py).
        victims: who is killed before the command.
    """

    name: str
    what: str
    promise: str
    fault: Fault
    bounds: tuple[Bound, ...] = ()
    hold_s: float = 5.0
    changes_count: int = 0
    flags: tuple[str, ...] = ()
    victims: Choose | None = None


_UNTOUCHED = Bound("writes", 100, promised=False)
_READ_AGAIN = Bound("reads away", 5_000)
_READ_ON = Bound("reads away", 1_000, promised=False)
_WRITE_AGAIN = Bound("writes", 5_000)
_SOON = Bound("writes", 1_600, "median", promised=False)


def _primary(name: str, whose: str, how: str, fault: Fault) -> Row:
    what = f"one primary DC lost, {whose}: {how}"
    return Row(name, what, "nothing lost, writes again < 5 s", fault, (_WRITE_AGAIN, _SOON))


def _replicas(name: str, what: str, fault: Fault, *, reads_on: bool = True) -> Row:
    bounds = (_READ_AGAIN, *((_READ_ON,) if reads_on else ()), _UNTOUCHED)
    return Row(name, what, "nothing lost, reads again < 5 s", fault, bounds)


def _replica(number: int) -> Row:
    """The DC `number` of those outside the primary region."""
    region, place = divmod(number, 2)
    what = f"one replica DC lost, {'ab'[place]} of replica region {region + 1}: kill -9"
    return _replicas(f"replica-{number + 1}-killed", what, faults.killed(faults.node(region, place)))


def _failover(name: str, what: str, victims: Choose) -> Row:
    bounds = (
        Bound("loss", 60_000),
        Bound("loss", 1_000, promised=False),
        Bound("all writes", 10_000, promised=False),
    )
    flags = ("--primary-is-down", "--yes")  # what is left of the old voters cannot keep the dead ones back
    return Row(
        name, what, "at most 60 s of writes lost, reported", faults.nothing, bounds, flags=flags, victims=victims
    )


ROWS: tuple[Row, ...] = (
    Row("control", "nothing at all: what the machine itself costs", "nothing lost", faults.nothing, (_UNTOUCHED,)),
    _primary("leader-killed", "the leader's", "kill -9", faults.killed(faults.leader)),
    _replicas("region-killed", "a replica region lost: kill -9", faults.killed(faults.region(0)), reads_on=False),
    _primary("leader-frozen", "the leader's", "frozen", faults.frozen(faults.leader)),
    _primary("leader-cut", "the leader's", "network cut", faults.cut_off(faults.leader)),
    _primary("follower-killed", "a follower's", "kill -9", faults.killed(faults.follower)),
    _primary("follower-frozen", "a follower's", "frozen", faults.frozen(faults.follower)),
    _primary("follower-cut", "a follower's", "network cut", faults.cut_off(faults.follower)),
    *(_replica(number) for number in range(4)),
    _replicas("replica-frozen", "one replica DC lost: frozen", faults.frozen(faults.node(0, 0))),
    _replicas("replica-cut", "one replica DC lost: network cut", faults.cut_off(faults.node(0, 0))),
    _replicas("region-cut", "a cut between the primary and one replica region", faults.cut_between(0, 1)),
    Row(
        "region-back",
        "a replica region lost, and its return after 100,000 changes",
        "nothing lost, it catches up",
        faults.killed(faults.region(1)),
        (_WRITE_AGAIN, Bound("caught up", 60_000, promised=False)),
        changes_count=100_000,
    ),
    Row(
        "all-replicas",
        "all replica regions lost: kill -9",
        "nothing lost, writes go on",
        faults.killed(faults.all_replicas),
        (_WRITE_AGAIN, _UNTOUCHED),
    ),
    Row(
        "replicas-apart",
        "a cut between the two replica regions only",
        "nobody feels it",
        faults.cut_between(1, 2),
        (_WRITE_AGAIN, _READ_AGAIN, _READ_ON, _UNTOUCHED),
    ),
    _replicas("flapping", "a flapping link from the primary to one replica region", faults.flapping(0, 2)),
    Row(
        "move",
        "planned move of the primary to another region",
        "nothing lost, writes pause < 2 s",
        faults.nothing,
        (Bound("all writes", 2_000),),
        flags=("--plan", "--yes"),
    ),
    _failover("two-primary", "two primary DCs lost at once, with failover", faults.majority),
    _failover("primary-region", "the primary region lost, with failover; then its return", faults.primary),
)

SHORT = ("leader-killed", "region-killed")
SHORT_CHANGES_COUNT = 2_000
