"""Debian's Prometheus with the project's own configuration, against the live nodes: every query is really run."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.compose import host_ports
from cluster.dashboard import PANELS, RATE_INTERVAL
from cluster.ports import free_ports
from cluster.topology import Topology
from tests.compose.engine import ROOT, CheckFailed, run

CONFIGURATION = ROOT / "cluster" / "prometheus"
_INTERVAL = "15s"
_START_TIMEOUT_S = 60.0


class Prometheus:
    """A server on a free port. Only the addresses of the targets differ from what the compose file mounts.

    Args:
        topology: whose nodes listen on the ports that the compose file publishes.
        folder: for configuration, data and log; made anew.
    """

    def __init__(self, topology: Topology, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(CONFIGURATION, folder)
        self._nodes_count = len(topology.nodes)
        outside = {node.ops_address: f"127.0.0.1:{_ops_port(topology, node.name)}" for node in topology.nodes}
        targets = json.loads((folder / "targets.json").read_text())
        for group in targets:
            group["targets"] = [outside[target] for target in group["targets"]]
        (folder / "targets.json").write_text(json.dumps(targets))
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        self._log = (folder / "log").open("w")
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self._address}",
        ]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def wait_for_targets(self) -> None:
        """Until every node has been scraped often enough for a rate. Raises CheckFailed."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        wanted = 'sum(count_over_time(up{job="kvnode"}[1m]) >= bool 4 and up{job="kvnode"} == 1)'
        seen: list[Any] = []
        while time.monotonic() < deadline:
            try:
                seen = self.query(wanted)
            except OSError:
                seen = []
            if seen and float(seen[0]["value"][1]) == self._nodes_count:
                return
            time.sleep(0.5)
        raise CheckFailed(f"Prometheus did not reach all nodes: {seen}")

    def query(self, expression: str) -> list[Any]:
        """The series of an instant query. Raises CheckFailed when Prometheus refuses it."""
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{asked}", timeout=10) as answer:
            said = json.load(answer)
        if said["status"] != "success":
            raise CheckFailed(f"{expression}: {said}")
        result: list[Any] = said["data"]["result"]
        return result

    def run_dashboard(self) -> int:
        """Run every query; each must have a number for an answer. Returns how many there were. Raises CheckFailed."""
        count = 0
        for panel in PANELS:
            for query in panel.queries:
                series = self.query(query.expression.replace(RATE_INTERVAL, _INTERVAL))
                if not any(math.isfinite(float(one["value"][1])) for one in series):
                    raise CheckFailed(f"'{panel.title}' shows nothing: {query.expression} gives {series}")
                count += 1
        return count

    def firing(self) -> list[str]:
        """Names of the alerts that fire."""
        with urllib.request.urlopen(f"http://{self._address}/api/v1/alerts", timeout=10) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        return sorted({alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"})


def check_configuration() -> None:
    """promtool's opinion. Raises CheckFailed."""
    run("promtool", "check", "config", str(CONFIGURATION / "prometheus.yml"))


def _ops_port(topology: Topology, name: str) -> int:
    node = topology.node(name)
    return next(outside for outside, inside in host_ports(topology, node).items() if inside == node.ops_port)
