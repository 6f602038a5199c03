"""docker-compose.yml, Prometheus' targets and Grafana's dashboard: `python -m cluster.compose` writes them.

    python -m cluster.compose                  # anew from cluster/topologies/default.toml
    python -m cluster.compose --check          # exit status 1 if the files are not what it would write
    python -m cluster.compose mine.toml --folder /srv/kvnode

Voters find one another by `peers`, of which the first founds the cluster; replicas ask to be taken in (`join`). So
`docker compose up` needs no further hand, and repeats itself harmlessly.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cluster.dashboard import dashboard_text
from cluster.topology import DEFAULT, GRAFANA, PROMETHEUS, Topology, TopologyNode, load_topology
from cluster.yaml_text import Alias, to_yaml
from kvnode.base.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_FILE = "docker-compose.yml"
TARGETS_FILE = "cluster/prometheus/targets.json"
DASHBOARD_FILE = "cluster/grafana/dashboards/overview.json"
PROMETHEUS_IMAGE = "docker.io/prom/prometheus:v2.53.4"
GRAFANA_IMAGE = "docker.io/grafana/grafana:11.6.0"
_EVERYWHERE = "0.0.0.0"
_HOST = "127.0.0.1"  # nothing is published beyond the machine
_FIRST_HOST_PORT = 4510
_HOST_PORTS_STEP = 10
_PROMETHEUS_PORT, _GRAFANA_PORT = 9090, 3000
_STOP_GRACE = "15s"  # SHUTDOWN_TIMEOUT_MS, and a little

_HEADER = """\
# Written by `python -m cluster.compose` from cluster/topologies/{name}.toml: change that file, not this one.
# docs/howto/compose.md says what it starts.

"""


def node_settings(topology: Topology, node: TopologyNode) -> dict[str, str]:
    """What a node of the topology is configured with (docs/reference/config.md), where it is alone on its host.

    Every place that starts the topology's nodes, other than as local processes with ports of their own, takes it from
    here. The data directory is the place's own business.
    """
    settings = {
        "name": node.name,
        "region": node.region,
        "dc": node.dc,
        "listen": f"{_EVERYWHERE}:{node.grpc_port}",
        "advertise": node.address,
        "ops_listen": f"{_EVERYWHERE}:{node.ops_port}",
        "connect_listen": f"{_EVERYWHERE}:{node.connect_port}",
    }
    voters = ",".join(voter.address for voter in topology.voters)
    if node == topology.voters[0]:
        settings |= {"bootstrap": "true", "min_commit_dcs": str(topology.min_commit_dcs), "peers": voters}
    elif not node.votes:
        settings |= {"join": voters, "replica": "true"}
    return settings


def host_ports(topology: Topology, node: TopologyNode) -> dict[int, int]:
    """Port of the machine -> port of the container: 4510 to 4512 for the first node, 4520 to 4522 for the second."""
    first = _FIRST_HOST_PORT + _HOST_PORTS_STEP * topology.nodes.index(node)
    return {first: node.grpc_port, first + 1: node.ops_port, first + 2: node.connect_port}


def compose_text(topology: Topology) -> str:
    """docker-compose.yml."""
    shared = {
        "image": "kvnode:latest",
        "build": ".",
        "restart": "unless-stopped",
        "stop_grace_period": _STOP_GRACE,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": ["/tmp"],
    }
    services: dict[str, Any] = {node.name: _service(topology, node) for node in topology.nodes}
    services |= {PROMETHEUS: _prometheus(), GRAFANA: _grafana()}
    volumes: dict[str, Any] = {name: {} for name in [*(node.name for node in topology.nodes), PROMETHEUS, GRAFANA]}
    document = {"x-node": Alias("&node", shared), "services": services, "volumes": volumes}
    return _HEADER.format(name=topology.name) + to_yaml(document)


def _service(topology: Topology, node: TopologyNode) -> dict[str, Any]:
    environment = {f"KVNODE_{name.upper()}": value for name, value in node_settings(topology, node).items()}
    return {
        "<<": Alias("*node"),
        "hostname": node.host,
        "environment": environment,
        "ports": [f"{_HOST}:{outside}:{inside}" for outside, inside in host_ports(topology, node).items()],
        "volumes": [f"{node.name}:/data"],
    }


def _prometheus() -> dict[str, Any]:
    return {
        "image": PROMETHEUS_IMAGE,
        "restart": "unless-stopped",
        "ports": [f"{_HOST}:{_PROMETHEUS_PORT}:{_PROMETHEUS_PORT}"],
        "volumes": ["./cluster/prometheus:/etc/prometheus:ro", f"{PROMETHEUS}:/prometheus"],
    }


def _grafana() -> dict[str, Any]:
    return {
        "image": GRAFANA_IMAGE,
        "restart": "unless-stopped",
        "environment": {
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": "/var/lib/grafana/dashboards/overview.json",
        },
        "ports": [f"{_HOST}:{_GRAFANA_PORT}:{_GRAFANA_PORT}"],
        "volumes": [
            "./cluster/grafana/provisioning:/etc/grafana/provisioning:ro",
            "./cluster/grafana/dashboards:/var/lib/grafana/dashboards:ro",
            f"{GRAFANA}:/var/lib/grafana",
        ],
    }


def targets_text(topology: Topology) -> str:
    """Prometheus' targets, for file_sd_configs: every node with the labels by which the dashboard groups."""
    groups = [
        {
            "targets": [node.ops_address],
            "labels": {"node": node.name, "region": node.region, "dc": node.dc},
        }
        for node in topology.nodes
    ]
    return json.dumps(groups, indent=2) + "\n"


def files_of(topology: Topology) -> dict[str, str]:
    """Path below the folder -> text."""
    return {
        COMPOSE_FILE: compose_text(topology),
        TARGETS_FILE: targets_text(topology),
        DASHBOARD_FILE: dashboard_text(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with --check compare them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.compose", description=__doc__.partition("\n")[0])
    parser.add_argument("topology", nargs="?", default=DEFAULT, help="a name of cluster/topologies, or a .toml file")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the files go; the checkout by default")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    chosen = parser.parse_args(arguments)
    try:
        files = files_of(load_topology(chosen.topology))
    except ConfigError as error:
        print(f"cluster.compose: {error.message}", file=sys.stderr)
        return 2
    stale = [name for name, text in files.items() if not _holds(chosen.folder / name, text)]
    if chosen.check:
        for name in stale:
            print(f"{name} is not what the topology says: run python -m cluster.compose", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (chosen.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (chosen.folder / name).write_text(files[name])
        print(f"written: {chosen.folder / name}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
