"""`make compat`: the real clients against three nodes; writes docs/reference/compatibility.md.

python -m tests.compat.run                       everything, about five minutes
python -m tests.compat.run --only "watch:"       some features; the page is left alone
python -m tests.compat.run --client deno --route follower --no-failover
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.compat import failover
from tests.compat.clients import BUILD, Client, ClientsMissing, clients, install
from tests.compat.nodes import Nodes, three_nodes
from tests.compat.results import FAILS, WORKS, Result, Route, failures, run
from tests.compat.table import PAGE, page, summary

ROUTES = ("leader", "follower", "gateway", "https", "embedded")
FAILOVER_TITLE = "2,000 sums and 400 checked records while the leader is killed three times, {}"
_AT_A_TIME_COUNT = 4


def run_clients(
    chosen: Sequence[Client], route: Route, *, quick: bool, only: str = "", at_a_time: int = _AT_A_TIME_COUNT
) -> list[Result]:
    """Run the programs of several clients by one route, a few processes at a time."""
    with ThreadPoolExecutor(at_a_time) as pool:
        found = pool.map(lambda client: run(client, route, quick=quick, only=only), chosen)
        return [result for results in found for result in results]


def failover_results(nodes: Nodes, *, through_gateway: bool, load: failover.Load) -> list[Result]:
    """Kill leaders under the clients, and put it as results."""
    keep = "" if through_gateway else nodes.follower()
    route = nodes.by_gateway() if through_gateway else nodes.route("node", keep)
    title = FAILOVER_TITLE.format("through a gateway" if through_gateway else "through another node")
    print(f"Failover, {title.partition(', ')[2]}:", flush=True)
    results = []
    names = {client.title: client.name for client in clients()}
    for outcome in failover.run(nodes, route, keep, load, lambda line: print(f"  {line}", flush=True)):
        detail = "; ".join(outcome.problems)
        verdict = detail or f"exact; longest pause {outcome.longest_pause_ms} ms; {outcome.frames} frames watched"
        print(f"  {outcome.client}: {verdict}", flush=True)
        status = FAILS if outcome.problems else WORKS
        results.append(Result(names[outcome.client], route.name, "Failover", title, status, detail, 0))
    return results


def everything(options: argparse.Namespace, folder: Path) -> list[Result]:
    """All that was asked for."""
    chosen = [client for client in clients() if options.client in ("", client.name)]
    results: list[Result] = []

    def by(route: Route, of: Sequence[Client] = chosen) -> None:
        print(f"{route.name}: {', '.join(client.name for client in of)} ...", flush=True)
        results.extend(run_clients(of, route, quick=options.quick, only=options.only))

    if {"leader", "follower", "gateway"} & set(options.route) or options.failover:
        with three_nodes(folder / "http") as nodes:
            if "leader" in options.route:
                by(nodes.by_leader())
            if "follower" in options.route:
                by(nodes.by_follower())
            if "gateway" in options.route:
                by(nodes.by_gateway())
            if options.failover:
                for through_gateway in (False, True):
                    results += failover_results(nodes, through_gateway=through_gateway, load=failover.Load())
    if "https" in options.route:
        with three_nodes(folder / "https", tls=True) as nodes:
            by(nodes.by_follower())
    deno = [client for client in chosen if client.name == "deno"]
    if "embedded" in options.route and deno:
        by(Route("embedded", str(folder / "embedded.db")), deno)
    return results


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the real clients against three nodes.")
    parser.add_argument("--quick", action="store_true", help="the short form of the programs")
    parser.add_argument("--only", default="", metavar="TEXT", help="features whose title has this text")
    parser.add_argument("--client", default="", metavar="NAME", help="deno, node, denokv or wire; all by default")
    parser.add_argument("--route", action="append", choices=ROUTES, help="may be repeated; all by default")
    parser.add_argument("--no-failover", dest="failover", action="store_false", help="kill no leader")
    options = parser.parse_args()
    options.route = options.route or list(ROUTES)
    return options


def main() -> int:
    """Install, run, report; the exit status is 0 when nothing fails."""
    options = _options()
    complete = not (options.only or options.client or options.quick or options.route != list(ROUTES))
    if options.only or options.client:
        options.failover = False
    try:
        install()
    except ClientsMissing as error:
        print(f"compat: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="kvnode-compat-") as folder:
        results = everything(options, Path(folder))
    (BUILD / "results.json").write_text(json.dumps([result._asdict() for result in results], indent=1))
    print(summary(results))
    failed = failures(results)
    for result in failed:
        print(f"FAILS {result.client}, {result.route}: {result.section}: {result.title}\n    {result.detail}")
    if complete and options.failover:
        PAGE.write_text(page(results))
        print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
