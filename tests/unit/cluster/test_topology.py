from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.launcher import ROOT, specs_of
from cluster.topology import DEFAULT_PORTS, NODE_KEYS, TOPOLOGIES, load_topology, parse_topology
from kvnode.base.errors import ConfigError

SMALL = """
min_commit_dcs = 2
[regions.home]
primary = true
delay_ms = [0.5, 1]
[regions.away]
[[delays]]
between = ["home", "away"]
one_way_ms = 44
"""
NODES = "".join(
    f'[[nodes]]\nname = "{name}"\nregion = "{region}"\ndc = "dc-{name}"\nrole = "{role}"\n'
    for name, region, role in (
        ("a", "home", "voter"),
        ("b", "home", "voter"),
        ("c", "home", "voter"),
        ("d", "away", "replica"),
    )
)
TEXT = SMALL + NODES


def test_the_default_has_seven_data_centers_in_three_regions() -> None:
    topology = load_topology()
    assert [node.name for node in topology.voters] == ["us-east-a", "us-east-b", "us-east-c"]
    assert [node.name for node in topology.replicas] == ["europe-a", "europe-b", "asia-a", "asia-b"]
    assert len({node.dc for node in topology.nodes}) == 7
    assert [region.name for region in topology.regions] == ["us-east", "europe", "asia"]
    assert topology.primary.name == "us-east"
    assert topology.min_commit_dcs == 2
    assert topology.delay_ms("us-east-a", "us-east-b") == (0.5, 1.0)
    assert topology.delay_ms("us-east-a", "europe-b") == (44, 44)
    assert topology.delay_ms("asia-a", "us-east-c") == (94, 94)
    assert topology.delay_ms("asia-a", "europe-a")[0] >= 94
    assert topology.delay_ms("asia-a", "asia-a") == (0, 0)


@pytest.mark.parametrize("path", sorted(TOPOLOGIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_topology_of_the_tree_is_good(path: Path) -> None:
    assert load_topology(path.stem) == load_topology(path)


def test_nodes_ports_and_hosts_have_defaults() -> None:
    topology = parse_topology(TEXT.replace('dc = "dc-b"', 'dc = "dc-b"\nhost = "10.0.0.2"\ngrpc_port = 5000'))
    assert [node.address for node in topology.nodes] == ["a:4510", "10.0.0.2:5000", "c:4510", "d:4510"]
    assert topology.node("b").ops_address == "10.0.0.2:4511"
    assert [node.name for node in topology.in_region("away")] == ["d"]


def test_local_processes_keep_names_places_and_roles() -> None:
    specs = specs_of(load_topology())
    assert [(spec.name, spec.region, spec.dc, spec.role) for spec in specs] == [
        (node.name, node.region, node.dc, node.role) for node in load_topology().nodes
    ]
    assert {spec.host for spec in specs} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("min_commit_dcs = 2", "min_commit_dcs = 0", "'min_commit_dcs' of the top level must be a whole number of at"),
        ("min_commit_dcs = 2", "min_comit_dcs = 2", "unknown key 'min_comit_dcs': did you mean 'min_commit_dcs'?"),
        ("min_commit_dcs = 2", "min_commit_dcs = 3", "the loss of data center dc-a leaves 2, a commit needs 3"),
        ("primary = true", "primary = false", "exactly one region says primary = true: the voters stand there; none"),
        ("[regions.away]", "[regions.away]\nprimary = true", "home and away do"),
        ("[0.5, 1]", "[1, 0.5]", "with the smaller first"),
        ("[0.5, 1]", "0.5", "[least, greatest] in milliseconds"),
        ("one_way_ms = 44", "one_way_ms = -1", "'one_way_ms' of [[delays]] must be milliseconds"),
        ("one_way_ms = 44", "", "[[delays]] lacks 'one_way_ms'"),
        ('["home", "away"]', '["home", "moon"]', "two different ones of home, away"),
        ("[[delays]]", "[regions.far]\n[[delays]]", "no delay is given between home and far"),
        ('region = "away"', 'region = "moon"', "no region 'moon'; its regions are home, away"),
        ('role = "replica"', 'role = "voter"', "node 'd' is a voter in region away"),
        ('role = "replica"', 'role = "king"', "'role' of node 'd' must be voter or replica, not 'king'"),
        ('role = "replica"', "", "node 'd' lacks 'role'"),
        ('dc = "dc-d"', 'dc = "dc-a"', "data center 'dc-a' is in home and in away"),
        ('name = "b"', 'name = "a"', "two nodes have the name 'a'"),
        ('name = "b"', 'name = "b"\nhost = "a"', "two nodes have the address 'a:4510'"),
        ('name = "b"', 'name = "b c"', "'name' of node 'b c' must be a name of letters"),
        ('name = "b"', 'name = "b..c"', "'name' of node 'b..c' must be a name of letters"),
        ('name = "b"', 'name = "b.-c"', "'name' of node 'b.-c' must be a name of letters"),
        ('name = "b"', f'name = "{"b" * 64}"', "must be a name of letters, digits, '-' and '.', at most 63 between"),
        ('name = "b"', 'name = "A"', "two nodes have the name 'a': 'A' is no other one to a resolver"),
        ('name = "b"', 'name = "b"\nops_port = 70000', "'ops_port' of node 'b' must be a port"),
        ('dc = "dc-c"', 'dc = "dc-a"', "the loss of data center dc-a leaves 1 of 3 voters: no majority"),
        (NODES, "", "lacks 'nodes'"),
        ("[regions.home]", "[regions.home", "not valid TOML"),
    ],
)
def test_bad_input_is_named(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_topology(TEXT.replace(old, new, 1))


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("x = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: the top level has the unknown key 'x'"):
        load_topology(path)
    with pytest.raises(ConfigError, match="cannot read the topology"):
        load_topology(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"no topology is called 'nowhere': .* default, three"):
        load_topology("nowhere")


def test_every_key_is_on_its_page() -> None:
    page = (ROOT / "docs/reference/topology.md").read_text()
    keys = {"min_commit_dcs", "primary", "delay_ms", "between", "one_way_ms", *DEFAULT_PORTS, *NODE_KEYS}
    assert {key for key in keys if f"`{key}`" not in page} == set()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[regions.home]", "[ports]\ngrpc = 4510\nops = 4510\n[regions.home]", "4510"),
        ('name = "b"', 'name = "b"\nops_port = 4510', "4510"),
        ('name = "b"', 'name = "b"\nhost = "a"\ngrpc_port = 5000', "a:4511"),
        ('name = "d"', 'name = "prometheus"', "prometheus"),
        ('name = "d"', 'name = "grafana"', "grafana"),
    ],
)
def test_what_two_would_listen_on_or_be_called_is_named(old: str, new: str, said: str) -> None:
    """Two servers on one port never start, and a service of docker-compose.yml would take another's place."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_topology(TEXT.replace(old, new, 1))


def test_a_file_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(TEXT.encode() + b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml"):
        load_topology(path)
