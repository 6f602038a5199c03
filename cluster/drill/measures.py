"""From calls to figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from cluster.ack_timeline import AckTimeline
from cluster.drill.record import Call, Record


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed; 0 of none."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def longest_gap_ms(calls: Iterable[Call], since_ms: float, until_ms: float) -> float:
    """The longest time between two moments without a good answer to any of the calls."""
    answered = sorted(call.completed_ms for call in calls if call.ok and since_ms <= call.completed_ms <= until_ms)
    return max(later - earlier for earlier, later in itertools.pairwise([since_ms, *answered, until_ms]))


def worst_gap_ms(calls: Iterable[Call], since_ms: float, until_ms: float) -> float:
    """longest_gap_ms of the client for which it is longest; 0 without calls."""
    by_client: dict[str, list[Call]] = {}
    for call in calls:
        by_client.setdefault(call.client, []).append(call)
    return max((longest_gap_ms(each, since_ms, until_ms) for each in by_client.values()), default=0.0)


def timeline_of(record: Record) -> AckTimeline:
    """When which write was acknowledged."""
    timeline = AckTimeline()
    writes = [call for call in record.calls if call.kind == "write" and call.ok]
    for call in sorted(writes, key=lambda call: call.versionstamp):
        timeline.acknowledged(call.versionstamp, call.completed_ms)
    return timeline


def lags_ms(record: Record, region: str) -> list[float]:
    """Of each eventual read in a region: for how long the oldest write that it did not show had been acknowledged.

    The state is taken to be that of the middle of the call.
    """
    timeline = timeline_of(record)
    return [
        timeline.behind_ms(call.versionstamp, (call.invoked_ms + call.completed_ms) / 2)
        for call in record.of("eventual", region, "grpc")
        if call.ok
    ]
