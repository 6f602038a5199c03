"""`python -m cluster.drill`. Exit status 0: every promise was kept, 1: not, 2: it could not be run, 130: Ctrl-C."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.console import Console

from cluster.drill.drill import Drill
from cluster.drill.failovers import run_failovers
from cluster.drill.latency import lags, latencies
from cluster.drill.page import page
from cluster.drill.pauses import stolen_ms
from cluster.drill.report import Findings, show
from cluster.drill.rows import ROWS, SHORT, SHORT_CHANGES_COUNT, Row
from cluster.drill.stage import Stage
from cluster.launcher import ROOT, ClusterFailed
from cluster.topology import load_topology
from cluster.wan.wan import WanFailed

EXIT_BROKEN = 1
PLAIN_COLUMNS = 180  # in a file nothing is wrapped
EXIT_NOT_RUN = 2
EXIT_INTERRUPTED = 130
TABLE_S, SHORT_TABLE_S = 20.0, 3.0
PAGE = ROOT / "docs" / "reference" / "failure-table.md"
RESULTS = ROOT / "bench" / "results" / "drill.json"


def main() -> int:
    """Run it; returns the exit status."""
    options = _options()
    rows = _rows(options)
    console = Console(stderr=options.json, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=options.json, highlight=False, width=PLAIN_COLUMNS)
    try:
        findings = uvloop.run(_run(options, rows, console))
    except (ClusterFailed, WanFailed) as error:
        console.print(f"the drill could not be run: {error}", style="red")
        return EXIT_NOT_RUN
    except KeyboardInterrupt:
        console.print("the drill was interrupted; nothing was judged", style="red")
        return EXIT_INTERRUPTED
    show(console, findings)
    if options.write:
        PAGE.write_text(page(findings))
        RESULTS.write_text(json.dumps(findings.as_json(), indent=1) + "\n")
        console.print(f"written: {PAGE.relative_to(ROOT)}, {RESULTS.relative_to(ROOT)}")
    if options.json:
        print(json.dumps(findings.as_json()))
    return EXIT_BROKEN if findings.broken else 0


async def _run(options: argparse.Namespace, rows: list[Row], console: Console) -> Findings:
    topology = load_topology()
    regions = [region.name for region in topology.regions]
    gateways = regions[:1] if options.short else regions
    flags = ["--leader-lease"] if options.leader_lease else []
    findings, stolen = Findings(), stolen_ms()
    console.print(f"{len(topology.nodes)} nodes in {len(regions)} regions, {len(gateways)} gateways")

    def make_stage(name: str) -> Stage:
        return Stage(topology, options.data_dir / name if options.data_dir else None, gateways, flags)

    def say(text: str) -> None:
        console.print(f"  {text}")

    shared = [row for row in rows if not row.flags]
    if shared or options.tables:
        await _on_one_stage(Stage(topology, options.data_dir, gateways, flags), options, shared, findings, say)
    for row in rows:
        if row.flags:
            findings.verdicts.append(await run_failovers(row, options.repetitions, make_stage, say))
    findings.machine = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "stolen_s": (stolen_ms() - stolen) / 1_000,
        "repetitions": options.repetitions,
        "leader_lease": options.leader_lease,
    }
    return findings


async def _on_one_stage(
    stage: Stage, options: argparse.Namespace, rows: list[Row], findings: Findings, say: Callable[[str], None]
) -> None:
    """The tables, and the rows after which all is as before."""
    try:
        async with stage:
            if options.tables:
                say("latency and lag")
                findings.spreads += await latencies(stage, SHORT_TABLE_S if options.short else TABLE_S)
                findings.spreads += await lags(stage, SHORT_TABLE_S if options.short else TABLE_S)
            drill = Drill(stage, say)
            for row in rows:
                findings.verdicts.append(await drill.run(row, options.repetitions))
    finally:
        stage.close()


def _rows(options: argparse.Namespace) -> list[Row]:
    wanted = options.rows or (SHORT if options.short else [row.name for row in ROWS])
    rows = [row for row in ROWS if row.name in wanted]
    if options.short:
        rows = [replace(row, hold_s=3, changes_count=min(row.changes_count, SHORT_CHANGES_COUNT)) for row in rows]
    return rows


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _names(text: str) -> list[str]:
    """The value of --rows."""
    names, known = text.split(","), [row.name for row in ROWS]
    unknown = [name or "''" for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no row is called {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def _count(text: str) -> int:
    """The value of --repetitions: without one nothing is measured, and no promise broken."""
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number above 0, not {text}")
    return int(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make drill", description="The failure table, measured on seven real nodes.")
    parser.add_argument("--short", action="store_true", help="two rows, once, and short tables: a minute")
    parser.add_argument("--rows", type=_names, default=[], metavar="A,B", help="only these rows")
    parser.add_argument("--repetitions", type=_count, default=0, metavar="N", help="of each row (3; 1 with --short)")
    parser.add_argument("--no-tables", dest="tables", action="store_false", help="leave latency and lag out")
    parser.add_argument("--data-dir", type=Path, default=None, help="data and logs, kept; temporary by default")
    parser.add_argument("--leader-lease", action="store_true", help="nodes that are set to read under a lease")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
    parser.add_argument("--write", action="store_true", help="write docs/reference/failure-table.md and bench/results")
    options = parser.parse_args()
    if options.write and options.leader_lease:
        parser.error("the page that --write writes is of the default settings; leave --leader-lease out")
    options.repetitions = options.repetitions or (1 if options.short else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
