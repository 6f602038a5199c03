"""From figures to a verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.drill.measures import longest_wait_ms, worst_wait_ms
from cluster.drill.record import Record
from cluster.drill.rows import Bound, Row


@dataclass(slots=True)
class Measured:
    """One repetition.

    Args:
        figures: by name: "writes" and "reads ...", the longest time that the client waited which waited longest, "all
            writes", the same over all clients together; "writes before the fault" and "before the return", the same in
            the second before it, and only while it lasted; "own pause", for how long the drill itself stood still;
            "stolen", processor time that the host of the machine gave to others;
            "caught up", until all nodes had applied the same. Milliseconds.
        lost: acknowledged writes that the nodes do not show.
        violations: what the checker found, in sentences.
        differing: nodes whose digest is another one.
    """

    figures: dict[str, float] = field(default_factory=dict)
    acknowledged_count: int = 0
    errors_count: int = 0
    lost: int = 0
    violations: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing lost, nothing out of order, the same everywhere."""
        return not (self.lost or self.violations or self.differing)

    @property
    def line(self) -> str:
        """What is said when the repetition is over."""
        figures = ", ".join(f"{name} {value:,.0f}" for name, value in self.figures.items())
        text = f"{self.lost} of {self.acknowledged_count:,} lost, {self.errors_count} errors; {figures}"
        if self.sound:
            return text
        return f"NOT SOUND: {'; '.join([*self.violations, *(f'{name} differs' for name in self.differing)])}; {text}"


@dataclass(slots=True)
class Verdict:
    """A row's repetitions against its promise. `broken` and `missed` are sentences about promises and aims."""

    row: Row
    runs: list[Measured]
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Over the repetitions; of those that have the figure."""
        values = [run.figures[name] for run in self.runs if name in run.figures]
        return statistics.median(values) if values else 0.0

    def worst(self, name: str) -> float:
        """The greatest over the repetitions."""
        return max((run.figures.get(name, 0.0) for run in self.runs), default=0.0)


def waits(record: Record, home: str, away: Sequence[str], since_ms: float, until_ms: float) -> dict[str, float]:
    """The longest times that clients waited between two moments, for Measured.figures."""
    writes = record.of("write", home)
    figures = {
        "writes": worst_wait_ms(writes, since_ms, until_ms),
        "all writes": longest_wait_ms(writes, since_ms, until_ms),
        "reads home": worst_wait_ms(record.of("eventual", home), since_ms, until_ms),
    }
    for region in away:
        figures[f"reads {region}"] = worst_wait_ms(record.of("eventual", region), since_ms, until_ms)
    figures["reads away"] = max(figures[f"reads {region}"] for region in away)
    return figures


def judge(row: Row, runs: Sequence[Measured]) -> Verdict:
    """What the figures say."""
    verdict = Verdict(row, list(runs))
    for number, run in enumerate(runs, 1):
        where = f"{row.name}, repetition {number}"
        if run.lost:
            verdict.broken.append(f"{where}: {run.lost} acknowledged writes are lost")
        verdict.broken += [f"{where}: {text}" for text in run.violations]
        if run.differing:
            verdict.broken.append(f"{where}: digests differ: {', '.join(run.differing)}")
    for bound in row.bounds:
        value = verdict.median(bound.measure) if bound.statistic == "median" else verdict.worst(bound.measure)
        if value > bound.most:
            (verdict.broken if bound.promised else verdict.missed).append(_exceeded(row, bound, value))
    return verdict


def _exceeded(row: Row, bound: Bound, value: float) -> str:
    return f"{row.name}: {bound.measure}, {bound.statistic} {value:,.0f} ms, {bound.most:,.0f} at most"
