"""The default topology as real processes, and what Grafana and Prometheus ask of it."""

from __future__ import annotations

import asyncio
import re
import urllib.request

from cluster.compose import ROOT
from cluster.dashboard import PANELS
from cluster.launcher import LocalCluster, specs_of
from cluster.topology import load_topology
from kvnode.client import open_kv
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, eventually, get, put
from tests.integration.promql import Series, problems, scraped

TOKEN = "a-token-for-this-test"


async def test_the_default_topology_as_processes(make_cluster: MakeCluster) -> None:
    topology = load_topology()
    cluster = make_cluster(specs_of(topology), start=False, arguments=["--access-token", TOKEN])
    await asyncio.to_thread(cluster.start)
    for node in topology.nodes:
        status = cluster.nodes[node.name].status()
        assert status is not None
        assert (status.self.region, status.self.dc, status.self.role) == (node.region, node.dc, node.role)
    asia = cluster.nodes["asia-b"].address
    await put(asia, "from afar")
    assert await get(cluster.nodes["europe-a"].address, "from afar") == b"value"
    await assert_equal_digests(cluster)
    async with open_kv([asia]) as kv:
        await kv.enqueue({"to": "ada"}, queue="mail")
    await asyncio.to_thread(knock, cluster.nodes["asia-b"].connect_address)
    await eventually(
        lambda: len(live_series(cluster, "kvnode_queue_waiting_count")) == 7, "the message is not everywhere"
    )
    # What a node says of others comes with their next words.
    await eventually(lambda: not unanswered(live_series(cluster)), "a query of the dashboard finds nothing")
    every_query_finds_its_series(live_series(cluster))
    await asyncio.to_thread(cluster.stop)
    for node in cluster.nodes.values():
        assert node.child.exit_status == 0
        assert "Traceback" not in node.child.log_text(), f"{node.name}: {node.child.log_text()[-3_000:]}"


def knock(address: str) -> None:
    """A request over KV Connect, so that there is one to count."""
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    request = urllib.request.Request(f"http://{address}/", b'{"supportedVersions": [3]}', headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200


def live_series(cluster: LocalCluster, name: str = "") -> list[Series]:
    """What Prometheus would have of these nodes; of one metric if one is named."""
    found = []
    for node in cluster.nodes.values():
        target = {"node": node.name, "region": node.spec.region, "dc": node.spec.dc, "instance": node.ops_address}
        found += scraped(node.http("/metrics")[1], target)
    return [series for series in found if name in ("", series.name)]


def unanswered(series: list[Series]) -> list[str]:
    """The queries of the dashboard that find nothing, or not what they show."""
    queries = [query for panel in PANELS for query in panel.queries]
    return [query.expression for query in queries if problems(query.expression, series, query.legend)]


def every_query_finds_its_series(series: list[Series]) -> None:
    assert {one.labels["region"] for one in series} == {"us-east", "europe", "asia"}
    for panel in PANELS:
        for query in panel.queries:
            assert problems(query.expression, series, query.legend) == [], f"{panel.title}: {query.expression}"
    alerts = re.findall(r"^ +expr: (.+)$", (ROOT / "cluster/prometheus/alerts.yml").read_text(), re.MULTILINE)
    assert len(alerts) > 3
    for expression in alerts:
        assert problems(expression, series) == [], expression
    for wrong in (
        "max(kvnode_terms)",
        'kvnode_role{role="king"}',
        "sum by (rack) (kvnode_term)",
        "rate(kvnode_term[1m])",
        "vector(1)",
    ):
        assert problems(wrong, series), f"{wrong} passes"
