"""A leader is killed under real clients: they must notice a pause and nothing else."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.admin import NotAnswered
from cluster.launcher import ClusterFailed
from tests.compat.clients import PROGRAMS, Client, clients, environment, node_kv
from tests.compat.nodes import Nodes
from tests.compat.results import Route

Programs = dict[str, subprocess.Popen[str]]

_DEAD_S = 2.0
_TRANSFERS_COUNT = 20
_PROGRAM_GRACE_S = 90


@dataclass(frozen=True)
class Load:
    """What each program does.

    Args:
        count: sums onto its counter.
        records: check-guarded records.
        seconds: over which both are spread.
        kills: of the leader, evenly spread over the same time, with as much again behind the last one: a busy machine
            takes long to bring a node back.
    """

    count: int = 2_000
    records: int = 400
    seconds: float = 48.0
    kills: int = 3


@dataclass(frozen=True)
class Outcome:
    """How it went for one client.

    Args:
        client: its title.
        route: by which way.
        problems: what must not have been; empty when all is well.
        longest_pause_ms: between two operations that ended, over all of its tasks.
    """

    client: str
    route: str
    problems: tuple[str, ...]
    longest_pause_ms: int
    frames: int


def run(nodes: Nodes, route: Route, keep: str, load: Load, report: Callable[[str], None]) -> list[Outcome]:
    """Run the program in every client at once by one route, and kill leaders meanwhile.

    Args:
        nodes: the cluster.
        route: the way of the clients.
        keep: the node that must live, because the clients speak to it; "" when they speak to a gateway.
        load: how much.
        report: called with a line on each kill.
    """
    with tempfile.TemporaryDirectory(prefix="kvnode-compat-") as folder:
        chosen = [client for client in clients() if client.name != "wire"]
        marks = {client.title: Path(folder) / client.name for client in chosen}
        programs = {client.title: _start(client, route, load, marks[client.title]) for client in chosen}
        try:
            _wait_started(programs, marks)
            early = _kill_leaders(nodes, keep, load, report, programs)
            return [_outcome(title, process, route, load, title in early) for title, process in programs.items()]
        finally:
            for process in programs.values():
                process.kill()


def _wait_started(programs: Programs, marks: dict[str, Path]) -> None:
    """Until each has opened the database: before that a dead leader is no failover to it."""
    deadline = time.monotonic() + _PROGRAM_GRACE_S
    while not all(marks[title].exists() or process.poll() is not None for title, process in programs.items()):
        if time.monotonic() > deadline:
            return  # its outcome will tell
        time.sleep(0.05)


def _start(client: Client, route: Route, load: Load, mark: Path) -> subprocess.Popen[str]:
    *runner, main = client.command
    folder, suffix = ("js", "mjs") if main.endswith(".mjs") else ("python", "py")
    options = {"url": route.url, "kv": node_kv(), "run": uuid.uuid4().hex[:12], "started": str(mark)}
    options |= {"count": load.count, "records": load.records, "seconds": load.seconds}
    command: Sequence[str] = [*runner, str(PROGRAMS / folder / f"failover.{suffix}"), json.dumps(options)]
    return subprocess.Popen(
        command,
        env=environment(route.token, route.certificate),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _kill_leaders(
    nodes: Nodes, keep: str, load: Load, report: Callable[[str], None], programs: Programs
) -> frozenset[str]:
    """Returns the programs that were over before the last of the dead leaders had a successor."""
    start, over = time.monotonic(), frozenset[str]()
    for number in range(load.kills):
        due = start + load.seconds * (number + 0.3) / (load.kills + 1)
        time.sleep(max(0.0, due - time.monotonic()))
        leader = _leader_to_kill(nodes, keep)
        nodes.cluster.kill(leader)
        report(f"killed the leader, {leader}")
        time.sleep(_DEAD_S)
        over = frozenset(title for title, process in programs.items() if process.poll() is not None)
        nodes.cluster.restart(leader)
    return over


def _leader_to_kill(nodes: Nodes, keep: str) -> str:
    """The leader; when it is the node to keep, leadership is handed to another first."""
    leader = nodes.cluster.wait_leader()
    for _ in range(_TRANSFERS_COUNT):
        if leader != keep:
            return leader
        with contextlib.suppress(NotAnswered):  # 0: to the most caught-up voter
            nodes.cluster.nodes[keep].admin.transfer_leadership(0)
        leader = nodes.cluster.wait_leader()
    raise ClusterFailed(f"{keep} does not hand its leadership over")


def _outcome(title: str, process: subprocess.Popen[str], route: Route, load: Load, is_early: bool) -> Outcome:
    try:
        output, errors = process.communicate(timeout=load.seconds + _PROGRAM_GRACE_S)
    except subprocess.TimeoutExpired:
        return Outcome(title, route.name, ("did not end",), 0, 0)
    if process.returncode or not output.strip():
        return Outcome(title, route.name, (f"ended with {process.returncode}: {errors.strip()[-1_000:]}",), 0, 0)
    seen = json.loads(output.splitlines()[-1])
    problems = [f"exception: {error}" for error in seen["errors"]]
    if is_early:
        problems.append("it was over before the last kill: the load is too small for this machine")
    if seen["counter"] != load.count:
        problems.append(f"the counter stands at {seen['counter']} after {load.count} sums")
    if seen["records"] != load.records:
        problems.append(f"{seen['records']} records of {load.records}")
    if seen["conflicts"]:
        problems.append(f"{len(seen['conflicts'])} records were there already: {seen['conflicts'][:5]}")
    return Outcome(title, route.name, tuple(problems), seen["longestPauseMs"], seen["frames"])
