"""The operator's port over real HTTP."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.cron_metrics import CronStats
from kvnode.api.http import HttpServer, Request, Response
from kvnode.api.metrics import Metrics
from kvnode.api.ops import OpsServer
from kvnode.api.queue_metrics import QueueStats
from kvnode.api.remote_backend import RemoteBackend
from kvnode.api.remote_directory import RemoteDirectory
from kvnode.api.serve_gateway import GatewayPages
from kvnode.base.errors import ConfigError
from kvnode.base.metrics import CATALOGUE, COUNTED, MetricKind
from kvnode.machine.directory.view import DirectoryView
from kvnode.node.push.stats import PushStats
from kvnode.node.stats import Histogram, Stats
from tests.unit.api.fake_node import FakeNode
from tests.unit.machine.fakes import MemoryState

DOCUMENT = Path(__file__).parents[3] / "docs/reference/metrics.md"


async def get(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    raw = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = raw.partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


async def test_probes_over_http() -> None:
    node = FakeNode()
    ops = OpsServer(node, "127.0.0.1:0")
    port = await ops.start()
    try:
        assert (await get(port, "/livez"))[::2] == (200, "ok\n")
        assert (await get(port, "/readyz"))[::2] == (200, "ok\n")
        node.ready = (False, "no leader is known")
        node.leader_id = 0
        assert (await get(port, "/readyz"))[::2] == (503, "no leader is known\n")
        status, _, text = await get(port, "/readyz?verbose")
        assert status == 503
        assert text.splitlines() == [
            "[+] alive: the node has not failed",
            "[-] leader: the leader is not known",
            "[+] applied: 1 committed entries to apply",
            "[+] healthy: no problems seen",
            "[-] ready: no leader is known",
        ]
        assert (await get(port, "/livez"))[0] == 200
        node.failed.set_result(OSError("fsync failed"))
        assert (await get(port, "/livez"))[::2] == (503, "the node has failed: fsync failed\n")
        assert (await get(port, "/other"))[0] == 404
        assert (await get(port, "/livez", "POST"))[0] == 405
        status, headers, body = await get(port, "/metrics")
        assert (status, headers["content-type"][:10]) == (200, "text/plain")
        assert "kvnode_term 3.0" in body
        status, _, body = await get(port, "/metrics", "HEAD")
        assert (status, body) == (200, "")
    finally:
        await ops.stop()
    with pytest.raises(OSError):
        await get(port, "/livez")


async def test_a_port_in_use_is_named() -> None:
    first = OpsServer(FakeNode(), "127.0.0.1:0")
    port = await first.start()
    try:
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            await OpsServer(FakeNode(), f"127.0.0.1:{port}").start()
    finally:
        await first.stop()


async def test_a_failing_handler_is_a_500_and_the_server_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(request: Request) -> Response:
        if request.path == "/bug":
            raise ZeroDivisionError("a bug")
        return Response(200, request.query.get("q", "none").encode())

    server = HttpServer(handle, "127.0.0.1:0")
    port = await server.start()
    try:
        assert (await get(port, "/bug"))[0] == 500
        assert "a bug" in caplog.text
        assert (await get(port, "/?q=1&q=2"))[2] == "2"
    finally:
        await server.stop()


async def test_logging_is_left_as_it_was() -> None:
    import logging

    before = (list(logging.getLogger().handlers), logging.getLogger().level, dict(logging._handlers))
    server = HttpServer(_nothing, "127.0.0.1:0")
    await server.start()
    await server.stop()
    assert (list(logging.getLogger().handlers), logging.getLogger().level, dict(logging._handlers)) == before


async def _nothing(_request: Request) -> Response:
    return Response(204, b"")


def parsed(node: FakeNode) -> dict[str, list]:
    text = Metrics(node).text().decode()
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


async def test_every_metric_of_the_catalogue_is_shown() -> None:
    families = parsed(FakeNode())
    assert set(families) == {metric.name for metric in CATALOGUE}


async def test_values_come_from_the_stats_and_the_status() -> None:
    node = FakeNode()
    node.stats.proposals = 41
    node.stats.held_now = 2
    for value in (0.3, 0.4, 7, 99_999):
        node.stats.commit_latency_ms.observe(value)
    families = parsed(node)
    assert families["kvnode_proposals"][0].value == 41
    assert families["kvnode_held_count"][0].value == 2
    buckets = {s.labels["le"]: s.value for s in families["kvnode_commit_latency_ms"] if s.name.endswith("_bucket")}
    assert (buckets["0.2"], buckets["0.5"], buckets["10.0"], buckets["+Inf"]) == (0, 2, 3, 4)
    other = {s.name.rpartition("_")[2]: s.value for s in families["kvnode_commit_latency_ms"]}
    assert (other["count"], other["sum"]) == (4, pytest.approx(100_006.7))
    roles = {s.labels["role"]: s.value for s in families["kvnode_role"]}
    assert roles == {"leader": 1, "follower": 0, "candidate": 0, "learner": 0, "replica": 0}
    assert families["kvnode_peer_lag_entries_count"][0].labels == {"peer": "b"}
    assert families["kvnode_info"][0].labels["node"] == "a"


def test_every_stat_is_in_the_catalogue() -> None:
    assert {metric.stat for metric in COUNTED} == set(Stats.__slots__)
    stats = Stats()
    for metric in COUNTED:
        assert isinstance(getattr(stats, metric.stat), Histogram) == (metric.kind is MetricKind.HISTOGRAM)


def test_names_are_unique_and_carry_their_unit() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        if metric.kind is MetricKind.HISTOGRAM:
            assert metric.name.endswith(("_ms", "_bytes", "_transactions"))


async def test_the_reference_names_every_metric_and_no_other() -> None:
    shown = {metric.name + ("_total" if metric.kind is MetricKind.COUNTER else "") for metric in CATALOGUE}
    shown |= {family.name + ("_total" if family.type == "counter" else "") for family in ConnectStats().collect()}
    queues = QueueStats(MemoryState(), DirectoryView("c"), lambda: 0, lambda: 0, PushStats())
    crons = CronStats(MemoryState(), DirectoryView("c"))
    view = DirectoryView()
    gateway = GatewayPages(RemoteDirectory(["a:1"]), RemoteBackend("gateway", ["a:1"], view), ConnectStats())
    for family in (*queues.collect(), *crons.collect(), *gateway.collect()):
        shown.add(family.name + ("_total" if family.type == "counter" else ""))
    named = set(re.findall(r"`(kvnode_[a-z_]+)`", DOCUMENT.read_text(encoding="utf-8")))
    assert named == shown
