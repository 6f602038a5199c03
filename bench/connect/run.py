"""Measure KV Connect: `make bench-connect`.

wrk over HTTP/1.1 and h2load over h2c load three nodes through the leader's port and through a follower's; etcd is
loaded in the same run with the same number of callers. A real Deno program then sets and gets on the cluster and
on its own embedded file, on the same disk. Rounds alternate; medians are quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bench import host, tools
from bench.build import BUILD, build
from bench.etcd import EtcdGroup
from bench.run import RESULTS, loadgen
from cluster.launcher import LocalCluster
from cluster.processes import cpu_seconds
from kvnode.codec.keys import encode_key
from kvnode.proto.deno import datapath_pb2 as wire
from tests.compat import clients

HERE = Path(__file__).resolve().parent
TOKEN = "the-benchmarks-own-token"
TARGETS = {("set", 64): 8_000, ("get", 64): 15_000}  # a second over HTTP/1.1, or etcd's figure if that is higher
METHODS = {"set": "atomic_write", "get": "snapshot_read"}
ETCD_MODES = {"set": "put", "get": "get"}
console = Console(stderr=True, soft_wrap=True)


class Door(NamedTuple):
    """The data path at one node."""

    origin: str
    path: str
    token: str
    database: str


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-connect ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=int, default=4, help="seconds of each measurement")
    parser.add_argument("--callers", default="1,64,256")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--only", default="", help="http1, lease, h2c, etcd, deno: leave the others out")
    parser.add_argument("--data", type=Path, default=BUILD / "data-connect", help="where the servers' data goes")
    parser.add_argument("--output", type=Path, help="the JSON; default bench/results/local/connect-<time>.json")
    return parser.parse_args()


def main() -> int:
    options = parse()
    tools.require(tools.CONNECT)
    build()
    shutil.rmtree(options.data, ignore_errors=True)
    options.data.mkdir(parents=True)
    found: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        **host.circumstances(options.data, options),
        "measurements": found,
    }
    result["versions"] |= {"wrk": _version("wrk", "-v"), "h2load": _version("h2load", "--version")}
    for number in range(options.rounds):
        for item in one_round(options):
            found.append({"round": number, **item})
            console.print(
                f"round {number + 1} "
                + "  ".join(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in item.values())
            )
    show(found)
    path = options.output or RESULTS / "local" / f"connect-{str(result['when']).replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")
    shutil.rmtree(options.data, ignore_errors=True)
    return 0


def one_round(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    wanted = options.only.split(",") if options.only else ["http1", "lease", "h2c", "etcd", "deno"]
    folder = Path(tempfile.mkdtemp(dir=options.data))
    with LocalCluster(folder=folder / "kvnode", arguments=["--access-token", TOKEN]) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        follower = next(name for name in cluster.nodes if name != leader)
        for place, name in (("leader", leader), ("follower", follower)):
            door = knock(cluster.nodes[name].connect_address)
            for transport, load in (("http1", wrk), ("h2c", h2load)):
                if transport in wanted:
                    for mode in METHODS:
                        for callers in map(int, options.callers.split(",")):
                            item = measured(cluster, load, door, mode, callers, options)
                            yield {"system": f"kvnode {place}", "transport": transport, **item}
        if "deno" in wanted:
            url = f"http://{cluster.nodes[leader].connect_address}/"
            for item in deno(url, options):
                yield {"system": "kvnode leader", "transport": "deno", **item}
    if "lease" in wanted:
        yield from leased(folder / "leased", options)
    if "deno" in wanted:
        for item in deno(str(folder / "embedded.sqlite"), options):
            yield {"system": "embedded", "transport": "deno", **item}
    if "etcd" in wanted:
        yield from etcd(folder / "etcd", options)
    shutil.rmtree(folder, ignore_errors=True)


def leased(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Strong gets of a leader that is set to use a lease."""
    with LocalCluster(folder=folder, arguments=["--access-token", TOKEN, "--leader-lease"]) as cluster:
        cluster.start()
        door = knock(cluster.nodes[cluster.wait_leader()].connect_address)
        for callers in map(int, options.callers.split(",")):
            item = measured(cluster, wrk, door, "get", callers, options)
            yield {"system": "kvnode leader, lease", "transport": "http1", **item}


def measured(
    cluster: LocalCluster,
    load: Callable[[Door, str, int, argparse.Namespace], dict[str, Any]],
    door: Door,
    mode: str,
    callers: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One load, and what it cost all nodes."""
    before = sum(map(cpu_seconds, cluster.pids))
    item = load(door, mode, callers, options)
    used = sum(map(cpu_seconds, cluster.pids)) - before
    item["cpu_us"] = used * 1e6 / max(1.0, item["operations_per_second"] * options.duration)
    return {"mode": mode, "callers": callers, **item}


def etcd(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    group = EtcdGroup(folder)
    options.warmup = 1
    try:
        group.start()
        loadgen(group, "unary", "load", options)
        names = {mode: name for name, mode in ETCD_MODES.items()}
        for item in loadgen(group, "unary", ",".join(ETCD_MODES.values()), options):
            kept = {field: item[field] for field in ("operations_per_second", "p50_ms", "p99_ms", "errors")}
            kept["cpu_us"] = item["server_cpu_us_per_operation"]
            yield {
                "system": "etcd",
                "transport": "gRPC",
                "mode": names[item["mode"]],
                "callers": item["callers"],
                **kept,
            }
    finally:
        group.close()


def knock(address: str) -> Door:
    """The metadata exchange."""
    request = urllib.request.Request(
        f"http://{address}/",
        b'{"supportedVersions":[3]}',
        {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        metadata = json.load(answer)
    path = next(each["url"] for each in metadata["endpoints"] if each["consistency"] == "strong")
    return Door(f"http://{address}", path, metadata["token"], metadata["databaseId"])


def wrk(door: Door, mode: str, callers: int, options: argparse.Namespace) -> dict[str, Any]:
    """HTTP/1.1, one connection a caller; every request has a key of its own."""
    command = ["wrk", "-t1", f"-c{callers}", f"-d{options.duration}s", "-s", str(HERE / "load.lua"), door.origin, "--"]
    command += [METHODS[mode], door.path, door.token, door.database, str(options.value_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("JSON "))
    item = json.loads(line.removeprefix("JSON "))
    return {
        "operations_per_second": item["requests"] / item["seconds"],
        "p50_ms": item["p50_ms"],
        "p99_ms": item["p99_ms"],
        "errors": item["errors"],
    }


def h2load(door: Door, mode: str, callers: int, options: argparse.Namespace) -> dict[str, Any]:
    """h2c, all callers on one connection, as Deno does; h2load sends one body, so there is one key."""
    start = encode_key(("bench", "1"))
    if mode == "set":
        value = wire.KvValue(data=b"v" * options.value_bytes, encoding=wire.VE_BYTES)
        body = wire.AtomicWrite(mutations=[wire.Mutation(key=start, value=value, mutation_type=wire.M_SET)])
    else:
        body = wire.SnapshotRead(ranges=[wire.ReadRange(start=start, end=start + b"\x00", limit=1)])  # type: ignore[assignment]
    file = options.data / "body"
    file.write_bytes(body.SerializeToString())
    command = ["h2load", "-c1", f"-m{callers}", "-t1", f"-D{options.duration}", f"-d{file}"]
    for name, text in (
        ("authorization", f"Bearer {door.token}"),
        ("content-type", "application/x-protobuf"),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", door.database),
    ):
        command += ["-H", f"{name}: {text}"]
    done = subprocess.run(
        [*command, f"{door.origin}{door.path}/{METHODS[mode]}"], capture_output=True, text=True, check=True
    )
    answered = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", done.stdout)
    mean = re.search(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s) ", done.stdout)
    if answered is None or mean is None:
        raise SystemExit(f"bench: h2load said something else: {done.stdout}{done.stderr}")
    mean_ms = float(mean[1]) * {"us": 0.001, "ms": 1.0, "s": 1_000.0}[mean[2]]
    # h2load gives no quantiles in this form: the mean stands where the median would.
    return {
        "operations_per_second": int(answered[1]) / options.duration,
        "p50_ms": mean_ms,
        "p99_ms": 0.0,
        "errors": sum(int(answered[group]) for group in (2, 3, 4)),
    }


def deno(target: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A Deno program with 64 loops."""
    clients.install()
    command = [clients.deno_binary(), "run", "-A", "--no-lock", "--no-check", "--unstable-kv", str(HERE / "load.mjs")]
    command += [target, "64", str(options.duration), str(options.value_bytes)]
    environment = {**os.environ, "DENO_KV_ACCESS_TOKEN": TOKEN}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE, env=environment)
    for item in map(json.loads, done.stdout.splitlines()):
        if item["mode"] != "warmup":
            yield {"mode": item.pop("mode"), "callers": 64, **item, "errors": 0, "cpu_us": 0.0}


def show(found: list[dict[str, Any]]) -> None:
    """One line a setting, medians of the rounds."""
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for item in found:
        groups.setdefault((item["mode"], item["transport"], item["system"], item["callers"]), []).append(item)
    medians = {key: statistics.median(item["operations_per_second"] for item in items) for key, items in groups.items()}
    table = Table(title="KV Connect: medians of the rounds; CPU of all servers in us an operation")
    for title in (
        "operation",
        "transport",
        "system",
        "callers",
        "ops/s",
        "p50 ms",
        "p99 ms",
        "CPU",
        "errors",
        "target",
    ):
        table.add_column(title, justify="left" if title in ("operation", "transport", "system", "target") else "right")
    for key, items in sorted(groups.items()):
        mode, transport, system, callers = key
        middle = {field: statistics.median(item[field] for item in items) for field in ("p50_ms", "p99_ms", "cpu_us")}
        p99 = f"{middle['p99_ms']:.2f}" if middle["p99_ms"] else "-"
        cpu = f"{middle['cpu_us']:.0f}" if middle["cpu_us"] else "-"
        errors = str(sum(item["errors"] for item in items))
        row = (
            mode,
            transport,
            system,
            str(callers),
            f"{medians[key]:,.0f}",
            f"{middle['p50_ms']:.2f}",
            p99,
            cpu,
            errors,
        )
        table.add_row(*row, judge(key, medians))
    Console(width=130).print(table)


def judge(key: tuple[str, str, str, int], medians: dict[tuple[str, str, str, int], float]) -> str:
    """Whether a setting with a target reached it."""
    mode, transport, system, callers = key
    if system == "kvnode leader" and transport == "http1" and (mode, callers) in TARGETS:
        least = max(TARGETS[mode, callers], medians.get((mode, "gRPC", "etcd", callers), 0.0))
    elif system == "kvnode leader" and transport == "deno" and mode == "set":
        least = medians.get((mode, "deno", "embedded", callers), 0.0)
    else:
        return ""
    return f">= {least:,.0f} {'met' if medians[key] >= least else 'missed'}"


def _version(program: str, flag: str) -> str:
    done = subprocess.run([program, flag], capture_output=True, text=True, check=False)
    return next(iter((done.stdout + done.stderr).splitlines()), "")


if __name__ == "__main__":
    raise SystemExit(main())
