"""A cluster of real `kvnode serve` processes on this machine, each with a data directory and ports of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.admin import AdminCalls, NotAnswered
from cluster.keeper import Keeper
from cluster.ports import free_ports
from cluster.processes import Child
from cluster.topology import REPLICA, VOTER, Topology
from kvnode.base.limits import SHUTDOWN_TIMEOUT_MS
from kvnode.proto.kv.v1 import admin_pb2

ROOT = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 30.0
_EXIT_GRACE_S = 2.0
_LOG_TAIL_LINES_COUNT = 15
_STARTING_NICENESS = 19
_STARTING_ASIDE_S = 6.0  # twice what a start takes from what is left beside the drill's load


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """Who a node is and where it stands.

    Args:
        name: in the cluster.
        dc: data center.
        region: region.
        role: "voter", or "replica" of a region that is not the primary one.
        host: address that it listens on.
        prefix: what its command is run with, for example in another network namespace.
        environment: further variables of this node.
        data_dir: its data; a folder below the cluster's when None.
    """

    name: str
    dc: str
    region: str = "us-east"
    role: str = VOTER
    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    data_dir: Path | None = None


Advertise = Callable[[NodeSpec, str], str]

THREE_DCS = (NodeSpec("a", "dc-a"), NodeSpec("b", "dc-b"), NodeSpec("c", "dc-c"))


def specs_of(topology: Topology) -> list[NodeSpec]:
    """The topology's nodes for this machine: names, places and roles are kept, hosts and ports are loopback's own."""
    return [NodeSpec(node.name, node.dc, node.region, node.role) for node in topology.nodes]


class ClusterFailed(Exception):
    """A node did not start, or the cluster did not reach a state in time; the message has the log's end."""


@dataclass(slots=True)
class LocalNode:
    """One process of the cluster. `advertised` is where the other nodes reach it: `address`, or a proxy before it."""

    spec: NodeSpec
    address: str
    advertised: str
    ops_address: str
    connect_address: str
    data_dir: Path
    child: Child
    paused: bool = False

    @property
    def name(self) -> str:
        """The node's name."""
        return self.spec.name

    @property
    def admin(self) -> AdminCalls:
        """Its Admin service."""
        return AdminCalls(self.address)

    def status(self) -> admin_pb2.StatusResponse | None:
        """What it says of itself; None when it does not answer."""
        try:
            return self.admin.status()
        except NotAnswered:
            return None

    def ready(self) -> bool:
        """Whether /readyz says so."""
        return self.http("/readyz")[0] == 200

    def http(self, path: str, timeout_s: float = 2.0) -> tuple[int, str]:
        """(status, body) of a page of the ops port; (0, reason) when there is none."""
        try:
            with urllib.request.urlopen(f"http://{self.ops_address}{path}", timeout=timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)


class LocalCluster:
    """Starts the nodes, stops them, and does to them in between what a test or the demo wants.

    They end with this process, however that ends, unless `release` says otherwise. A look at a node costs it and this
    process a little; `poll_s` is how long the waiting methods rest between two.
    Everything here blocks; a caller on an event loop puts the waiting methods on a thread.

    Args:
        specs: the nodes; the first bootstraps the cluster with all voters, then the replicas are added.
        folder: where data directories and logs go; a temporary one, removed at the end, when None.
        min_commit_dcs: how many data centers a commit needs.
        arguments: further flags of every node.
        environment: further variables of every node.
        advertise: given a node and the address that it listens on, says under which the others are to reach it: a
            proxy's, for example. Asked once, before anything is started.
    """

    poll_s = 0.05

    def __init__(
        self,
        specs: Sequence[NodeSpec] = THREE_DCS,
        folder: Path | None = None,
        *,
        min_commit_dcs: int = 2,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        advertise: Advertise | None = None,
    ) -> None:
        self._advertise = advertise
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="kvnode-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.min_commit_dcs = min_commit_dcs
        self._common = list(arguments)
        self._environment = {**own_environment(), **(environment or {})}
        self._keeper = Keeper()
        ports = iter(free_ports(3 * len(specs)))
        self.nodes = {spec.name: self._node(spec, next(ports), next(ports), next(ports)) for spec in specs}
        self._first = specs[0].name

    def _node(self, spec: NodeSpec, port: int, ops_port: int, connect_port: int) -> LocalNode:
        address, ops_address = f"{spec.host}:{port}", f"{spec.host}:{ops_port}"
        connect_address = f"{spec.host}:{connect_port}"
        data_dir = spec.data_dir or self.folder / spec.name
        command = [*spec.prefix, sys.executable, "-m", "kvnode", "serve", "--name", spec.name, "--region", spec.region]
        command += ["--dc", spec.dc, "--data-dir", str(data_dir), "--listen", address, "--ops-listen", ops_address]
        advertised = self._advertise(spec, address) if self._advertise else address
        if advertised != address:
            command += ["--advertise", advertised]
        environment = {"KVNODE_CONNECT_LISTEN": connect_address, **self._environment, **dict(spec.environment)}
        child = Child([*command, *self._common], self.folder / f"{spec.name}.log", environment, self._keeper)
        return LocalNode(spec, address, advertised, ops_address, environment["KVNODE_CONNECT_LISTEN"], data_dir, child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Life of the whole.

    def start(self) -> None:
        """Start every node for the first time and wait until all serve. Raises ClusterFailed."""
        first = self.nodes[self._first]
        others = [node for node in self.nodes.values() if node is not first]
        for node in others:
            node.child.start()
        flags = ["--bootstrap", "--min-commit-dcs", str(self.min_commit_dcs)]
        voters = [node for node in others if node.spec.role == VOTER]
        if voters:
            flags += ["--peers", ",".join(node.advertised for node in voters)]
        plain = list(first.child.command)
        first.child.command += flags
        try:
            first.child.start()
        finally:
            first.child.command = plain
        self.wait_ready([first.name, *(node.name for node in voters)])
        for node in others:
            if node.spec.role == REPLICA:
                self.add_replica(node.name)
        self.wait_ready()

    def add_replica(self, name: str, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Have a running, unjoined node taken in as a replica. Raises ClusterFailed."""
        wanted = admin_pb2.Member(address=self.nodes[name].advertised, role=REPLICA)
        refused = ""

        def added() -> bool:
            nonlocal refused
            leader = self.leader()
            try:
                if leader:
                    self.nodes[leader].admin.member_add(wanted)
            except NotAnswered as error:
                refused = str(error)
                return "MEMBER_EXISTS" in refused or self._is_member(leader or "", name)
            return bool(leader)

        self.wait_until(added, f"node {name} does not become a replica: {refused}", timeout_s)

    def _is_member(self, asked: str, name: str) -> bool:
        status = self.nodes[asked].status()
        return status is not None and any(member.name == name for member in status.members)

    def stop(self) -> None:
        """SIGTERM to every node, one after the other; then make sure that none is left."""
        for node in self.nodes.values():
            self.resume(node.name)
            node.child.signal(signal.SIGTERM)
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_MS / 1000 + _EXIT_GRACE_S
        for node in self.nodes.values():
            node.child.terminate(max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        """Kill what runs, and remove the folder if it was a temporary one."""
        for node in self.nodes.values():
            node.child.kill()
        self._keeper.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Let the nodes live on after this process."""
        self._keeper.release()

    # One node.

    def join(self, spec: NodeSpec) -> LocalNode:
        """Start one more node and wait until it listens: unjoined, for `kvnode member add` or `replace`."""
        self.nodes[spec.name] = node = self._node(spec, *free_ports(3))
        node.child.start()
        self.wait_listening(spec.name)
        return node

    def wait_listening(self, name: str, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Wait until a node's gRPC port takes connections. Raises ClusterFailed."""
        host, _, port = self.nodes[name].address.rpartition(":")

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) == 0

        self.wait_until(listens, f"node {name} does not listen", timeout_s)

    def forget(self, name: str) -> None:
        """Kill a node that is no longer a member, and know it no more."""
        self.kill(name)
        del self.nodes[name]

    def kill(self, name: str) -> None:
        """SIGKILL: the process is gone when this returns."""
        self.nodes[name].child.kill()
        self.nodes[name].paused = False

    def pause(self, name: str) -> None:
        """SIGSTOP: the process is frozen, its connections stay open."""
        self.nodes[name].child.signal(signal.SIGSTOP)
        self.nodes[name].paused = True

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.nodes[name].child.signal(signal.SIGCONT)
        self.nodes[name].paused = False

    def restart(self, name: str, *, wait: bool = True) -> None:
        """Start a node that has ended on its old directory and ports."""
        self.nodes[name].child.start()
        if wait:
            self.wait_ready([name])

    def restart_elsewhere(self, names: Sequence[str]) -> None:
        """Start nodes that have ended as though each had a machine of its own; returns when they are ready.

        The start of a Python process takes a core for a second or two. On a machine that all share it would come out of
        the others' time, so until it serves it takes what they leave, for _STARTING_ASIDE_S at most: others than ours
        may leave nothing. Only root can do that.
        """
        children = [self.nodes[name].child for name in names]
        aside = os.geteuid() == 0
        for child in children:
            child.start(_STARTING_NICENESS if aside else 0)
        share = threading.Timer(_STARTING_ASIDE_S, _renice, [children])
        if aside:
            share.start()
        try:
            self.wait_ready(names)
        finally:
            share.cancel()
            if aside:
                _renice(children)

    def terminate(self, name: str) -> bool:
        """SIGTERM: the node hands over, drains and exits; False when it had to be killed."""
        return self.nodes[name].child.terminate(SHUTDOWN_TIMEOUT_MS / 1000 + _EXIT_GRACE_S)

    # What it looks like.

    @property
    def addresses(self) -> list[str]:
        """Of the gRPC ports, in the order of the nodes."""
        return [node.address for node in self.nodes.values()]

    @property
    def pids(self) -> list[int]:
        """Of the running nodes."""
        return [node.child.pid for node in self.nodes.values() if node.child.running]

    def running(self) -> list[LocalNode]:
        """Nodes that run and are not frozen."""
        return [node for node in self.nodes.values() if node.child.running and not node.paused]

    def leader(self) -> str | None:
        """The name of the leader of the highest term among the nodes that answer; None when there is none."""
        best: tuple[int, str] | None = None
        for node in self.running():
            status = node.status()
            if status is not None and status.role == "leader":
                best = max(best or (0, ""), (status.term, node.name))
        return best[1] if best else None

    def wait_leader(self, timeout_s: float = _START_TIMEOUT_S, *, other_than: str = "") -> str:
        """Wait for a leader and return its name. Raises ClusterFailed."""
        found = ""

        def has_leader() -> bool:
            nonlocal found
            found = self.leader() or ""
            return bool(found) and found != other_than

        self.wait_until(has_leader, "no leader", timeout_s)
        return found

    def wait_ready(self, names: Sequence[str] = (), timeout_s: float = _START_TIMEOUT_S) -> None:
        """Wait until these nodes (all by default) serve. Raises ClusterFailed, also when one has ended."""
        nodes = [self.nodes[name] for name in names] or list(self.nodes.values())

        def all_ready() -> bool:
            for node in nodes:
                if not node.child.running:
                    raise ClusterFailed(f"node {node.name} ended with {node.child.exit_status}\n{self._tail(node)}")
            return all(node.ready() for node in nodes)

        self.wait_until(all_ready, "not ready: " + ", ".join(node.name for node in nodes), timeout_s)

    def wait_applied(self, index: int, timeout_s: float = 30.0, names: Sequence[str] = ()) -> None:
        """Wait until these nodes (all that run, by default) have applied `index`. Raises ClusterFailed."""
        nodes = [self.nodes[name] for name in names] or self.running()

        def applied() -> bool:
            return all((status := node.status()) is not None and status.applied_index >= index for node in nodes)

        self.wait_until(applied, f"index {index} is not applied everywhere", timeout_s)

    def wait_until(self, condition: Callable[[], bool], otherwise: str, timeout_s: float) -> None:
        """Wait for a condition. Raises ClusterFailed with `otherwise` and the logs' ends."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                tails = "\n".join(self._tail(node) for node in self.nodes.values())
                raise ClusterFailed(f"{otherwise} after {timeout_s:g} s\n{tails}")
            time.sleep(self.poll_s)

    def digests(self, timeout_s: float = 30.0) -> dict[str, tuple[int, str]]:
        """(applied index, digest) of every running node, once all stand at one index and agree on it.

        The last look is returned when they do not come to that within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            seen: dict[str, tuple[int, str]] = {}
            for node in self.running():
                with contextlib.suppress(NotAnswered):
                    answer = node.admin.digest()
                    seen[node.name] = (answer.applied_index, answer.digest)
            if len(seen) == len(self.running()) and len({index for index, _ in seen.values()}) == 1:
                return seen
            if time.monotonic() > deadline:
                return seen
            time.sleep(self.poll_s)

    def _tail(self, node: LocalNode) -> str:
        lines = node.child.log_text().splitlines()[-_LOG_TAIL_LINES_COUNT:]
        return f"--- log of {node.name} ({node.child.log})\n" + "\n".join(lines)


def _renice(children: Sequence[Child]) -> None:
    for child in children:
        child.renice(0)


def own_environment() -> dict[str, str]:
    """This process's variables without those of the user that would configure every node alike, or dial past a WAN."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KVNODE_", "DENO_KV_")) and name.lower() not in ("no_proxy", "no_grpc_proxy")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
