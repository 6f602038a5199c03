"""A three-node kvnode on this machine, one node a data center, with the settings that everybody gets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from cluster.launcher import THREE_DCS, LocalCluster


class KvnodeGroup:
    """Three nodes; `endpoint` is the leader's."""

    name = "kvnode"

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.cluster = LocalCluster(THREE_DCS, folder, environment=environment)

    def start(self) -> None:
        self.cluster.start()

    @property
    def endpoint(self) -> str:
        return self.cluster.nodes[self.cluster.wait_leader()].address

    @property
    def pids(self) -> list[int]:
        return self.cluster.pids

    def a_follower(self) -> str:
        leader = self.cluster.wait_leader()
        return next(name for name in self.cluster.nodes if name != leader)

    def restart_s(self, name: str) -> float:
        """Kill a node and measure its start until /readyz says that it serves."""
        self.cluster.kill(name)
        started = time.monotonic()
        self.cluster.restart(name, wait=False)
        self.cluster.wait_ready([name], 120)
        return time.monotonic() - started

    def close(self) -> None:
        self.cluster.close()
