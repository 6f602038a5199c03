"""Three nodes that speak KV Connect, over http or https, and a gateway without data beside them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.launcher import THREE_DCS, LocalCluster, NodeSpec
from cluster.ports import free_ports
from cluster.processes import Child
from kvnode.client import Admin
from tests.compat.results import Route

TOKEN = "compat-access-token"


class Nodes:
    """A cluster and the URLs of its default database.

    Args:
        folder: for data, logs and certificates.
        tls: whether the KV Connect ports speak https.
    """

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.certificate: Path | None = None
        arguments: list[str] = ["--access-token", TOKEN]
        if tls:
            self.certificate, certificate, key = make_certificate(folder)
            arguments += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        ports = free_ports(len(THREE_DCS) + 2)
        self._gateway_ports = ports[len(THREE_DCS) :]
        self.connect_ports = dict(zip((spec.name for spec in THREE_DCS), ports, strict=False))
        specs = [_with_connect(spec, self.connect_ports[spec.name]) for spec in THREE_DCS]
        self.cluster = LocalCluster(specs, folder / "cluster", arguments=arguments)
        self._gateway: Child | None = None
        self.prepared: dict[str, str] = {}

    def start(self) -> None:
        """Start the three nodes and wait until they serve."""
        self.cluster.start()
        self.prepared = asyncio.run(_prepare(self.cluster.addresses))

    def close(self) -> None:
        """Kill what runs."""
        if self._gateway is not None:
            self._gateway.kill()
        self.cluster.close()

    def url(self, name: str) -> str:
        """Of the default database at one node."""
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.connect_ports[name]}/"

    def route(self, name: str, node: str) -> Route:
        """A way through one node."""
        return Route(name, self.url(node), TOKEN, self.certificate, self.prepared)

    def by_leader(self) -> Route:
        """The way through the node that leads now."""
        return self.route("leader", self.cluster.wait_leader())

    def by_follower(self) -> Route:
        """The way through a node that does not."""
        return self.route("https" if self.certificate else "follower", self.follower())

    def follower(self) -> str:
        """A node that does not lead."""
        leader = self.cluster.wait_leader()
        return next(name for name in self.cluster.nodes if name != leader)

    def by_gateway(self) -> Route:
        """The way through a gateway without data, started when it is first asked for."""
        port, ops_port = self._gateway_ports
        if self._gateway is None:
            first = next(iter(self.cluster.nodes.values()))
            command = [sys.executable, "-m", "kvnode", "serve", "--role", "gateway", "--name", "gateway"]
            command += ["--peers", ",".join(self.cluster.addresses), "--connect-listen", f"127.0.0.1:{port}"]
            command += ["--ops-listen", f"127.0.0.1:{ops_port}", "--access-token", TOKEN]
            self._gateway = Child(command, self.folder / "gateway.log", first.child.environment)
            self._gateway.start()
            self.cluster.wait_until(self._gateway_ready, "the gateway is not ready", 30)
        return Route("gateway", f"http://127.0.0.1:{port}/", TOKEN, None, self.prepared)

    def _gateway_ready(self) -> bool:
        import urllib.error
        import urllib.request

        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._gateway_ports[1]}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.HTTPError, OSError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            return False


def _with_connect(spec: NodeSpec, port: int) -> NodeSpec:
    return NodeSpec(spec.name, spec.dc, spec.region, environment=(("KVNODE_CONNECT_LISTEN", f"127.0.0.1:{port}"),))


async def _prepare(addresses: list[str]) -> dict[str, str]:
    """Databases and tokens for the programs; the names are those that the programs know."""
    async with Admin(addresses) as admin:
        orders = (await admin.create_database("orders")).database
        for name, mode in (("archive", "read-only"), ("closed", "disabled")):
            await admin.create_database(name)
            await admin.set_database(name, mode)
        tokens = {
            "ordersToken": await admin.create_token(database="orders", right="write"),
            "readToken": await admin.create_token(right="read"),
            "expiredToken": await admin.create_token(right="write", expires_in_ms=1),
            "limitedToken": await admin.create_token(right="write", requests_per_second=20),
        }
    prepared = {name: answer.secret for name, answer in tokens.items()}
    names = {"ordersName": "orders", "ordersUuid": orders.uuid, "readOnlyName": "archive", "disabledName": "closed"}
    return prepared | names


@contextlib.contextmanager
def three_nodes(folder: Path, *, tls: bool = False) -> Iterator[Nodes]:
    """Three nodes for the length of a block."""
    nodes = Nodes(folder, tls=tls)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.close()


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, and a certificate and key for 127.0.0.1 and localhost. Needs openssl.

    Two of them, because rustls, and so Deno, takes no authority's certificate for a server's.
    """
    authority, authority_key = folder / "authority.pem", folder / "authority.key"
    certificate, key, request = folder / "server.pem", folder / "server.key", folder / "server.csr"
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl("req", "-x509", *new_key, "-keyout", authority_key, "-out", authority, "-days", "2", "-subj", "/CN=test")
    _openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    signed = ["-CA", authority, "-CAkey", authority_key, "-CAcreateserial", "-extfile", extensions, "-days", "2"]
    _openssl("x509", "-req", "-in", request, "-out", certificate, *signed)
    return authority, certificate, key


def _openssl(*arguments: object) -> None:
    command: Sequence[str] = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
