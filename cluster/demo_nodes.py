"""What the demo shows of each node while it works: looked up once a second at the node itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cluster.ack_timeline import AckTimeline
from cluster.launcher import LocalNode
from kvnode.codec.versionstamp import versionstamp

_LAST_ORDER = 0xFFFF  # of the transactions of one entry
_COUNTERS = ("kvnode_reads_strong_total", "kvnode_reads_eventual_total")
_GAUGES = ("kvnode_epoch", "kvnode_commit_index", "kvnode_applied_index")


@dataclass(frozen=True, slots=True)
class NodeSight:
    """One node, as it was at one moment.

    Args:
        role: leader, follower, replica ...; "down" when it did not answer.
        applied: the versionstamp up to which it has applied the log, in hex.
        lag_ms: how long the oldest acknowledged write that it lacks has been acknowledged.
        lag_entries: how many entries of the log it has not applied and another node knows to be committed.
        writes_per_second, reads_per_second: that it has applied, and served, since the look before.
    """

    name: str
    region: str
    role: str
    applied: str = ""
    lag_ms: float = 0.0
    lag_entries: int = 0
    writes_per_second: float = 0.0
    reads_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class _Look:
    at_ms: float
    role: str
    values: Mapping[str, float]
    applied_writes_count: int = 0


class NodeWatcher:
    """Looks at nodes.

    Args:
        nodes: whom to look at.
        timeline: the writes acknowledged so far.
    """

    def __init__(self, nodes: Iterable[LocalNode], timeline: AckTimeline) -> None:
        self._nodes = list(nodes)
        self._timeline = timeline
        self._before: dict[str, _Look] = {}

    async def look(self) -> list[NodeSight]:
        """All nodes, at about the same time."""
        looks = await asyncio.gather(*(asyncio.to_thread(_look_at, node) for node in self._nodes))
        committed = max((int(look.values.get("kvnode_commit_index", 0)) for look in looks if look), default=0)
        return [self._sight(node, look, committed) for node, look in zip(self._nodes, looks, strict=True)]

    def _sight(self, node: LocalNode, look: _Look | None, committed: int) -> NodeSight:
        before = self._before.pop(node.name, None)
        if look is None:
            return NodeSight(node.name, node.spec.region, "down")
        index = int(look.values["kvnode_applied_index"])
        stamp = versionstamp(int(look.values["kvnode_epoch"]), index, _LAST_ORDER)
        look = self._before[node.name] = replace(look, applied_writes_count=self._timeline.count_up_to(stamp))
        writes, reads = 0.0, 0.0
        if before is not None:
            seconds = (look.at_ms - before.at_ms) / 1_000
            writes = max(0, look.applied_writes_count - before.applied_writes_count) / seconds
            reads = max(0.0, sum(look.values[name] - before.values[name] for name in _COUNTERS)) / seconds
        return NodeSight(
            node.name,
            node.spec.region,
            look.role,
            stamp[:8].hex(),
            self._timeline.behind_ms(stamp, look.at_ms),
            max(0, committed - index),
            writes,
            reads,
        )


def _look_at(node: LocalNode) -> _Look | None:
    began = time.monotonic()
    status, page = node.http("/metrics") if node.child.running else (0, "")
    if status != 200:
        return None
    values: dict[str, float] = {}
    role = ""
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        if name in _GAUGES or name in _COUNTERS:
            values[name] = float(value)
        elif name.startswith('kvnode_role{role="') and float(value) == 1:
            role = name.split('"')[1]
    if any(name not in values for name in (*_GAUGES, *_COUNTERS)):
        return None
    # What it says is of some moment between the asking and the answer.
    return _Look((began + time.monotonic()) / 2 * 1_000, role, values)
