"""From calls to figures."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence

from cluster.ack_timeline import AckTimeline
from cluster.drill.record import Call, Record


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed; 0 of none."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def longest_wait_ms(calls: Iterable[Call], since_ms: float, until_ms: float) -> float:
    """The longest time between two moments during which somebody waited and nobody had a good answer.

    It counts from the good answer before, or, if nothing was asked then, from the first call after it: that a client
    asks for something only now and then is no wait. After an error it goes on until another call is answered well.
    """
    by_end = sorted(calls, key=lambda call: call.completed_ms)
    ends = [call.completed_ms for call in by_end]
    # When the earliest of the calls began that end at or behind a place in that order.
    begun = [*itertools.accumulate((call.invoked_ms for call in reversed(by_end)), min)][::-1]
    answered = [call.completed_ms for call in by_end if call.ok and since_ms <= call.completed_ms <= until_ms]
    longest = 0.0
    for earlier, later in itertools.pairwise([since_ms, *answered, until_ms]):
        place = bisect_right(ends, earlier)
        if place < len(begun):
            longest = max(longest, later - max(earlier, begun[place]))
    return longest


def worst_wait_ms(calls: Iterable[Call], since_ms: float, until_ms: float) -> float:
    """longest_wait_ms of the client for which it is longest; 0 without calls."""
    by_client: dict[str, list[Call]] = {}
    for call in calls:
        by_client.setdefault(call.client, []).append(call)
    return max((longest_wait_ms(each, since_ms, until_ms) for each in by_client.values()), default=0.0)


def timeline_of(record: Record) -> AckTimeline:
    """When which write was acknowledged."""
    timeline = AckTimeline()
    writes = [call for call in record.calls if call.kind == "write" and call.ok]
    for call in sorted(writes, key=lambda call: call.versionstamp):
        timeline.acknowledged(call.versionstamp, call.completed_ms)
    return timeline


def lags_ms(record: Record, region: str) -> list[float]:
    """Of each eventual read in a region: for how long the oldest write that it did not show had been acknowledged.

    It counts from when a client had its answer, which may be later than when the write set out for the region: it may
    be below the way there (sights_ms is not). The state is taken to be that of the middle of the call.
    """
    timeline = timeline_of(record)
    return [
        timeline.behind_ms(call.versionstamp, (call.invoked_ms + call.completed_ms) / 2)
        for call in record.of("eventual", region, "grpc")
        if call.ok
    ]


def sights_ms(record: Record, region: str) -> list[float]:
    """Of each acknowledged write: how long after its start the first eventual read in a region that shows it had ended.

    Nobody can know a write before it began, so none of these is below the one-way delay from the writers to the region.
    Left out are writes that the first of the reads shows, and those that none does.
    """
    reads = sorted(
        (call for call in record.of("eventual", region, "grpc") if call.ok), key=lambda call: call.completed_ms
    )
    writes = sorted((call for call in record.of("write") if call.ok), key=lambda call: call.versionstamp)
    shown = reads[0].versionstamp if reads else b""
    waiting = deque(call for call in writes if call.versionstamp > shown)
    found = []
    for read in reads:
        while waiting and waiting[0].versionstamp <= read.versionstamp:
            found.append(read.completed_ms - waiting.popleft().invoked_ms)
    return found
