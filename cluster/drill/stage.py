"""What the drill plays on: seven nodes, the WAN, a gateway and clients in every region."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.drill.clients import Client, ConnectClient, GrpcClient
from cluster.drill.traffic import Pace
from cluster.keeper import Keeper
from cluster.launcher import ClusterFailed, LocalNode, own_environment
from cluster.ports import free_ports
from cluster.processes import Child
from cluster.topology import Topology
from cluster.wan.cluster import WanCluster
from kvnode.base.errors import KvError

TOKEN = "the-token-of-the-failure-drill"
_GATEWAY_TIMEOUT_S = 30.0
_POLL_S = 0.25  # looking more often would disturb the clients, which share this process
HOME_PACE = Pace(40, 10, 2)
AWAY_PACE = Pace(5, 10, 2)
CONNECT_PACE = Pace(5, 10, 2)


class Stage:
    """Use as an async context manager.

    Args:
        topology: which nodes, where.
        folder: for data and logs.
        gateways: regions with a client of KV Connect and a gateway beside it.
        flags: further ones of every node.
    """

    def __init__(self, topology: Topology, folder: Path | None, gateways: list[str], flags: Sequence[str] = ()) -> None:
        self.topology = topology
        self.cluster = WanCluster(topology, folder, arguments=["--access-token", TOKEN, *flags])
        self.cluster.poll_s = _POLL_S
        self.clients: list[tuple[Client, Pace]] = []
        self._gateway_regions = gateways
        self._gateways: list[Child] = []
        self._keeper = Keeper()

    @property
    def home(self) -> str:
        """The primary region's name."""
        return self.topology.primary.name

    @property
    def away(self) -> list[str]:
        """The replica regions."""
        return [region.name for region in self.topology.regions if not region.primary]

    def nodes_in(self, region: str) -> list[str]:
        """Names of a region's nodes."""
        return self.cluster.names_in(region)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.cluster.start)
        for region in (self.home, *self.away):
            await asyncio.to_thread(self._add_clients, region)
        await asyncio.gather(*(self._wait_for(client) for client, _ in self.clients))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client, _ in self.clients:
            await client.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End every process."""
        for gateway in self._gateways:
            gateway.kill()
        self._keeper.close()
        self.cluster.close()

    def direct(self, node: LocalNode) -> GrpcClient:
        """A client that stands beside a node and asks nobody else."""
        return GrpcClient(f"beside {node.name}", node.spec.region, [node.address])

    def _add_clients(self, region: str) -> None:
        """One for each node of the region, which it prefers; then one of KV Connect."""
        near = self.nodes_in(region)
        ways = {name: self.cluster.clients_way_to(region, name) for name in self._by_distance(region)}
        far = [way for name, way in ways.items() if name not in near]
        for number, name in enumerate(near):
            turned = near[number:] + near[:number]
            client = GrpcClient(f"client of {name}", region, [*(ways[each] for each in turned), *far])
            self.clients.append((client, HOME_PACE if region == self.home else AWAY_PACE))
        if region in self._gateway_regions:
            address = self._start_gateway(region, list(ways.values()))
            self.clients.append((ConnectClient(f"KV Connect in {region}", region, address, TOKEN), CONNECT_PACE))

    def _by_distance(self, region: str) -> list[str]:
        home = self.nodes_in(region)[0]
        names = [node.name for node in self.topology.nodes]
        return sorted(names, key=lambda name: (name not in self.nodes_in(region), self.topology.delay_ms(home, name)))

    def _start_gateway(self, region: str, peers: list[str]) -> str:
        port, ops_port = free_ports(2)
        address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "kvnode", "serve", "--role", "gateway", "--name", f"gateway-{region}"]
        command += ["--region", region, "--peers", ",".join(peers), "--connect-listen", address]
        command += ["--ops-listen", f"127.0.0.1:{ops_port}", "--access-token", TOKEN]
        log = self.cluster.folder / f"gateway-{region}.log"
        child = Child(command, log, own_environment(), self._keeper)
        child.start()
        self._gateways.append(child)
        return address

    async def _wait_for(self, client: Client) -> None:
        if not isinstance(client, ConnectClient):
            return
        deadline = time.monotonic() + _GATEWAY_TIMEOUT_S
        while True:
            try:
                await client.open()
            except KvError as error:
                if time.monotonic() > deadline:
                    raise ClusterFailed(f"{client.name}: the gateway does not answer: {error}") from None
                await asyncio.sleep(0.1)
            else:
                return
