"""What the demo shows on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.demo_ledger import Ledger
from cluster.demo_verify import Findings
from cluster.launcher import LocalNode

if TYPE_CHECKING:
    from cluster.demo import Summary

GOOD, BAD, NOTE = "[green]✓[/]", "[red]✗[/]", "[yellow]•[/]"


class DemoView:
    """Prints to one console; knows nothing about how the demo works."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def starting(self) -> None:
        """Before anything is there."""
        self.console.print("[bold]kvnode demo[/]: one region of three data centers, a node in each, on this machine\n")

    def started(self, nodes: Sequence[LocalNode], leader: str) -> None:
        """All nodes serve."""
        for node in nodes:
            role = "leader" if node.name == leader else "follower"
            self.console.print(
                f"{GOOD} node [bold]{node.name}[/] in {node.spec.dc} serves on {node.address}, {role} "
                f"[dim](process {node.child.pid})[/]"
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
            table.add_row(f"node {name}", f"applied {index:,}, digest {summary.digests[name][:16]}")
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

    def kept(self, nodes: Sequence[LocalNode], folder: Path) -> None:
        """The cluster stays up: how to talk to it."""
        endpoints = ",".join(node.address for node in nodes)
        kvnode = ".venv/bin/python -m kvnode"
        pids = " ".join(str(node.child.pid) for node in nodes)
        lines = [
            f"export KVNODE_ENDPOINTS={endpoints}",
            f"{kvnode} status",
            f'{kvnode} get \'["character", "0000E9"]\'',
            f'{kvnode} list \'["word", "ACUTE"]\' --limit 5',
            f"kill {pids}   # stops it; its data is in {folder}",
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
        with Progress(*columns, console=self.console) as progress:
            self._progress, self._task = progress, progress.add_task(what, total=total, note="")
            try:
                yield
            finally:
                self._progress = None


def _count(count: int) -> str:
    return f"[red]{count:,}[/]" if count else "[green]0[/]"
