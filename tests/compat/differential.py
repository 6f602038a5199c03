"""Random sequences of Deno KV's operations, run on Deno's own database in one file and on a node, must give the same.

python -m tests.compat.differential --seeds 200 --start 0       by the leader's and a follower's URL, side by side
python -m tests.compat.differential --seeds 1 --start 17 --minimize

The program is programs/differential.mjs; what may differ, and why, stands at its top.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.compat.clients import PROGRAMS, ClientsMissing, clients, environment, install
from tests.compat.nodes import Nodes, three_nodes
from tests.compat.results import Route

ROUTES = ("leader", "follower")
OPERATIONS_COUNT = 120
REPLAY = "python -m tests.compat.differential --seeds 1 --start {seed} --operations {operations} --minimize"
_SEED_TIMEOUT_S = 60
_MINIMIZING_TIMEOUT_S = 600

# What every campaign of some length must have done; the names are the program's.
EXERCISED = (
    *("get", "getMany", "list", "pages", "resumed", "foreignCursor", "set", "setExpiring", "setStamped", "delete"),
    *("atomic", "limit", "found", "missing", "listedEntries", "committed", "checkFailed"),
    *("refusedByClient", "refusedByServer"),
)


class ProgramFailed(Exception):
    """The program ended early, or not at all; the message has what it said."""


class Run(NamedTuple):
    """One seed by one route.

    Args:
        seed: of the sequence.
        operations: how many were asked for; the lists at its end come on top.
        counts: by kind of operation and of outcome.
        differences: {operation, call, file, node}, the first ones.
        minimized: {calls, differences} of the shortest part found that differs; empty unless asked for.
    """

    seed: int
    operations: int
    counts: Mapping[str, int]
    differences: Sequence[Mapping[str, Any]]
    minimized: Mapping[str, Any]


def own_databases(nodes: Nodes) -> dict[str, Route]:
    """The routes, each with a database that nothing else uses: sequences empty theirs."""
    leader, follower = nodes.by_leader(), nodes.by_follower()
    other = f"{follower.url}{nodes.prepared['ordersName']}", nodes.prepared["ordersToken"]
    return {"leader": leader, "follower": follower._replace(url=other[0], token=other[1])}


def run(
    route: Route, start: int, seeds: int, *, operations: int = OPERATIONS_COUNT, minimize: bool = False
) -> Iterator[Run]:
    """Run the sequences of `seeds` seeds in one process of Deno; results as they come.

    Raises:
        ProgramFailed: it did not get to its end.
    """
    deno = next(client for client in clients() if client.name == "deno")
    with tempfile.TemporaryDirectory(prefix="kvnode-differential-") as folder:
        options = {"url": route.url, "folder": folder, "start": start, "seeds": seeds}
        options |= {"operations": operations, "minimize": minimize}
        command = [*deno.command[:-1], str(PROGRAMS / "differential.mjs"), json.dumps(options)]
        errors = Path(folder) / "errors"
        with (
            errors.open("w") as said,
            subprocess.Popen(
                command,
                env=environment(route.token, route.certificate),
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            ) as process,
        ):
            patience_s = seeds * (_SEED_TIMEOUT_S + (_MINIMIZING_TIMEOUT_S if minimize else 0))
            late = threading.Timer(patience_s, process.kill)
            late.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    found = json.loads(line)
                    minimized = found.get("minimized", {})
                    yield Run(found["seed"], found["operations"], found["counts"], found["differences"], minimized)
            finally:
                late.cancel()
                if process.poll() is None and sys.exc_info()[0] is not None:
                    process.kill()
        if process.returncode:
            said_last = errors.read_text().strip()[-2_000:]
            raise ProgramFailed(f"{route.name}: the program ended with {process.returncode}: {said_last}")


def total(runs: Sequence[Run]) -> Counter[str]:
    """The counts of several runs."""
    counts: Counter[str] = Counter()
    for each in runs:
        counts.update(each.counts)
    return counts


def describe(found: Run, route: str) -> str:
    """A run's differences, and how to see them again."""
    lines = [f"seed {found.seed}, {route}: {REPLAY.format(seed=found.seed, operations=found.operations)}"]
    differences = found.differences
    if found.minimized:
        lines += ["  the shortest part that differs:", *(f"    {call}" for call in found.minimized["calls"])]
        differences = found.minimized["differences"] or differences
    for each in differences:
        lines += [f"  {each['operation']}: {each['call']}", f"    file: {each['file']}", f"    node: {each['node']}"]
    return "\n".join(lines)


def campaign(route: Route, options: argparse.Namespace) -> list[Run]:
    """All seeds by one route, told as they come."""
    runs = []
    for found in run(route, options.start, options.seeds, operations=options.operations, minimize=options.minimize):
        runs.append(found)
        if found.differences:
            print(describe(found, route.name), flush=True)
        elif sys.stderr.isatty():
            print(f"\r{len(runs)}/{options.seeds} by {route.name}", end="", file=sys.stderr, flush=True)
    return runs


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.compat.differential", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many, by each route")
    parser.add_argument("--start", type=int, default=0, help="the first")
    parser.add_argument("--operations", type=int, default=OPERATIONS_COUNT, help="of each sequence")
    parser.add_argument("--route", action="append", choices=ROUTES, help="may be repeated; both by default")
    parser.add_argument("--minimize", action="store_true", help="look for the shortest part that differs")
    options = parser.parse_args()
    options.route = options.route or list(ROUTES)
    return options


def main() -> int:
    """The command; the exit status is 0 when nothing differs."""
    options = _options()
    try:
        install()
    except ClientsMissing as error:
        print(f"differential: {error}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kvnode-differential-") as folder, three_nodes(Path(folder)) as nodes:
        routes = own_databases(nodes)
        with ThreadPoolExecutor(len(options.route)) as pool:
            jobs = [pool.submit(campaign, routes[name], options) for name in options.route]
            runs = [found for job in jobs for found in job.result()]
    counts = total(runs)
    differing = sum(1 for found in runs if found.differences)
    for name, number in sorted(counts.items()):
        print(f"  {number:>8,} {name}")
    operations = sum(found.operations for found in runs)
    print(f"{differing} of {len(runs)} runs differ: {operations:,} operations in {time.monotonic() - began:.0f} s")
    return 1 if differing or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
