"""`python -m cluster.drill`. Exit status 0 when every promise was kept, 1 when not, 2 when it could not be run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.console import Console

from cluster.drill.drill import Drill
from cluster.drill.latency import lags, latencies
from cluster.drill.page import page
from cluster.drill.report import Findings, show
from cluster.drill.rows import ROWS, SHORT, SHORT_CHANGES_COUNT, Row
from cluster.drill.stage import Stage
from cluster.launcher import ROOT, ClusterFailed
from cluster.topology import load_topology
from cluster.wan.wan import WanFailed

EXIT_BROKEN = 1
EXIT_NOT_RUN = 2
PAGE = ROOT / "docs" / "reference" / "failure-table.md"
RESULTS = ROOT / "bench" / "results" / "drill.json"


def main() -> int:
    """Run it; returns the exit status."""
    options = _options()
    rows = _rows(options)
    console = Console(stderr=options.json, highlight=False)
    try:
        findings = uvloop.run(_run(options, rows, console))
    except (ClusterFailed, WanFailed) as error:
        console.print(f"the drill could not be run: {error}", style="red")
        return EXIT_NOT_RUN
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
    findings = Findings()
    console.print(f"Starting {len(topology.nodes)} nodes in {len(regions)} regions and {len(gateways)} gateways ...")
    stage = Stage(topology, options.data_dir, gateways)
    try:
        async with stage:
            if options.tables:
                console.print("Latency and lag ...")
                findings.spreads += await latencies(stage, 3 if options.short else 20)
                findings.spreads += await lags(stage, 3 if options.short else 20)
            drill = Drill(stage, lambda text: console.print(f"  {text}"))
            for row in rows:
                verdict = await drill.run(row, options.repetitions)
                findings.verdicts.append(verdict)
                for text in verdict.broken:
                    console.print(f"  [red]✗[/] {text}", soft_wrap=True)
    finally:
        stage.close()
    findings.machine = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "repetitions": options.repetitions,
    }
    return findings


def _rows(options: argparse.Namespace) -> list[Row]:
    wanted = options.rows.split(",") if options.rows else SHORT if options.short else [row.name for row in ROWS]
    unknown = [name for name in wanted if name not in {row.name for row in ROWS}]
    if unknown:
        raise SystemExit(f"no row is called {', '.join(unknown)}; there are {', '.join(row.name for row in ROWS)}")
    rows = [row for row in ROWS if row.name in wanted]
    if options.short:
        rows = [replace(row, hold_s=3, changes_count=min(row.changes_count, SHORT_CHANGES_COUNT)) for row in rows]
    return rows


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make drill", description="The failure table, measured on seven real nodes.")
    parser.add_argument("--short", action="store_true", help="two rows, once, and short tables: a minute")
    parser.add_argument("--rows", default="", metavar="A,B", help="only these rows")
    parser.add_argument("--repetitions", type=int, default=0, metavar="N", help="of each row (3; 1 with --short)")
    parser.add_argument("--no-tables", dest="tables", action="store_false", help="leave latency and lag out")
    parser.add_argument("--data-dir", type=Path, default=None, help="data and logs; a temporary folder by default")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
    parser.add_argument("--write", action="store_true", help="write docs/reference/failure-table.md and bench/results")
    options = parser.parse_args()
    options.repetitions = options.repetitions or (1 if options.short else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
