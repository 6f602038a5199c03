from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.compose import ROOT, compose_text, files_of, host_ports, main, node_settings
from cluster.dashboard import DATASOURCE_UID, PANELS, expressions
from cluster.launcher import specs_of
from cluster.topology import load_topology
from cluster.yaml_text import Alias, to_yaml
from kvnode.base.config import load_config
from kvnode.base.topology import topology_problems
from kvnode.cli.main import app


def test_the_files_of_the_tree_are_what_the_topology_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_file_is_named_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["three", "--folder", str(tmp_path)]) == 0
    assert main(["three", "--folder", str(tmp_path), "--check"]) == 0
    (tmp_path / "docker-compose.yml").write_text("services: {}\n")
    assert main(["three", "--folder", str(tmp_path), "--check"]) == 1
    assert "docker-compose.yml is not what the topology says" in capsys.readouterr().err
    assert main(["nowhere"]) == 2
    assert "no topology is called 'nowhere'" in capsys.readouterr().err


def test_compose_targets_processes_and_topology_name_the_same_nodes() -> None:
    topology = load_topology()
    files = files_of(topology)
    targets = json.loads(files["cluster/prometheus/targets.json"])
    by_target = [(t["labels"]["node"], t["labels"]["region"], t["labels"]["dc"], t["targets"]) for t in targets]
    assert by_target == [(n.name, n.region, n.dc, [n.ops_address]) for n in topology.nodes]
    specs = [(s.name, s.region, s.dc, s.role == "voter") for s in specs_of(topology)]
    assert specs == [(n.name, n.region, n.dc, n.votes) for n in topology.nodes]
    compose = files["docker-compose.yml"]
    services = re.findall(
        r"^  ([\w-]+):$", compose.partition("services:\n")[2].partition("\nvolumes:")[0], re.MULTILINE
    )
    assert services == [*(node.name for node in topology.nodes), "prometheus", "grafana"]
    for node in topology.nodes:
        service = compose.partition(f"\n  {node.name}:\n")[2].partition("\n  - ")[0]
        assert f"hostname: {node.host}\n" in service
        assert f"KVNODE_REGION: {node.region}\n" in service


def test_the_settings_are_a_configuration_and_one_node_founds_the_cluster() -> None:
    topology = load_topology()
    configs = []
    for node in topology.nodes:
        environment = {f"KVNODE_{name.upper()}": value for name, value in node_settings(topology, node).items()}
        configs.append(load_config({}, environment).config)
    assert [config.name for config in configs if config.bootstrap] == ["us-east-a"]
    assert configs[0].peers == tuple(voter.address for voter in topology.voters)
    assert [config.name for config in configs if config.replica] == [node.name for node in topology.replicas]
    assert all(config.join == configs[0].peers for config in configs if config.replica)
    places = [(config.dc, config.region, not config.replica) for config in configs]
    assert topology_problems(places, configs[0].min_commit_dcs) == []


def test_config_check_takes_the_voters_and_the_others_places(tmp_path: Path) -> None:
    topology = load_topology()
    command = ["config", "check"]
    for node in topology.voters:
        file = tmp_path / f"{node.name}.toml"
        lines = [f'{name} = "{value}"' for name, value in node_settings(topology, node).items()]
        file.write_text("\n".join(lines))
        command.append(str(file))
    for node in topology.replicas:
        command += ["--place", f"{node.region}/{node.dc}/learner"]
    checked = CliRunner().invoke(app, command)
    assert (checked.exit_code, checked.stdout) == (0, "OK\n")


def test_published_ports_are_different_and_loopback_alone() -> None:
    topology = load_topology()
    outside = [port for node in topology.nodes for port in host_ports(topology, node)]
    assert len(set(outside)) == 3 * len(topology.nodes)
    published = re.findall(r'- "([\d.]+):(\d+):\d+"', compose_text(topology))
    assert {host for host, _ in published} == {"127.0.0.1"}
    assert {int(port) for _, port in published} == {*outside, 9090, 3000}


def test_the_dashboard_shows_what_was_promised() -> None:
    document = json.loads((ROOT / "cluster/grafana/dashboards/overview.json").read_text())
    titles = [panel["title"] for panel in document["panels"]]
    for title in (
        "Writes a second",
        "Reads a second",
        "Commit latency",
        "Leader and term",
        "Lag by region",
        "Queue depth",
    ):
        assert title in titles
    assert [target["expr"] for panel in document["panels"] for target in panel["targets"]] == expressions()
    boxes = [panel["gridPos"] for panel in document["panels"]]
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(cells) == len(set(cells)), "two panels overlap"
    assert all(b["x"] + b["w"] <= 24 for b in boxes)
    assert len({panel.title for panel in PANELS}) == len(PANELS)


def test_grafana_and_prometheus_find_one_another() -> None:
    provisioning = ROOT / "cluster/grafana/provisioning"
    source = (provisioning / "datasources/prometheus.yml").read_text()
    assert f"uid: {DATASOURCE_UID}\n" in source
    assert "url: http://prometheus:9090\n" in source
    assert "path: /var/lib/grafana/dashboards\n" in (provisioning / "dashboards/kvnode.yml").read_text()
    compose = compose_text(load_topology())
    assert "./cluster/grafana/dashboards:/var/lib/grafana/dashboards:ro" in compose
    assert "./cluster/prometheus:/etc/prometheus:ro" in compose


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is missing: on Debian 'apt install prometheus'")
def test_prometheus_takes_its_configuration() -> None:
    ran = subprocess.run(
        ["promtool", "check", "config", str(ROOT / "cluster/prometheus/prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_image_runs_as_nobody_special_is_probed_and_is_told_to_stop() -> None:
    last = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    assert "\nUSER 10001:10001\n" in last
    assert "\nVOLUME /data\n" in last
    assert "\nSTOPSIGNAL SIGTERM\n" in last
    assert '\nENTRYPOINT ["kvnode"]\n' in last
    assert "/readyz" in last.partition("HEALTHCHECK")[2]
    assert "--require-hashes -r requirements/runtime.txt" in (ROOT / "Dockerfile").read_text()


def test_yaml_quotes_what_it_must() -> None:
    text = to_yaml({"a": {"b": "x", "yes": "no", "n": "1", "c": "k: v", "t": True, "l": ["p q", "#"], "e": {}}})
    assert (
        text == 'a:\n  b: x\n  "yes": "no"\n  "n": "1"\n  c: "k: v"\n  t: true\n  l:\n    - p q\n    - "#"\n  e: {}\n'
    )
    assert to_yaml({"x": Alias("&one", {"k": "v"}), "z": Alias("*one")}) == "x: &one\n  k: v\n\nz: *one\n"
