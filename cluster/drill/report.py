"""What the drill prints, and the same for --json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.drill.judge import Verdict
from cluster.drill.latency import Spread

FAILURE_COLUMNS = (
    "what",
    "promised",
    "lost",
    "writes: median",
    "worst",
    "gap: worst",
    "reads away: worst",
    "home: worst",
    "caught up",
)


@dataclass(slots=True)
class Findings:
    """All that was found."""

    verdicts: list[Verdict] = field(default_factory=list)
    spreads: list[Spread] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> list[str]:
        """Promises that did not hold."""
        spreads = [f"{each.what} in {each.region}: {each.most_ms:,.0f} ms" for each in self.spreads if each.is_broken]
        return [*(text for verdict in self.verdicts for text in verdict.broken), *spreads]

    @property
    def missed(self) -> list[str]:
        """Aims that were not reached."""
        spreads = [
            f"{each.what} in {each.region}: {each.aims_at} {_value(each):,.1f} ms, {_aim(each)} at most"
            for each in self.spreads
            if each.is_missed
        ]
        return [*(text for verdict in self.verdicts for text in verdict.missed), *spreads]

    def as_json(self) -> dict[str, Any]:
        """For --json and bench/results/."""
        return {
            "rows": [
                {
                    "name": verdict.row.name,
                    "what": verdict.row.what,
                    "promise": verdict.row.promise,
                    "broken": verdict.broken,
                    "missed": verdict.missed,
                    "runs": [_rounded(asdict(run)) for run in verdict.runs],
                }
                for verdict in self.verdicts
            ],
            "spreads": [_rounded({**asdict(each), "missed": each.is_missed}) for each in self.spreads],
            "machine": self.machine,
            "broken": self.broken,
            "missed": self.missed,
            "ok": not self.broken,
        }


def show(console: Console, findings: Findings) -> None:
    """Print everything."""
    if findings.verdicts:
        console.print(failure_table(findings.verdicts))
    if findings.spreads:
        console.print(spread_table(findings.spreads))
    for text in findings.broken:
        console.print(f"[red]✗ promise broken:[/] {text}", soft_wrap=True, highlight=False)
    for text in findings.missed:
        console.print(f"[yellow]• aim missed:[/] {text}", soft_wrap=True, highlight=False)
    if not findings.broken:
        console.print("[green]✓ every promise was kept[/]")


def failure_table(verdicts: Sequence[Verdict]) -> Table:
    """Promise beside measure. Waits are of the client that waited longest, in milliseconds."""
    table = Table(title="The failure table", box=None, padding=(0, 2), title_justify="left", header_style="bold")
    for name in FAILURE_COLUMNS:
        table.add_column(name, justify="left" if name in ("what", "promised") else "right")
    for row in failure_rows(verdicts):
        table.add_row(*row)
    return table


def failure_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """The cells of failure_table."""
    return [
        [
            verdict.row.what,
            verdict.row.promise,
            _lost(verdict),
            f"{verdict.median('writes'):,.0f}",
            f"{verdict.worst('writes'):,.0f}",
            f"{verdict.worst('all writes'):,.0f}",
            f"{verdict.worst('reads away'):,.0f}",
            f"{verdict.worst('reads home'):,.0f}",
            f"{verdict.worst('caught up'):,.0f}",
        ]
        for verdict in verdicts
    ]


def _lost(verdict: Verdict) -> str:
    lost, acknowledged = (sum(getattr(run, name) for run in verdict.runs) for name in ("lost", "acknowledged_count"))
    text = f"{lost} of {acknowledged:,}"
    if any("writes cut" in run.figures for run in verdict.runs):
        text += f", {verdict.worst('writes cut'):,.0f} cut off ({verdict.worst('loss'):,.0f} ms)"
    return text


def spread_table(spreads: Sequence[Spread]) -> Table:
    """Latency and lag."""
    table = Table(title="Latency and lag, ms", box=None, padding=(0, 2), title_justify="left", header_style="bold")
    for name in ("what", "region", "aim", "min", "p50", "p99", "max", "calls"):
        table.add_column(name, justify="left" if name in ("what", "region", "aim") else "right")
    for row in spread_rows(spreads):
        table.add_row(*row)
    return table


def spread_rows(spreads: Sequence[Spread]) -> list[list[str]]:
    """The cells of spread_table."""
    return [
        [
            each.what,
            each.region,
            f"{each.aims_at} {_aim(each)}" if each.aim_ms else "",
            f"{each.least_ms:,.1f}",
            f"{each.median_ms:,.1f}",
            f"{each.p99_ms:,.1f}",
            f"{each.most_ms:,.1f}",
            f"{each.count:,}",
        ]
        for each in spreads
    ]


def _aim(spread: Spread) -> str:
    return f"{spread.aim_ms:,.1f}".removesuffix(".0")


def _value(spread: Spread) -> float:
    return spread.median_ms if spread.aims_at == "median" else spread.p99_ms


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, dict) else round(value, 1) if isinstance(value, float) else value
        for name, value in values.items()
    }
