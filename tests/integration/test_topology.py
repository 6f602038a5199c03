"""The default topology as real processes: three voters, and two replicas in each of two other regions."""

from __future__ import annotations

import asyncio

from cluster.launcher import specs_of
from cluster.topology import load_topology
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, get, put


async def test_the_default_topology_as_processes(make_cluster: MakeCluster) -> None:
    topology = load_topology()
    cluster = make_cluster(specs_of(topology), start=False)
    await asyncio.to_thread(cluster.start)
    for node in topology.nodes:
        status = cluster.nodes[node.name].status()
        assert status is not None
        assert (status.self.region, status.self.dc, status.self.role) == (node.region, node.dc, node.role)
    asia = cluster.nodes["asia-b"].address
    await put(asia, "from afar")
    assert await get(cluster.nodes["europe-a"].address, "from afar") == b"value"
    await assert_equal_digests(cluster)
