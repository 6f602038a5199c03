"""What the demo says of nodes: from their metrics and the acknowledged writes to a table."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from cluster.ack_timeline import AckTimeline
from cluster.demo_ledger import Ledger
from cluster.demo_nodes import NodeWatcher
from cluster.demo_view import DemoView
from cluster.topology import load_topology
from kvnode.codec.versionstamp import versionstamp

PAGE = """# HELP kvnode_role ...
kvnode_role{{role="leader"}} 0.0
kvnode_role{{role="follower"}} 0.0
kvnode_role{{role="replica"}} 1.0
kvnode_epoch 2.0
kvnode_commit_index {committed}
kvnode_applied_index {applied}
kvnode_reads_strong_total {reads}
kvnode_reads_eventual_total 4.0
"""


class Node:
    """As LocalNode, as far as the watcher looks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec = SimpleNamespace(region="asia", role="voter")  # of the topology, before a failover
        self.child = SimpleNamespace(running=True)
        self.page = (200, PAGE.format(committed=9.0, applied=7.0, reads=1.0))

    def http(self, path: str) -> tuple[int, str]:
        assert path == "/metrics"
        return self.page


async def test_a_look_tells_role_lag_and_rates() -> None:
    near, far, timeline = Node("near"), Node("far"), AckTimeline()
    near.page = (200, PAGE.format(committed=9.0, applied=9.0, reads=1.0))
    now_ms = time.monotonic() * 1_000
    for index in range(1, 10):
        timeline.acknowledged(versionstamp(2, index, 0), now_ms - 200 + index)
    watcher = NodeWatcher([near, far], timeline)
    first = {sight.name: sight for sight in await watcher.look()}
    assert (first["near"].lag_entries, first["near"].lag_ms) == (0, 0)
    assert first["far"].role == "replica" and first["far"].lag_entries == 2
    assert first["far"].applied == versionstamp(2, 7, 0)[:8].hex()
    assert 190 < first["far"].lag_ms < 10_000, "index 8 was acknowledged 192 ms ago"
    assert first["far"].reads_per_second == first["far"].writes_per_second == 0, "nothing to compare with yet"

    far.page = (200, PAGE.format(committed=9.0, applied=9.0, reads=1_001.0))
    near.child.running = False
    second = {sight.name: sight for sight in await watcher.look()}
    assert second["near"].role == "down"
    assert second["far"].lag_ms == 0
    assert second["far"].reads_per_second / second["far"].writes_per_second == pytest.approx(1_000 / 2)


async def test_what_is_no_page_of_metrics_counts_as_down() -> None:
    node = Node("a")
    for node.page in ((503, ""), (0, "refused"), (200, "kvnode_epoch 1.0\n")):
        assert [sight.role for sight in await NodeWatcher([node], AckTimeline()).look()] == ["down"]


async def test_a_terminal_sees_a_table_and_a_pipe_sees_lines() -> None:
    node, timeline = Node("asia-a"), AckTimeline()
    timeline.acknowledged(versionstamp(2, 8, 0), time.monotonic() * 1_000 - 100)
    sights = await NodeWatcher([node], timeline).look()
    for is_terminal in (True, False):
        out = io.StringIO()
        view = DemoView(Console(file=out, force_terminal=is_terminal, width=140, color_system=None))
        view.starting(load_topology())
        with view.loading(10):
            view._shown_at_s = -1e9
            view.seen(sights)
            view.loaded(Ledger())
        text = out.getvalue()
        assert "7 data centers in 3 regions" in text and "94 ms to asia" in text
        assert ("applied versionstamp" in text) is is_terminal
        assert ("2 entries behind" in text) is not is_terminal
        assert "asia-a" in text and "0/10" in text
