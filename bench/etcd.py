"""A three-node etcd on this machine, fsync on, everything else as Debian's etcd-server has it."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

from cluster.ports import free_ports
from cluster.processes import Child

NAMES = ("a", "b", "c")


class EtcdGroup:
    """Three members; `endpoint` is the leader's."""

    name = "etcd"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * len(NAMES))
        self.clients = {name: f"127.0.0.1:{ports[number]}" for number, name in enumerate(NAMES)}
        peers = {name: f"http://127.0.0.1:{ports[number + len(NAMES)]}" for number, name in enumerate(NAMES)}
        initial = ",".join(f"{name}={url}" for name, url in peers.items())
        self.children: dict[str, Child] = {}
        for name in NAMES:
            client = f"http://{self.clients[name]}"
            command = ["etcd", "--name", name, "--data-dir", str(folder / name), "--log-level", "error"]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name]]
            command += ["--initial-cluster", initial, "--initial-cluster-state", "new"]
            command += ["--quota-backend-bytes", str(8 << 30)]
            self.children[name] = Child(command, folder / f"{name}.log")

    def start(self) -> None:
        for child in self.children.values():
            child.start()
        self._wait(lambda: self._leader() is not None, 30)

    @property
    def endpoint(self) -> str:
        leader = self._leader()
        if leader is None:
            raise RuntimeError("etcd has no leader")
        return self.clients[leader]

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self.children.values()]

    def a_follower(self) -> str:
        leader = self._leader()
        return next(name for name in NAMES if name != leader)

    def restart_s(self, name: str) -> float:
        """Kill a member and measure its start until it answers a linearizable read."""
        self.children[name].kill()
        started = time.monotonic()
        self.children[name].start()
        self._wait(lambda: self._reads(name), 120)
        return time.monotonic() - started

    def close(self) -> None:
        for child in self.children.values():
            child.kill()

    def _leader(self) -> str | None:
        for name in NAMES:
            status = self._post(name, "/v3/maintenance/status", {})
            if status and status.get("leader") and status["leader"] == status["header"]["member_id"]:
                return name
        return None

    def _reads(self, name: str) -> bool:
        return self._post(name, "/v3/kv/range", {"key": "AA=="}) is not None

    def _post(self, name: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        request = urllib.request.Request(f"http://{self.clients[name]}{path}", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                parsed: dict[str, Any] = json.load(answer)
                return parsed
        except OSError:
            return None

    def _wait(self, condition: Any, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError("etcd: " + "".join(child.log_text()[-1000:] for child in self.children.values()))
            time.sleep(0.02)
