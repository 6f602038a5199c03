"""Measure queues: `make bench-queue`. Messages through kvnode and through PostgreSQL, delays, and memory.

A closed loop: so many messages are under way at a time, each from its enqueue to its confirmed ack. Then the same
through a queue that is pushed to a URL, until the request arrives. kvnode and PostgreSQL run on the same disk, each
write durable on two of three, in turn, never at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import host
from bench.build import BUILD, LOADGEN, ROOT, build
from bench.kvnode import KvnodeGroup
from bench.postgres import installed
from bench.queue import delays, push, report
from bench.queue.postgres import PostgresQueue

RESULTS = ROOT / "bench" / "results"
LOAD_TIMEOUT_S = 900
console = Console(stderr=True, soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-queue ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of each measurement")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before each, of kvnode")
    parser.add_argument("--callers", default="1,16,64", help="messages under way at a time")
    parser.add_argument("--payload-bytes", type=int, default=256)
    parser.add_argument("--push-callers", default="64", help="messages under way at a time where they are pushed")
    parser.add_argument("--no-push", action="store_true", help="leave out the push to a URL")
    parser.add_argument("--only", default="", help="kvnode or postgresql: leave the other out")
    parser.add_argument("--follower", action="store_true", help="listen at a node that does not lead")
    parser.add_argument("--waiting", default="100000,1000000", help="how many messages wait in the runs with delays")
    parser.add_argument("--delayed", type=int, default=500, help="messages whose lateness is measured")
    parser.add_argument("--no-delays", action="store_true", help="leave out delays and memory")
    parser.add_argument("--data", type=Path, default=BUILD / "data", help="where the servers' data goes")
    parser.add_argument("--output", type=Path, help="the JSON; default bench/results/local/queue-<time>.json")
    return parser.parse_args()


def main() -> int:
    options = parse()
    build()
    options.data.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        **host.circumstances(options.data, options),
        "measurements": [],
        "delays": [],
        "memory": [],
    }
    try:
        for number in range(options.rounds):
            one_round(options, number, result["measurements"])
        if not options.no_delays:
            waiting(options, result)
    finally:
        result["table"] = report.rows(result["measurements"])
        result["delays"] = report.delay_rows(result["delays"])
        result["memory_growth"] = report.memory_growth(result["memory"])
        path = options.output or RESULTS / "local" / f"queue-{result['when'].replace(':', '')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    report.show(result, Console(width=max(130, Console().width)))
    print(f"written to {path}")
    return 0


def one_round(options: argparse.Namespace, number: int, measurements: list[dict[str, Any]]) -> None:
    order = ("kvnode", "postgresql") if number % 2 == 0 else ("postgresql", "kvnode")
    for system in order:
        if options.only not in ("", system):
            continue
        load_average = os.getloadavg()[0]
        items = through_kvnode(options) if system == "kvnode" else through_postgres(options)
        for item in items:
            measurements.append({"system": system, "round": number, "load_average_before": load_average, **item})
            console.print(
                f"round {number + 1} {item.get('system', system):11} {item['callers']:4} in flight"
                f"{item['operations_per_second']:9,.0f}/s  "
                f"p50 {item['p50_ms']:7.2f}  p99 {item['p99_ms']:7.2f} ms"
                + (f"  {item['errors']} errors: {item.get('first_error')}" if item["errors"] else "")
            )


def through_kvnode(options: argparse.Namespace) -> list[dict[str, Any]]:
    folder = options.data / "kvnode-queue"
    shutil.rmtree(folder, ignore_errors=True)
    group = KvnodeGroup(folder, push.ENVIRONMENT)
    try:
        group.start()
        passed = [{"system": "kvnode", **item} for item in passing(options, group)]
        return passed + [{"system": "kvnode push", **item} for item in pushing(options, group)]
    finally:
        group.close()
        shutil.rmtree(folder, ignore_errors=True)


def passing(options: argparse.Namespace, group: KvnodeGroup) -> list[dict[str, Any]]:
    listen = group.endpoint
    if options.follower:
        listen = group.cluster.nodes[group.a_follower()].address
    command = [str(LOADGEN), "-system", "kvnode", "-transport", "queue", "-modes", "pass"]
    command += ["-endpoint", group.endpoint, "-listen-endpoint", listen, "-callers", options.callers]
    command += ["-duration", f"{options.duration}s", "-warmup", f"{options.warmup}s"]
    command += ["-value-bytes", str(options.payload_bytes), "-pids", ",".join(map(str, group.pids))]
    return [json.loads(line) for line in output_of(command).splitlines()]


def pushing(options: argparse.Namespace, group: KvnodeGroup) -> list[dict[str, Any]]:
    if options.no_push:
        return []
    to = push.receiver()
    push.have_pushed(group, to)
    how = (options.duration, options.warmup, options.payload_bytes)
    command = push.load_command(group.endpoint, to, group.pids, options.push_callers, how)
    return push.measurements(output_of(command))


def output_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LOAD_TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"bench: the load failed: {done.stderr}")
    return done.stdout


def through_postgres(options: argparse.Namespace) -> list[dict[str, Any]]:
    programs = installed()
    if programs is None:
        console.print("postgresql is left out: it is not installed, or this is not root")
        return []
    group = PostgresQueue(options.data / "postgresql-queue", programs)
    try:
        group.start()
        seconds = max(1, round(options.duration))
        return [group.passing(int(callers), seconds, options.payload_bytes) for callers in options.callers.split(",")]
    except (RuntimeError, OSError) as error:
        console.print(f"postgresql is left out: {error}")
        return []
    finally:
        group.close()


def waiting(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Lateness and memory with nothing else in the queue, and with more and more that waits."""
    folder = options.data / "kvnode-queue"
    shutil.rmtree(folder, ignore_errors=True)
    group = KvnodeGroup(folder)
    steps = [0, *map(int, options.waiting.split(","))]
    try:
        with asyncio.Runner() as runner:  # one loop: gRPC's poller of an ended one may still have an event for it
            group.start()
            addresses = group.cluster.addresses
            runner.run(delays.allow(addresses, max(steps) + options.delayed))
            for before, count in zip([0, *steps], steps, strict=False):
                load: dict[str, Any] = {}
                if count > before:
                    command = delays.load_command(group.endpoint, count - before, options.payload_bytes)
                    load = {"load": json.loads(output_of(command))}
                time.sleep(delays.SETTLE_S)
                late = runner.run(delays.lateness(addresses, options.delayed))
                result["delays"].append({"waiting": count, "load_average": os.getloadavg()[0], **load, **late})
                size = delays.state_bytes(folder)
                result["memory"].append({"waiting": count, "files_bytes": size, "nodes": delays.memory(group)})
                console.print(f"{count:9,} wait: late by {late['p50_ms']:.1f} ms p50, {late['p99_ms']:.1f} p99")
    finally:
        group.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
