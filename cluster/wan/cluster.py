"""A topology as processes of this machine, with the distances between its data centers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.keeper import Keeper
from cluster.launcher import LocalCluster, NodeSpec, own_environment, specs_of
from cluster.topology import Topology, TopologyNode
from cluster.wan.wan import Wan

_HOST = "127.{block}.{serial}.{number}"
_FIRST_BLOCK, _BLOCKS_COUNT = 20, 200
_SERIALS_COUNT = 250
_serials = itertools.count()


class WanCluster(LocalCluster):
    """LocalCluster whose nodes reach one another through a Wan; whoever is beside a node reaches it directly.

    Args:
        topology: nodes, places and delays.
        folder, arguments, environment: see LocalCluster.
    """

    def __init__(
        self,
        topology: Topology,
        folder: Path | None = None,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.topology = topology
        specs = _with_hosts(specs_of(topology))
        super().__init__(
            specs, folder, min_commit_dcs=topology.min_commit_dcs, arguments=arguments, environment=environment
        )
        self._wan_keeper = Keeper()
        self.wan = Wan(self.folder / "wan.log", own_environment(), self._wan_keeper)
        self._client_sites: dict[str, str] = {}

    def start(self) -> None:
        """Start the WAN, then as LocalCluster does. Raises ClusterFailed, WanFailed."""
        self.wan.start()
        for node in self.nodes.values():
            node.child.environment["KVNODE_EGRESS_PROXY"] = self.wan.add_site(node.name, [node.spec.host])
        for (one, other), delay_ms in link_delays_ms(self.topology).items():
            self.wan.set_delay(one, other, delay_ms)
        super().start()

    def close(self) -> None:
        """As LocalCluster, and the WAN."""
        self.wan.close()
        super().close()
        self._wan_keeper.close()

    def release(self) -> None:
        """Let the nodes and the WAN live on after this process."""
        self.wan.release()
        self._wan_keeper.release()
        super().release()

    def clients_site(self, region: str) -> str:
        """The site of a region's clients: in the data center of the region's first node."""
        found = self._client_sites.get(region)
        if found is None:
            found = self._client_sites[region] = f"clients of {region}"
            self.wan.add_site(found)
            home = self.topology.in_region(region)[0]
            for node in self.topology.nodes:
                self.wan.set_delay(found, node.name, _between_ms(self.topology, home, node))
        return found

    def clients_way_to(self, region: str, node: str) -> str:
        """host:port by which a region's clients reach a node through the WAN."""
        return self.clients_way_to_address(region, self.nodes[node].address)

    def clients_way_to_address(self, region: str, address: str) -> str:
        """host:port by which a region's clients reach an address at a node's host through the WAN."""
        return self.wan.forward(self.clients_site(region), address)

    def names_in(self, region: str) -> list[str]:
        """The nodes of a region."""
        return [node.name for node in self.topology.in_region(region)]


def link_delays_ms(topology: Topology) -> dict[tuple[str, str], float]:
    """The one-way delay of each pair of nodes. The pairs of a region share its span out evenly."""
    delays: dict[tuple[str, str], float] = {}
    for region in topology.regions:
        pairs = list(itertools.combinations(topology.in_region(region.name), 2))
        for number, (one, other) in enumerate(pairs):
            least, greatest = topology.delay_ms(one.name, other.name)
            share = number / (len(pairs) - 1) if len(pairs) > 1 else 0.5
            delays[one.name, other.name] = least + share * (greatest - least)
    for one, other in itertools.combinations(topology.nodes, 2):
        if one.region != other.region:
            delays[one.name, other.name] = topology.delay_ms(one.name, other.name)[0]
    return delays


def _between_ms(topology: Topology, one: TopologyNode, other: TopologyNode) -> float:
    least, greatest = topology.delay_ms(one.name, other.name)
    return (least + greatest) / 2


def _with_hosts(specs: Sequence[NodeSpec]) -> list[NodeSpec]:
    """A loopback address for each, by which the WAN knows it whatever its ports."""
    block = _FIRST_BLOCK + os.getpid() % _BLOCKS_COUNT
    serial = next(_serials) % _SERIALS_COUNT
    return [
        replace(spec, host=_HOST.format(block=block, serial=serial, number=number))
        for number, spec in enumerate(specs, 1)
    ]
