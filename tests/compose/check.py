"""`make compose-check`: build the image, bring the real docker-compose.yml up, use it, hurt it, take it down.

    python -m tests.compose.check            # everything, some minutes; as root
    python -m tests.compose.check --keep     # leave the nodes up

Prometheus and Grafana cannot be pulled without a registry of images: those two services are left out, and Debian's
Prometheus reads the same configuration and runs every query of the dashboard instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from cluster.admin import AdminCalls, NotAnswered
from cluster.compose import GRAFANA, PROMETHEUS, host_ports
from cluster.topology import Topology, load_topology
from kvnode.base.errors import KvError
from kvnode.client import open_kv
from tests.compose.engine import PROJECT, WORK, CheckFailed, Engine, install
from tests.compose.prometheus import Prometheus, check_configuration

IMAGE = "kvnode:latest"
ROWS_COUNT = 200
_HEALTHY_TIMEOUT_S = 120.0
_STOP_LIMIT_S = 12.0
_USER = "10001"


def say(text: str) -> None:
    """A line that something held."""
    print(f"✓ {text}", flush=True)


class Check:
    """The steps, in their order."""

    def __init__(self, engine: Engine, topology: Topology) -> None:
        self.engine = engine
        self.topology = topology
        self.names = [node.name for node in topology.nodes]
        self._written: dict[str, str] = {}

    def address(self, name: str) -> str:
        """Where this machine reaches a node's gRPC port."""
        return f"127.0.0.1:{next(iter(host_ports(self.topology, self.topology.node(name))))}"

    def build(self) -> None:
        """The image, by the compose file's own build section."""
        began = time.monotonic()
        name = self.engine.import_base()
        say(f"base image {name}, from debootstrap ({time.monotonic() - began:.0f} s)")
        began = time.monotonic()
        self.engine.build(self.names[0], IMAGE)
        config = json.loads(self.engine.podman("image", "inspect", IMAGE))[0]
        require(config["Config"]["User"] == f"{_USER}:{_USER}", "the image does not run as its own user")
        require(
            "/readyz" in str(config.get("HealthCheck") or config.get("Healthcheck")), "the image has no health check"
        )
        say(f"image built, {config['Size'] // 1_000_000} MB ({time.monotonic() - began:.0f} s)")

    def up(self) -> None:
        """The nodes' services; the others need a registry."""
        self.require_free_ports()
        began = time.monotonic()
        self.engine.compose("up", "-d", *self.names)
        self.wait_until(self.all_healthy, "not every container is healthy", _HEALTHY_TIMEOUT_S)
        say(f"{len(self.names)} containers up and healthy, by nobody's hand ({time.monotonic() - began:.0f} s)")
        print(f"  left out, as their images cannot be pulled here: {PROMETHEUS}, {GRAFANA}")
        said = self.engine.podman("exec", self.engine.container("asia-b"), "kvnode", "status")
        print("\n".join(f"  {line}" for line in said.splitlines()))
        for node in self.topology.nodes:
            status = AdminCalls(self.address(node.name)).status()
            where = (status.self.region, status.self.dc, status.self.role)
            require(where == (node.region, node.dc, node.role), f"{node.name} says that it is {where}")
            user = self.engine.podman("exec", self.engine.container(node.name), "id", "-u")
            require(user == _USER, f"{node.name} runs as user {user}")
        say("each node is where the topology says, in the role that it says, and not root")

    def require_free_ports(self) -> None:
        """The compose file publishes fixed ports."""
        for node in self.topology.nodes:
            for port in host_ports(self.topology, node):
                with socket.socket() as probe:
                    require(probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is in use on this machine")

    def all_healthy(self) -> bool:
        """Whether each container's own health check passes."""
        return all(self.healthy(name) for name in self.names)

    def healthy(self, name: str) -> bool:
        """Whether one container's does. Without systemd nobody runs it but us."""
        done = self.engine.podman("healthcheck", "run", self.engine.container(name), check=False)
        return "unhealthy" not in done and self.engine.inspect(name)["State"]["Health"]["Status"] == "healthy"

    async def write(self, label: str, through: str) -> None:
        """Rows through one node."""
        async with open_kv([self.address(through)], timeout_ms=30_000) as kv:
            await asyncio.gather(*(kv.set((label, number), f"{label} {number}") for number in range(ROWS_COUNT)))
        self._written[label] = through

    async def read_everything(self) -> None:
        """Every row through every node: strongly, and from its own copy once that has caught up."""
        for name in self.names:
            async with open_kv([self.address(name)], timeout_ms=30_000) as kv:
                for label in self._written:
                    rows = [entry.value async for entry in kv.list(prefix=(label,))]
                    require(len(rows) == ROWS_COUNT, f"{name} has {len(rows)} rows of {label} by a strong read")
                    await self._until_copied(kv, name, label)
        say(f"{len(self._written) * ROWS_COUNT} rows read back through every node, strongly and from its own copy")

    async def _until_copied(self, kv: object, name: str, label: str) -> None:
        deadline = time.monotonic() + 20
        count = 0
        while time.monotonic() < deadline:
            listed = kv.list(prefix=(label,), consistency="eventual")  # type: ignore[attr-defined]
            count = len([entry async for entry in listed])
            if count == ROWS_COUNT:
                return
            await asyncio.sleep(0.1)
        raise CheckFailed(f"{name} has {count} rows of {label} in its own copy")

    def leader(self) -> str:
        """The node that leads; empty when none says so."""
        for node in self.topology.voters:
            try:
                if AdminCalls(self.address(node.name)).status().role == "leader":
                    return node.name
            except NotAnswered:
                continue
        return ""

    async def kill_the_leader(self) -> None:
        """SIGKILL to the leader's process, as the kernel would: the container's restart policy brings it back."""
        killed = self.leader()
        pid = int(self.engine.inspect(killed)["State"]["Pid"])
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        async with open_kv([self.address("europe-a")], timeout_ms=20_000) as kv:
            await kv.set(("during",), "the gap")
        gap_s = time.monotonic() - began
        say(f"killed {killed}, the leader, with SIGKILL: the next write, through europe-a, took {gap_s:.2f} s")
        await self.write("after the kill", "asia-a")
        self.wait_until(lambda: self.healthy(killed), f"{killed} does not come back", _HEALTHY_TIMEOUT_S)
        new_pid = int(self.engine.inspect(killed)["State"]["Pid"])
        require(new_pid not in (0, pid), f"{killed} runs as process {new_pid}")
        say(f"{killed} came back by its restart policy, on its volume, and is healthy")

    def stop_one(self) -> None:
        """SIGTERM: the node itself hears it, and ends with 0."""
        stopped = self.leader()
        began = time.monotonic()
        self.engine.compose("stop", stopped)
        took_s = time.monotonic() - began
        status = self.engine.inspect(stopped)["State"]["ExitCode"]
        require(status == 0, f"{stopped} ended with {status} on SIGTERM")
        require(took_s < _STOP_LIMIT_S, f"{stopped} took {took_s:.1f} s to end")
        self.engine.compose("start", stopped)
        self.wait_until(self.all_healthy, "not every container is healthy again", _HEALTHY_TIMEOUT_S)
        say(f"{stopped}, then the leader, ended with 0 in {took_s:.1f} s on SIGTERM, and started again")

    def no_node_was_surprised(self) -> None:
        """Nothing that was done to them is news to a node."""
        for name in self.names:
            log = self.engine.logs(name)
            require("Traceback" not in log, f"the log of {name} has a traceback:\n{log[-3_000:]}")
        say("no node's log has a traceback")

    def again(self) -> None:
        """`down` without -v, and `up`: the same cluster from the volumes."""
        cluster_id = AdminCalls(self.address(self.names[0])).status().cluster_id
        self.engine.compose("down")
        self.engine.compose("up", "-d", *self.names)
        self.wait_until(self.all_healthy, "not every container is healthy after down and up", _HEALTHY_TIMEOUT_S)
        same = AdminCalls(self.address(self.names[0])).status().cluster_id == cluster_id
        require(same, "another cluster came up from the volumes")
        say("down and up again: the same cluster, from its volumes")

    async def watch_over(self) -> None:
        """The monitoring's configuration, with the engine that can be had."""
        check_configuration()
        with Prometheus(self.topology, WORK / "prometheus") as prometheus:
            load = asyncio.ensure_future(self._load())
            try:
                await asyncio.to_thread(prometheus.wait_for_targets)
                count = await asyncio.to_thread(prometheus.run_dashboard)
                firing = await asyncio.to_thread(prometheus.firing)
            finally:
                load.cancel()
                await asyncio.gather(load, return_exceptions=True)
        require(not firing, f"alerts fire on a healthy cluster: {', '.join(firing)}")
        say(f"Prometheus' configuration is good, each of the dashboard's {count} queries shows numbers, no alert fires")

    async def _load(self) -> None:
        """Some of everything that the dashboard shows."""
        async with open_kv([self.address("us-east-a")]) as near, open_kv([self.address("asia-a")]) as far:
            await near.enqueue({"to": "ada"}, queue="mail", delay=600_000)
            while True:
                await near.set(("load",), time.time())
                await far.get(("load",))
                await far.get(("load",), consistency="eventual")
                await asyncio.to_thread(self._knock)
                await asyncio.sleep(0.05)

    def _knock(self) -> None:
        """A request over KV Connect that is refused for want of a token, and counted."""
        node = self.topology.node("europe-a")
        port = next(
            outside for outside, inside in host_ports(self.topology, node).items() if inside == node.connect_port
        )
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nhost: europe-a\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            connection.recv(1_024)

    def down(self) -> None:
        """Nothing is left but images."""
        self.engine.remove_all()
        left = self.engine.left()
        require(not left, f"left over: {left}")
        say("taken down: no container, volume or network is left")

    def wait_until(self, condition: Callable[[], bool], otherwise: str, timeout_s: float) -> None:
        """Wait for a condition. Raises CheckFailed, with the ends of the containers' logs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                logs = [f"--- {name}\n{self.engine.logs(name)[-500:]}" for name in self.names]
                raise CheckFailed("\n".join([f"{otherwise} after {timeout_s:g} s", *logs]))
            time.sleep(0.5)


def require(condition: bool, otherwise: str) -> None:
    """Raise CheckFailed unless it holds."""
    if not condition:
        raise CheckFailed(otherwise)


async def _use(check: Check) -> None:
    for name in ("us-east-a", "europe-b", "asia-a"):
        await check.write(f"through {name}", name)
    await check.read_everything()
    await check.watch_over()
    await check.kill_the_leader()
    await asyncio.to_thread(check.stop_one)
    check.no_node_was_surprised()
    await asyncio.to_thread(check.again)
    await check.read_everything()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.compose.check", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the containers up")
    keep = parser.parse_args().keep
    if os.geteuid() != 0:
        print("compose-check: run it as root: it makes containers and a base image", file=sys.stderr)
        return 1
    engine: Engine | None = None
    try:
        installed = install()
        if installed:
            say(f"installed {', '.join(installed)}")
        engine = Engine()
        engine.remove_all()
        check = Check(engine, load_topology())
        check.build()
        check.up()
        asyncio.run(_use(check))
        if not keep:
            check.down()
    except (CheckFailed, KvError, NotAnswered, OSError) as error:
        print(f"✗ {error}", file=sys.stderr)
        if engine is not None and not keep:
            engine.remove_all()
        return 1
    print(f"compose-check: all of it held. Images and base stay below {WORK} for the next time; project {PROJECT}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
