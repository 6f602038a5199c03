"""A topology: regions, data centers and nodes, read from one TOML file (cluster/topologies/*.toml).

Everything that runs many nodes starts from it: local processes (launcher.py), docker-compose.yml and Prometheus'
targets (compose.py), the delays of the WAN proxy. docs/reference/topology.md explains the keys. What a topology may
not be is decided by kvnode.base.topology, as for `kvnode config check`.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.topology_fields import Fields
from kvnode.base.errors import ConfigError
from kvnode.base.topology import topology_problems

TOPOLOGIES = Path(__file__).resolve().parent / "topologies"
DEFAULT = "default"
VOTER, REPLICA = "voter", "replica"
DEFAULT_PORTS = {"grpc": 4510, "ops": 4511, "connect": 4512}
PROMETHEUS, GRAFANA = "prometheus", "grafana"
"""Services of docker-compose.yml beside the nodes: no node is called so."""
_MAX_DELAY_MS = 1_000.0


@dataclass(frozen=True, slots=True)
class Region:
    """One region.

    Args:
        name: unique.
        primary: whether the voters stand here.
        delay_ms: least and greatest one-way delay between two of its data centers, milliseconds.
    """

    name: str
    primary: bool
    delay_ms: tuple[float, float]


@dataclass(frozen=True, slots=True)
class TopologyNode:
    """One node: who it is, where it stands, and where others reach it.

    Args:
        name: unique; also the name of its container, so neither of the services beside it.
        region: a region of the topology.
        dc: data center, of one region alone.
        role: "voter" or "replica".
        host: by which the other nodes and clients reach it.
        grpc_port: of peers, clients and operators.
        ops_port: of probes and metrics.
        connect_port: of KV Connect.
    """

    name: str
    region: str
    dc: str
    role: str
    host: str
    grpc_port: int
    ops_port: int
    connect_port: int

    @property
    def votes(self) -> bool:
        """Whether it is one of the initial voters."""
        return self.role == VOTER

    @property
    def address(self) -> str:
        """host:port of gRPC, as the others know it."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def ops_address(self) -> str:
        """host:port of probes and metrics."""
        return f"{self.host}:{self.ops_port}"


@dataclass(frozen=True, slots=True)
class Topology:
    """What a file describes; checked.

    Args:
        name: of the file, without its ending.
        min_commit_dcs: how many data centers a commit needs.
        regions: the primary one first, then as in the file.
        nodes: voters first, then as in the file.
        delays: one way between two regions, in milliseconds, for both orders of each pair.
    """

    name: str
    min_commit_dcs: int
    regions: tuple[Region, ...]
    nodes: tuple[TopologyNode, ...]
    delays: Mapping[tuple[str, str], float]

    @property
    def primary(self) -> Region:
        """The region in which the voters stand."""
        return self.regions[0]

    @property
    def voters(self) -> tuple[TopologyNode, ...]:
        """The initial voters; the first bootstraps the cluster."""
        return tuple(node for node in self.nodes if node.votes)

    @property
    def replicas(self) -> tuple[TopologyNode, ...]:
        """The nodes of the other regions."""
        return tuple(node for node in self.nodes if not node.votes)

    def node(self, name: str) -> TopologyNode:
        """The node of that name. Raises ConfigError."""
        found = next((node for node in self.nodes if node.name == name), None)
        if found is None:
            names = ", ".join(node.name for node in self.nodes)
            raise ConfigError(f"topology '{self.name}' has no node '{name}'; its nodes are {names}")
        return found

    def region(self, name: str) -> Region:
        """The region of that name. Raises ConfigError."""
        found = next((region for region in self.regions if region.name == name), None)
        if found is None:
            names = ", ".join(region.name for region in self.regions)
            raise ConfigError(f"topology '{self.name}' has no region '{name}'; its regions are {names}")
        return found

    def in_region(self, name: str) -> tuple[TopologyNode, ...]:
        """The nodes of a region."""
        return tuple(node for node in self.nodes if node.region == name)

    def delay_ms(self, source: str, target: str) -> tuple[float, float]:
        """Least and greatest one-way delay between two nodes, milliseconds; 0 inside one data center."""
        one, other = self.node(source), self.node(target)
        if one.dc == other.dc:
            return 0.0, 0.0
        if one.region == other.region:
            return self.region(one.region).delay_ms
        between = self.delays[one.region, other.region]
        return between, between


def load_topology(source: str | Path = DEFAULT) -> Topology:
    """Read a topology.

    Args:
        source: a name of cluster/topologies, or the path of a TOML file.

    Raises:
        ConfigError: naming the file, the place in it, and what to write instead.
    """
    path = Path(source)
    if path.suffix != ".toml":
        path = TOPOLOGIES / f"{source}.toml"
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in TOPOLOGIES.glob("*.toml")))
            raise ConfigError(f"no topology is called '{source}': give a .toml file, or one of {names}")
    try:
        return parse_topology(path.read_text(encoding="utf-8"), path.stem)
    except OSError as error:
        raise ConfigError(f"cannot read the topology {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is no UTF-8, as TOML has to be: save the file as UTF-8"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def parse_topology(text: str, name: str = "topology") -> Topology:
    """The topology that a TOML text describes. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from None
    top = Fields(document, "the top level", ("min_commit_dcs", "ports", "regions", "delays", "nodes"))
    ports = _ports(top)
    regions = _regions(top)
    nodes = tuple(_node(table, ports) for table in top.tables("nodes", "one [[nodes]] for each node"))
    topology = Topology(
        name,
        top.whole("min_commit_dcs", 2, 1),
        tuple(sorted(regions, key=lambda region: not region.primary)),
        tuple(sorted(nodes, key=lambda node: not node.votes)),
        _delays(top, [region.name for region in regions]),
    )
    _check(topology)
    return topology


def _ports(top: Fields) -> dict[str, int]:
    table = top.table("ports", tuple(DEFAULT_PORTS))
    return {name: table.port(name, port) for name, port in DEFAULT_PORTS.items()}


def _regions(top: Fields) -> list[Region]:
    found = []
    for name, table in top.named_tables("regions", ("primary", "delay_ms")):
        found.append(Region(name, table.truth("primary", False), table.span("delay_ms", (0.0, 0.0), _MAX_DELAY_MS)))
    primaries = [region.name for region in found if region.primary]
    if len(primaries) != 1:
        said = f"{' and '.join(primaries)} do" if primaries else "none does"
        raise ConfigError(f"exactly one region says primary = true: the voters stand there; {said}")
    return found


NODE_KEYS = ("name", "region", "dc", "role", "host", "grpc_port", "ops_port", "connect_port")


def _node(table: Mapping[str, Any], ports: Mapping[str, int]) -> TopologyNode:
    fields = Fields(table, f"node '{table.get('name', '?')}'", NODE_KEYS)
    name = fields.label("name")
    return TopologyNode(
        name,
        fields.label("region"),
        fields.label("dc"),
        fields.choice("role", (VOTER, REPLICA)),
        fields.label("host", name),
        *(fields.port(f"{kind}_port", ports[kind]) for kind in DEFAULT_PORTS),
    )


def _delays(top: Fields, regions: list[str]) -> dict[tuple[str, str], float]:
    delays: dict[tuple[str, str], float] = {}
    for table in top.tables("delays", "", needed=False):
        fields = Fields(table, "[[delays]]", ("between", "one_way_ms"))
        one, other = fields.pair("between", regions)
        if (one, other) in delays:
            raise ConfigError(f"the delay between {one} and {other} is given twice")
        delays[one, other] = delays[other, one] = fields.number("one_way_ms", _MAX_DELAY_MS)
    missing = [pair for pair in itertools.combinations(regions, 2) if pair not in delays]
    if missing:
        one, other = missing[0]
        raise ConfigError(f'no delay is given between {one} and {other}: add [[delays]] between = ["{one}", "{other}"]')
    return delays


def _check(topology: Topology) -> None:
    for field in ("name", "address"):
        values = [getattr(node, field) for node in topology.nodes]
        first: dict[str, str] = {}
        for value in values:
            other = first.setdefault(value.lower(), value)
            if other != value:
                raise ConfigError(f"two nodes have the {field} '{other}': '{value}' is no other one to a resolver")
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"two nodes have the {field} '{twice}'")
    _check_services(topology)
    _check_ports(topology)
    regions_of_dcs: dict[str, str] = {}
    for node in topology.nodes:
        region = topology.region(node.region)
        if regions_of_dcs.setdefault(node.dc, node.region) != node.region:
            raise ConfigError(f"data center '{node.dc}' is in {regions_of_dcs[node.dc]} and in {node.region}")
        if node.votes != region.primary:
            raise ConfigError(
                f"node '{node.name}' is a {node.role} in region {node.region}: voters stand in the primary region "
                f"({topology.primary.name}), replicas in the others"
            )
    empty = [region.name for region in topology.regions if not topology.in_region(region.name)]
    if empty:
        raise ConfigError(f"region '{empty[0]}' has no node")
    places = [(node.dc, node.region, node.votes) for node in topology.nodes]
    errors = [
        problem.text for problem in topology_problems(places, topology.min_commit_dcs) if problem.severity == "error"
    ]
    if errors:
        raise ConfigError("; ".join(errors))


def _check_services(topology: Topology) -> None:
    """No node has the name of a service beside the nodes, which would take its place."""
    for node in topology.nodes:
        if node.name in (PROMETHEUS, GRAFANA):
            raise ConfigError(f"'{node.name}' is the name of a service of docker-compose.yml: call the node otherwise")


def _check_ports(topology: Topology) -> None:
    """No two servers would listen on one port of one host."""
    taken: dict[str, str] = {}
    for node in topology.nodes:
        for kind in DEFAULT_PORTS:
            port = getattr(node, f"{kind}_port")
            server = f"the {kind} port of node '{node.name}'"
            other = taken.setdefault(f"{node.host}:{port}", server)
            if other != server:
                raise ConfigError(
                    f"{node.host}:{port} is {other} and {server}: give one of them another, in [ports] or "
                    f"by its node's own {kind}_port"
                )
