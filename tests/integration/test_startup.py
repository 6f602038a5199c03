"""What a node refuses at its start, each with its own words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from cluster.launcher import ROOT, LocalCluster, NodeSpec
from cluster.ports import free_ports
from kvnode.proto.kv.internal.v1 import peer_pb2
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import put

SINGLE = (NodeSpec("a", "dc-a"),)


def serve(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run `kvnode serve` until it ends; returns (exit status, output)."""
    done = subprocess.run(
        [sys.executable, "-m", "kvnode", "serve", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def flags(data_dir: Path, listen: int, ops: int) -> list[str]:
    addresses = ["--listen", f"127.0.0.1:{listen}", "--ops-listen", f"127.0.0.1:{ops}"]
    return ["--name", "x", "--data-dir", str(data_dir), *addresses, "--connect-listen", "127.0.0.1:0"]


@pytest.fixture
def single(make_cluster: MakeCluster, cold_nodes: None) -> LocalCluster:
    """A cluster of one."""
    return make_cluster(SINGLE, min_commit_dcs=1, arguments=["--allow-unsafe-topology"])


async def test_a_single_node_is_an_ordinary_cluster(single: LocalCluster) -> None:
    await put(single.addresses[0], "one")
    single.kill("a")
    single.restart("a")
    await put(single.addresses[0], "two")


def test_asking_again_to_stop_changes_nothing(single: LocalCluster) -> None:
    child = single.nodes["a"].child
    while child.running:
        child.signal(signal.SIGTERM)
        time.sleep(0.000_2)
    assert child.exit_status == 0


def test_second_process_on_one_data_directory(single: LocalCluster) -> None:
    listen, ops = free_ports(2)
    status, output = serve(*flags(single.nodes["a"].data_dir, listen, ops), "--name", "a")
    assert status != 0
    assert "in use" in output or "another process" in output, output
    assert "Traceback" not in output, output


@pytest.mark.parametrize("which", ["--listen", "--ops-listen", "--connect-listen"])
def test_port_in_use(single: LocalCluster, tmp_path: Path, which: str) -> None:
    listen, ops = free_ports(2)
    taken = int(single.addresses[0].rpartition(":")[2])
    # The flag that is given last counts.
    status, output = serve(*flags(tmp_path / "other", listen, ops), "--bootstrap", "--allow-unsafe-topology",
                           "--min-commit-dcs", "1", which, f"127.0.0.1:{taken}")  # fmt: skip
    assert status != 0
    assert "in use" in output, output
    assert str(taken) in output, output
    assert "Traceback" not in output, output


def test_bad_configuration_key_is_named_with_a_suggestion(tmp_path: Path) -> None:
    status, output = serve("--data-dir", str(tmp_path / "x"), KVNODE_DATA_DRI="/nowhere")
    assert status == 2
    assert "data_dri" in output, output
    assert "data_dir" in output, output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ((), "--min-commit-dcs 1"),
        (("--allow-unsafe-topology",), "--min-commit-dcs 1"),
        (("--min-commit-dcs", "1"), "--allow-unsafe-topology"),
    ],
)
def test_a_cluster_that_could_not_commit_or_not_survive_is_not_founded(
    tmp_path: Path, arguments: tuple[str, ...], remedy: str
) -> None:
    status, output = serve(*flags(tmp_path / "alone", *free_ports(2)), "--bootstrap", *arguments)
    assert status != 0
    assert remedy in output, output
    assert "Traceback" not in output, output


def test_bootstrap_with_a_node_of_another_cluster(single: LocalCluster, tmp_path: Path) -> None:
    listen, ops = free_ports(2)
    status, output = serve(*flags(tmp_path / "other", listen, ops), "--bootstrap", "--allow-unsafe-topology",
                           "--peers", single.addresses[0])  # fmt: skip
    assert status != 0
    assert "belongs to cluster" in output, output
    assert "Traceback" not in output, output


def test_a_node_of_another_cluster_is_refused_and_told_why(single: LocalCluster) -> None:
    hello = peer_pb2.Hello(cluster_id="f" * 32, epoch=1, node_id=7, name="stranger")
    with grpc.insecure_channel(single.addresses[0]) as channel:
        call = channel.stream_stream(
            "/kv.internal.v1.Peer/Messages",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=peer_pb2.PeerReply.FromString,
        )
        replies = list(call(iter([peer_pb2.PeerBatch(hello=hello)]), timeout=10))
    assert "cluster" in replies[0].refused, replies
    assert single.nodes["a"].ready()
