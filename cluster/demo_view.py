"""What the demo shows on a terminal."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.demo_ledger import Ledger
from cluster.demo_nodes import NodeSight
from cluster.demo_verify import Findings
from cluster.launcher import LocalNode
from cluster.topology import VOTER, Topology

if TYPE_CHECKING:
    from cluster.demo import Summary

_PLAIN_INTERVAL_S = 5.0
_REFRESHES_PER_SECOND = 4
GOOD, BAD, NOTE = "[green]✓[/]", "[red]✗[/]", "[yellow]•[/]"


class DemoView:
    """Prints to one console; knows nothing about how the demo works."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._sights: Sequence[NodeSight] = ()
        self._shown_at_s = 0.0

    def starting(self, topology: Topology) -> None:
        """Before anything is there."""
        self.console.print(
            f"[bold]kvnode demo[/]: {len(topology.nodes)} data centers in {len(topology.regions)} regions, a node in "
            "each, on this machine"
        )
        home = topology.primary.name
        away = [
            f"{topology.delays[home, region.name]:g} ms to {region.name}"
            for region in topology.regions
            if not region.primary
        ]
        least, greatest = topology.primary.delay_ms
        self.console.print(
            f"A proxy between them gives the real delays: {least:g} to {greatest:g} ms one way inside {home}, "
            f"{', '.join(away)}\n"
        )

    def started(self, nodes: Sequence[LocalNode], leader: str) -> None:
        """All nodes serve."""
        for node in nodes:
            role = "leader" if node.name == leader else "follower" if node.spec.role == VOTER else node.spec.role
            self.console.print(
                f"{GOOD} node [bold]{node.name}[/] serves on {node.address}, {role} [dim](process {node.child.pid})[/]"
            )

    @contextmanager
    def loading(self, count: int) -> Iterator[None]:
        """While the input is loaded."""
        self.console.print(
            f"\nLoading the {count:,} named characters of Unicode {unicodedata.unidata_version}: "
            "each one's record and the index of its words in one transaction"
        )
        with self._bar("loading", count):
            yield

    def loaded(self, ledger: Ledger) -> None:
        """So far."""
        if self._progress is not None:
            note = f"{ledger.per_second():,.0f} transactions/s"
            self._progress.update(self._task, completed=ledger.settled_count, note=note)

    def seen(self, sights: Sequence[NodeSight]) -> None:
        """What the nodes do just now. A terminal shows it in place, anything else gets some lines now and then."""
        self._sights = sights
        now_s = time.monotonic()
        if (
            not self.console.is_terminal
            and now_s - self._shown_at_s >= _PLAIN_INTERVAL_S
            and self._progress is not None
        ):
            self._shown_at_s = now_s
            for sight in sights:
                self.console.print(f"{NOTE} {_line(sight)}", soft_wrap=True)

    def killed(self, name: str, acknowledged_count: int) -> None:
        """The leader is dead."""
        self.console.print(
            f"{BAD} killed node [bold]{name}[/], the leader, with SIGKILL after {acknowledged_count:,} transactions"
        )

    def writes_again(self, gap_ms: float, leader: str) -> None:
        """The others go on."""
        self.console.print(f"{GOOD} writes go on after {gap_ms / 1000:.2f} s; node [bold]{leader}[/] leads")

    def restarted(self, name: str) -> None:
        """The dead one is back."""
        self.console.print(f"{GOOD} node [bold]{name}[/] is back and serves")

    @contextmanager
    def verifying(self, rows_count: int) -> Iterator[None]:
        """While everything is read back."""
        self.console.print("\nReading every acknowledged write back from every node")
        with self._bar("reading", rows_count):
            yield

    def verified_rows(self, count: int) -> None:
        """A page more."""
        if self._progress is not None:
            self._progress.advance(self._task, count)

    def verified(self, findings: Findings) -> None:
        """One node under one consistency."""
        kind = "strong" if findings.strong else "eventual"
        result = "all there, once" if findings.ok else f"{len(findings.lost)} lost, {findings.duplicated_count} doubled"
        mark = GOOD if findings.ok else BAD
        self.console.print(f"{mark} node {findings.node}, {kind} reads: {findings.rows_count:,} rows, {result}")

    def conclude(self, summary: Summary) -> None:
        """The end."""
        table = Table(show_header=False, box=None, padding=(0, 2))
        rate, gap_s = summary.transactions_per_second, summary.gap_ms / 1000
        table.add_row("transactions", f"{rate:,.0f} a second, the gap included")
        table.add_row("write gap", f"{gap_s:.2f} s, when node {summary.killed} was killed")
        table.add_row("leader now", f"node {summary.leader}")
        table.add_row("acknowledged", f"{summary.acknowledged:,}")
        table.add_row("lost", _count(summary.lost))
        table.add_row("duplicated", _count(summary.duplicated))
        for what, count in (("without an answer", summary.unanswered), ("refused", summary.refused)):
            if count:
                table.add_row(what, f"{count:,}")
        for name, index in summary.applied.items():
            lag = f", at most {summary.lag_ms[name]:,.0f} ms behind" if summary.lag_ms.get(name) else ""
            table.add_row(f"node {name}", f"applied {index:,}, digest {summary.digests[name][:16]}{lag}")
        same = "[green]equal at the same index[/]" if summary.digests_equal else "[red]different[/]"
        table.add_row("digests", same)
        self.console.print()
        self.console.print(table)
        verdict = (
            f"{GOOD} [bold green]Nothing acknowledged was lost or applied twice.[/]"
            if summary.ok
            else f"{BAD} [bold red]This run broke a promise.[/]"
        )
        self.console.print(f"\n{verdict} [dim]({summary.seconds:.0f} s)[/]")

    def kept(self, nodes: Sequence[LocalNode], pids: Sequence[int], folder: Path) -> None:
        """The cluster stays up: how to talk to it."""
        endpoints = ",".join(node.address for node in nodes)
        kvnode = ".venv/bin/python -m kvnode"
        lines = [
            f"export KVNODE_ENDPOINTS={endpoints}",
            f"{kvnode} status",
            f'{kvnode} get \'["character", "0000E9"]\'',
            f'{kvnode} list \'["word", "ACUTE"]\' --limit 5',
            f"kill {' '.join(map(str, pids))}   # stops it; its data is in {folder}",
        ]
        self.console.print("\nThe cluster stays up. To talk to it:")
        for line in lines:
            self.console.print("  " + line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[None]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._shown_at_s = time.monotonic()
        progress = Progress(*columns, console=self.console)
        task = progress.add_task(what, total=total, note="")
        self._progress, self._task = progress, task

        def render() -> RenderableType:
            return Group(_table(self._sights), progress) if self._sights and self.console.is_terminal else progress

        with Live(get_renderable=render, console=self.console, refresh_per_second=_REFRESHES_PER_SECOND):
            try:
                yield
            finally:
                self._progress = None


def _table(sights: Sequence[NodeSight]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("node")
    table.add_column("role")
    table.add_column("applied versionstamp")
    for name in ("lag ms", "lag entries", "writes/s", "reads/s"):
        table.add_column(name, justify="right")
    for sight in sights:
        if not sight.applied:
            table.add_row(sight.name, f"[red]{sight.role}[/]")
            continue
        table.add_row(
            sight.name,
            f"[bold]{sight.role}[/]" if sight.role == "leader" else sight.role,
            sight.applied,
            f"{sight.lag_ms:,.0f}",
            f"{sight.lag_entries:,}",
            f"{sight.writes_per_second:,.0f}",
            f"{sight.reads_per_second:,.0f}",
        )
    return table


def _line(sight: NodeSight) -> str:
    if not sight.applied:
        return f"{sight.name:<10} {sight.role}"
    return (
        f"{sight.name:<10} {sight.role:<8} applied {sight.applied}, {sight.lag_ms:,.0f} ms and {sight.lag_entries:,} "
        f"entries behind, {sight.writes_per_second:,.0f} writes/s, {sight.reads_per_second:,.0f} reads/s"
    )


def _count(count: int) -> str:
    return f"[red]{count:,}[/]" if count else "[green]0[/]"
