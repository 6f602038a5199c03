"""What a replica region costs the leader: `make bench-replicas`.

One cluster of three voters and two replicas of another region. The same generator writes at the same rate to the leader
while the replicas are stopped and while they follow, in turns, so that the drift of a shared machine falls on both;
the leader's own CPU time, from /proc, is divided by the writes. Medians of the turns are compared. The goal is at most
MAX_COST of the leader's CPU per write; a missed one says so and fails nothing: a measurement is no test.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import host
from bench.build import BUILD, ROOT, build
from cluster.launcher import THREE_DCS, LocalCluster, NodeSpec

RESULTS = ROOT / "bench" / "results"
REPLICAS = (NodeSpec("e1", "europe-a", "europe"), NodeSpec("e2", "europe-b", "europe"))
MAX_COST = 0.05
KEYS_COUNT = 10_000
CATCH_UP_S = 60.0
Measurement = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-replicas ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="with and without, so often each")
    parser.add_argument("--duration", type=float, default=8.0, help="seconds of each measurement")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before each")
    parser.add_argument("--rate", type=float, default=1_000.0, help="writes a second")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--data", type=Path, default=BUILD / "data", help="where the servers' data goes")
    parser.add_argument("--output", type=Path, help="the JSON; default bench/results/local/<time>-replicas.json")
    return parser.parse_args()


def main() -> int:
    options = parse()
    build()
    folder = options.data / "replicas"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result: dict[str, Any] = {
        **host.circumstances(folder, options),
    }
    try:
        with LocalCluster(THREE_DCS, folder / "nodes") as cluster:
            cluster.start()
            leader = cluster.wait_leader()
            add_replicas(cluster)
            result["measurements"] = measure(cluster, leader, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result["summary"] = summarize(result["measurements"])
    path = options.output or RESULTS / "local" / f"{result['when'].replace(':', '')}-replicas.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(sentence(result["summary"]), f"written to {path}", sep="\n")
    return 0


def add_replicas(cluster: LocalCluster) -> None:
    for spec in REPLICAS:
        node = cluster.join(spec)
        command = [sys.executable, "-m", "kvnode", "member", "add", node.address, "--replica"]
        subprocess.run([*command, "--endpoints", cluster.addresses[0]], check=True, capture_output=True, cwd=ROOT)
    cluster.wait_ready()


def measure(cluster: LocalCluster, leader: str, options: argparse.Namespace) -> list[Measurement]:
    """One dictionary a turn; whichever comes first alternates."""
    load(cluster, leader, options)
    found: list[Measurement] = []
    for turn in range(options.turns):
        for replicas in (False, True) if turn % 2 == 0 else (True, False):
            set_running(cluster, running=replicas)
            if cluster.leader() != leader:
                raise SystemExit("bench: the leader changed under the measurement; try again")
            item = {"replicas": len(REPLICAS) if replicas else 0, "turn": turn, **load(cluster, leader, options, "put")}
            found.append(item)
            rate, cpu_us = item["operations_per_second"], item["server_cpu_us_per_operation"]
            print(
                f"turn {turn + 1} {'with' if replicas else 'without'} replicas: {rate:,.0f} writes/s, "
                f"{cpu_us:.1f} us of the leader a write, p99 {item['p99_ms']:.1f} ms",
                file=sys.stderr,
            )
    return found


def set_running(cluster: LocalCluster, *, running: bool) -> None:
    """Start the replicas and let them catch up, or kill them."""
    for spec in REPLICAS:
        if cluster.nodes[spec.name].child.running == running:
            continue
        if running:
            cluster.restart(spec.name, wait=False)
        else:
            cluster.kill(spec.name)
    if running:
        status = cluster.nodes[cluster.wait_leader()].status()
        if status is None:
            raise SystemExit("bench: the leader does not answer")
        cluster.wait_applied(status.commit_index, CATCH_UP_S, [spec.name for spec in REPLICAS])


def load(cluster: LocalCluster, leader: str, options: argparse.Namespace, mode: str = "load") -> Measurement:
    node = cluster.nodes[leader]
    command = [str(BUILD / "loadgen"), "-system", "kvnode", "-transport", "session", "-modes", mode]
    command += ["-endpoint", node.address, "-callers", str(options.callers), "-keys", str(KEYS_COUNT)]
    command += ["-duration", f"{options.duration}s", "-warmup", f"{options.warmup}s", "-rate", str(options.rate)]
    command += ["-value-bytes", str(options.value_bytes), "-pids", str(node.child.pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: the load failed: {done.stderr}")
    answer: Measurement = json.loads(done.stdout.splitlines()[-1])
    return answer


def summarize(measurements: list[Measurement]) -> dict[str, Any]:
    """The medians, and what the replicas cost."""
    medians = {}
    for name, wanted in (("without", False), ("with", True)):
        chosen = [item for item in measurements if bool(item["replicas"]) == wanted]
        medians[name] = {
            "leader_cpu_us_per_write": round(statistics.median(i["server_cpu_us_per_operation"] for i in chosen), 2),
            "writes_per_second": round(statistics.median(i["operations_per_second"] for i in chosen), 1),
            "p99_ms": round(statistics.median(i["p99_ms"] for i in chosen), 2),
            "errors": sum(i["errors"] for i in chosen),
        }
    cost = medians["with"]["leader_cpu_us_per_write"] / medians["without"]["leader_cpu_us_per_write"] - 1
    return {**medians, "cost": round(cost, 4), "target": MAX_COST, "met": cost <= MAX_COST}


def sentence(summary: dict[str, Any]) -> str:
    """The result in words."""
    before, after = (summary[name]["leader_cpu_us_per_write"] for name in ("without", "with"))
    verdict = "met" if summary["met"] else "missed"
    return (
        f"the leader spends {before:.1f} us of CPU on a write without replicas, {after:.1f} with two of another "
        f"region: {summary['cost']:+.1%} (at most {summary['target']:.0%}: {verdict})"
    )


if __name__ == "__main__":
    sys.exit(main())
