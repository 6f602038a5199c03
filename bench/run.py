"""Measure a three-node kvnode beside a three-node etcd: `make bench`.

Both run on the same disk with fsync on, never at the same time, and are loaded by the same generator with
the same number of callers on one connection. Rounds alternate between them, since a shared machine drifts;
medians are quoted. The result, with the machine and the versions, goes to bench/results/ as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import host, report
from bench.build import BUILD, ROOT, build
from bench.etcd import EtcdGroup
from bench.kvnode import KvnodeGroup
from bench.postgres import PostgresGroup, installed
from cluster.processes import resident_bytes

RESULTS = ROOT / "bench" / "results"
Group = EtcdGroup | KvnodeGroup
GROUPS: dict[str, type[Group]] = {"etcd": EtcdGroup, "kvnode": KvnodeGroup}
KEYS_COUNT = 10_000
MEMORY_KEYS_COUNT = 100_000
RESTART_KEYS_COUNT = 1_000_000
SETTLE_S = 3.0
MIN_TABLE_WIDTH = 150
console = Console(stderr=True, soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, under two minutes; good for a look only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=4.0, help="seconds of each measurement")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before each")
    parser.add_argument("--callers", default="1,16,64,256")
    parser.add_argument("--modes", default="put,cas,get,stale")
    parser.add_argument("--transports", default="session,unary,streams", help="of kvnode")
    parser.add_argument("--only", default="", help="etcd, kvnode or postgresql: leave the others out")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--no-extras", action="store_true", help="leave out memory and restart")
    parser.add_argument("--data", type=Path, default=BUILD / "data", help="where the servers' data goes")
    parser.add_argument("--output", type=Path, help="the JSON; default bench/results/local/<time>.json")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.duration, options.warmup, options.no_extras = 1, 1.5, 0.5, True
        options.callers = "1,64" if options.callers == "1,16,64,256" else options.callers
    return options


def main() -> int:
    options = parse()
    build()
    options.data.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        **host.circumstances(options.data, options),
        "measurements": [],
    }
    try:
        for number in range(options.rounds):
            one_round(options, number, result["measurements"])
        if not options.no_extras:
            result["memory"] = memory(options)
            result["restart"] = restart(options)
    finally:
        result["table"] = report.rows(report.medians(result["measurements"]))
        result["extras"] = report.extras(result)
        path = options.output or RESULTS / "local" / f"{result['when'].replace(':', '')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    terminal = Console()
    report.show(result, Console(width=max(MIN_TABLE_WIDTH, terminal.width)))
    print(f"written to {path}")
    return 0


def wanted(options: argparse.Namespace, system: str) -> bool:
    return not options.only or system in options.only.split(",")


def one_round(options: argparse.Namespace, number: int, measurements: list[dict[str, Any]]) -> None:
    def keep(system: str, transport: str, items: list[dict[str, Any]]) -> None:
        for item in items:
            measurements.append({"system": system, "transport": transport, "round": number, **item})
            console.print(
                f"round {number + 1} {system:10} {transport:11} {item['mode']:5} {item['callers']:4} callers "
                f"{item['operations_per_second']:9,.0f}/s  p50 {item['p50_ms']:7.2f}  p99 {item['p99_ms']:7.2f} ms"
                + (f"  {item['errors']} errors: {item.get('first_error')}" if item["errors"] else "")
            )

    # Whoever goes first alternates, too.
    for system in ("etcd", "kvnode") if number % 2 == 0 else ("kvnode", "etcd"):
        if not wanted(options, system):
            continue
        with running(system, options.data) as group:
            transports = ["unary"] if system == "etcd" else options.transports.split(",")
            loadgen(group, transports[0], "load", options)
            for transport in transports:
                keep(system, transport, loadgen(group, transport, options.modes, options))
    programs = installed()
    if programs and wanted(options, "postgresql") and "put" in options.modes.split(","):
        keep("postgresql", "connections", postgres(options, programs))


@contextmanager
def running(system: str, data: Path) -> Iterator[Group]:
    """A fresh three-node group, gone with its data afterwards."""
    folder = data / system
    shutil.rmtree(folder, ignore_errors=True)
    group = GROUPS[system](folder)
    try:
        group.start()
        yield group
    finally:
        group.close()
        shutil.rmtree(folder, ignore_errors=True)


def loadgen(
    group: Group,
    transport: str,
    modes: str,
    options: argparse.Namespace,
    keys_count: int = KEYS_COUNT,
) -> list[dict[str, Any]]:
    """Run the generator against the leader; one dictionary a measurement."""
    command = [str(BUILD / "loadgen"), "-system", group.name, "-transport", transport, "-modes", modes]
    command += ["-endpoint", group.endpoint, "-callers", options.callers, "-keys", str(keys_count)]
    command += ["-duration", f"{options.duration}s", "-warmup", f"{options.warmup}s"]
    command += ["-value-bytes", str(options.value_bytes), "-pids", ",".join(map(str, group.pids))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: the load on {group.name} failed: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def postgres(options: argparse.Namespace, programs: Path) -> list[dict[str, Any]]:
    group = PostgresGroup(options.data / "postgresql", programs)
    try:
        group.start()
        group.load(KEYS_COUNT, options.value_bytes)
        seconds = max(1, round(options.duration))
        return [
            group.measure(int(callers), seconds, KEYS_COUNT, options.value_bytes)
            for callers in options.callers.split(",")
        ]
    except (RuntimeError, OSError) as error:
        console.print(f"postgresql is left out: {error}")
        return []
    finally:
        group.close()


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of a node with 100,000 keys: the median of the three."""
    found: dict[str, Any] = {"keys_count": MEMORY_KEYS_COUNT}
    for system in GROUPS:
        if wanted(options, system):
            with running(system, options.data) as group:
                loadgen(group, _loading(system), "load", options, MEMORY_KEYS_COUNT)
                time.sleep(SETTLE_S)
                both = [resident_bytes(pid) for pid in group.pids]
                found[system] = {
                    "resident_bytes": statistics.median(resident for resident, _ in both),
                    "anonymous_bytes": statistics.median(anonymous for _, anonymous in both),
                }
                console.print(f"memory {system:10} {found[system]}")
    return found


def restart(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of a killed follower with 1,000,000 keys until it serves."""
    found: dict[str, Any] = {"keys_count": RESTART_KEYS_COUNT}
    for system in GROUPS:
        if wanted(options, system):
            with running(system, options.data) as group:
                loadgen(group, _loading(system), "load", options, RESTART_KEYS_COUNT)
                time.sleep(SETTLE_S)
                found[system] = group.restart_s(group.a_follower())
                console.print(f"restart {system:10} {found[system]:.2f} s")
    return found


def _loading(system: str) -> str:
    return "unary" if system == "etcd" else "session"


if __name__ == "__main__":
    sys.exit(main())
