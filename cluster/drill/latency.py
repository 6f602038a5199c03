"""The two tables without a fault: how long calls take by region, and how far replicas are behind under load.

A client, the proxy and gRPC's Python take some milliseconds of their own; what an eventual read takes at the node is
read from the node's histogram, whose buckets make each figure an upper bound.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from cluster.drill.clients import Client, GrpcClient
from cluster.drill.measures import lags_ms, percentile, sights_ms
from cluster.drill.pauses import Pauses
from cluster.drill.record import Kind, Record
from cluster.drill.round_trips import RoundTrips
from cluster.drill.stage import Stage
from cluster.drill.traffic import Pace, Traffic
from cluster.launcher import ClusterFailed

LATENCY_PACE = Pace(5, 20, 5)
LAG_WRITES_PER_SECOND = 1_000
LAG_READS_PER_SECOND = 100
RAMP_UP_S = 1.0
EVENTUAL_MOST_MS = 2.0
STRONG_EXTRA_MS = 5.0
LAG_EXTRA_MS = 250.0
LAG_MOST_MS = 10_000.0
AT_THE_NODE = "eventual, at the node, at most"
ROUND_TRIP = "round trip of TCP"
_KINDS: tuple[Kind, ...] = ("eventual", "strong", "write")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure, in milliseconds. `aim_ms` 0 = none; `promise_ms` 0 = none."""

    what: str
    region: str
    least_ms: float
    median_ms: float
    p99_ms: float
    most_ms: float
    count: int
    aim_ms: float = 0.0
    aims_at: str = "median"
    promise_ms: float = 0.0

    @property
    def is_missed(self) -> bool:
        """Whether the aim is not reached."""
        value = self.median_ms if self.aims_at == "median" else self.p99_ms
        return 0 < self.aim_ms < value

    @property
    def is_broken(self) -> bool:
        """Whether the promise is broken."""
        return 0 < self.promise_ms < self.most_ms


async def latencies(stage: Stage, seconds: float) -> list[Spread]:
    """How long calls take at a node of each region, for a client beside it."""
    before = {region: await _at_the_node(stage, region) for region in _regions(stage)}
    async with RoundTrips(stage, stage.away, LATENCY_PACE.strong_reads_per_second) as trips:
        record = await _run(
            stage, [(_beside(stage, region), LATENCY_PACE) for region in _regions(stage)], seconds, "latency"
        )
    found = [
        _of_buckets(AT_THE_NODE, region, await _at_the_node(stage, region) - before[region])
        for region in _regions(stage)
    ]
    found += [_spread(ROUND_TRIP, region, taken_ms) for region, taken_ms in trips.taken_ms.items()]
    for kind in _KINDS:
        for region in _regions(stage):
            aim = 0.0
            if kind == "eventual":
                aim = EVENTUAL_MOST_MS
            elif kind == "strong" and region != stage.home:
                aim = 2 * stage.topology.delays[stage.home, region] + STRONG_EXTRA_MS
            values = [call.latency_ms for call in record.of(kind, region) if call.ok]
            found.append(_spread(kind, region, values, aim_ms=aim))
    return found


async def _at_the_node(stage: Stage, region: str) -> Counter[float]:
    """How many eventual reads the node there has answered, by the upper bound of what they took."""
    node = stage.cluster.nodes[stage.nodes_in(region)[0]]
    status, page = await asyncio.to_thread(node.http, "/metrics")
    return eventual_reads(page) if status == 200 else Counter()


def eventual_reads(page: str) -> Counter[float]:
    """Of a page of metrics: eventual reads by the upper bound of what they took, in milliseconds."""
    counts: Counter[float] = Counter()
    below = 0.0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "kvnode_eventual_read_latency_ms_bucket":
                counts[float(sample.labels["le"])] = int(sample.value - below)
                below = sample.value
    return counts


def _of_buckets(what: str, region: str, counts: Counter[float]) -> Spread:
    values = [bound for bound, count in sorted(counts.items()) for _ in range(count)]
    if not values:
        raise ClusterFailed(f"the node that was asked in '{region}' tells of no eventual read")
    return _spread(what, region, values, aim_ms=EVENTUAL_MOST_MS)


async def lags(stage: Stage, seconds: float, writes_per_second: int = LAG_WRITES_PER_SECOND) -> list[Spread]:
    """How far each replica region is behind while the primary one writes at a steady rate, and when it shows a write.

    The lag counts from a write's answer, the sight from its start.
    """
    clients: list[tuple[Client, Pace]] = [(_beside(stage, stage.home), Pace(writes_per_second))]
    clients += [(_beside(stage, region), Pace(0, LAG_READS_PER_SECOND)) for region in stage.away]
    record = await _run(stage, clients, seconds, f"lag {writes_per_second}")
    found = []
    for region in stage.away:
        aim = stage.topology.delays[stage.home, region] + LAG_EXTRA_MS
        values = lags_ms(record, region)
        rate = f"{writes_per_second:,} writes/s"
        found.append(_spread(f"lag at {rate}", region, values, aim_ms=aim, aims_at="p99", promise_ms=LAG_MOST_MS))
        found.append(_spread(f"write seen at {rate}", region, sights_ms(record, region)))
    return found


async def _run(stage: Stage, clients: list[tuple[Client, Pace]], seconds: float, space: str) -> Record:
    traffic = Traffic(clients, f"{space} {next(_serials)}")
    with Pauses():
        traffic.start()
        await asyncio.sleep(RAMP_UP_S + seconds)
        await traffic.stop()
    for client, _ in clients:
        await client.close()
    first = min((call.invoked_ms for call in traffic.record.calls), default=0.0)
    calls = traffic.record.calls
    # Of the first second only the writes are kept: what a read lacks must be known.
    traffic.record.calls = [
        call for call in calls if call.kind == "write" or call.invoked_ms > first + RAMP_UP_S * 1_000
    ]
    return traffic.record


_serials = itertools.count(1)


def _regions(stage: Stage) -> Iterable[str]:
    return (stage.home, *stage.away)


def _beside(stage: Stage, region: str) -> GrpcClient:
    return stage.direct(stage.cluster.nodes[stage.nodes_in(region)[0]])


def _spread(
    what: str,
    region: str,
    values: list[float],
    *,
    aim_ms: float = 0.0,
    aims_at: str = "median",
    promise_ms: float = 0.0,
) -> Spread:
    return Spread(
        what,
        region,
        min(values, default=0.0),
        percentile(values, 0.5),
        percentile(values, 0.99),
        max(values, default=0.0),
        len(values),
        aim_ms,
        aims_at,
        promise_ms,
    )
