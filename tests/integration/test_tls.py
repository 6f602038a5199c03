"""TLS on the gRPC port of real nodes: towards callers, between nodes, and with certificates of the callers' own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.launcher import ROOT, LocalCluster
from cluster.ports import free_ports
from cluster.processes import Child
from kvnode.base.errors import KvError
from kvnode.client import Admin, open_kv, tls_credentials
from kvnode.node.peer_calls import identify
from tests.compat.nodes import make_certificate
from tests.integration.conftest import MakeCluster
from tests.integration.connect_client import ConnectClient, add
from tests.integration.helpers import error_of
from tests.integration.test_gateway import TOKEN, opened

AN_ANSWER_MS = 3_000


class Files(NamedTuple):
    """An authority and what it vouches for."""

    ca: Path
    cert: Path
    key: Path

    @property
    def flags(self) -> list[str]:
        return ["--grpc-tls-ca", str(self.ca), "--grpc-tls-cert", str(self.cert), "--grpc-tls-key", str(self.key)]


def made(folder: Path) -> Files:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    folder.mkdir()
    return Files(*make_certificate(folder))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return made(tmp_path / "ours")


@pytest.fixture
def strangers(tmp_path: Path) -> Files:
    """Of an authority that the nodes do not know."""
    return made(tmp_path / "theirs")


def kvnode(cluster: LocalCluster, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KVNODE_")}
    return subprocess.run(
        [sys.executable, "-m", "kvnode", *arguments, "--endpoints", ",".join(cluster.addresses)],
        env={**clean, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def leader_of(cluster: LocalCluster, **credentials: Path) -> tuple[str, str]:
    """(its name, that of a follower)"""
    async with Admin(cluster.addresses, credentials=tls_credentials(**credentials)) as admin:
        status = await admin.cluster_status()
    assert status.healthy, status.summary
    leader = next(node.member.name for node in status.nodes if node.status.role == "leader")
    return leader, next(name for name in cluster.nodes if name != leader)


async def test_everything_over_tls_and_a_dead_leader(make_cluster: MakeCluster, files: Files, strangers: Files) -> None:
    cluster = make_cluster(arguments=files.flags)
    leader, follower = await leader_of(cluster, ca=files.ca)
    near = cluster.nodes[follower].address
    async with open_kv([near], credentials=tls_credentials(files.ca)) as kv:
        await kv.set(("k",), "before")
        cluster.kill(leader)
        await kv.set(("k",), "after")
        assert (await kv.get(("k",))).value == "after"
    cluster.restart(leader)
    for name, wrong in (("plain", None), ("another authority", tls_credentials(strangers.ca))):
        async with open_kv([near], credentials=wrong, timeout_ms=AN_ANSWER_MS, fail_fast=True) as kv:
            error = await error_of(kv.get(("k",)))
            assert error.phase == ("tls" if wrong else "dial"), (name, error)
            assert near in str(error) and "TLS" in error.message, (name, error)


async def test_the_command_line_over_tls(make_cluster: MakeCluster, files: Files, strangers: Files) -> None:
    cluster = make_cluster(arguments=files.flags)
    said = kvnode(cluster, "status", "--tls-ca", str(files.ca))
    assert said.returncode == 0 and "3 of 3 voters answer" in said.stdout, said
    assert kvnode(cluster, "set", '["k"]', "1", KVNODE_GRPC_TLS_CA=str(files.ca)).returncode == 0
    assert kvnode(cluster, "get", '["k"]', KVNODE_GRPC_TLS_CA=str(files.ca)).stdout == "1\n"
    for flags in ((), ("--tls-ca", str(strangers.ca))):
        said = kvnode(cluster, "get", '["k"]', "--timeout", "3s", *flags)
        assert said.returncode == 4 and "TLS" in said.stderr, said
    said = kvnode(cluster, "get", '["k"]', "--tls-ca", str(files.key))
    assert said.returncode == 2 and str(files.key) in said.stderr, said


async def test_callers_must_show_a_certificate(make_cluster: MakeCluster, files: Files, strangers: Files) -> None:
    cluster = make_cluster(arguments=[*files.flags, "--grpc-tls-client-auth"])
    await leader_of(cluster, **files._asdict())
    address = cluster.addresses[0]
    async with open_kv(cluster.addresses, credentials=tls_credentials(*files)) as kv:
        await kv.set(("k",), 1)
    for credentials in (tls_credentials(files.ca), tls_credentials(files.ca, strangers.cert, strangers.key)):
        async with open_kv([address], credentials=credentials, timeout_ms=AN_ANSWER_MS, fail_fast=True) as kv:
            assert (await error_of(kv.get(("k",)))).not_applied
        with pytest.raises(KvError):  # what nodes ask each other is theirs alone
            await identify(address, credentials)
    assert (await identify(address, tls_credentials(*files))).joined


@pytest.fixture
def gateway(make_cluster: MakeCluster, files: Files, tmp_path: Path) -> Iterator[str]:
    """The address of KV Connect at a gateway that must speak TLS to the nodes."""
    arguments = [*files.flags, "--grpc-tls-client-auth", "--access-token", TOKEN]
    cluster = make_cluster(arguments=arguments)
    port, ops_port = free_ports(2)
    command = [sys.executable, "-m", "kvnode", "serve", "--role", "gateway", "--peers", ",".join(cluster.addresses)]
    command += [*files.flags, "--connect-listen", f"127.0.0.1:{port}", "--ops-listen", f"127.0.0.1:{ops_port}"]
    child = Child([*command, "--access-token", TOKEN], tmp_path / "gateway.log", cluster.nodes["a"].child.environment)
    child.start()
    yield f"127.0.0.1:{port}"
    child.kill()


async def test_a_gateway_speaks_tls_to_the_nodes(gateway: str) -> None:
    client = ConnectClient(gateway, TOKEN)
    async with asyncio.timeout(30):
        await opened(client)
        await client.write(add("n", by=2))
        entry = await client.get("n")
    assert entry is not None and int.from_bytes(entry.value, "little") == 2
    client.close()
