"""After a row: every acknowledged write, at every node; then the order of all calls; then the digests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.checker import check
from cluster.drill.judge import Measured
from cluster.drill.stage import Stage
from cluster.drill.traffic import Traffic
from cluster.history import Committed, Operation, Seen

MAX_VIOLATIONS_COUNT = 5
_EPOCH_BYTES = 2


async def verify(stage: Stage, traffic: Traffic, measured: Measured, fork: bytes = b"") -> None:
    """Note down what does not hold.

    Args:
        stage: whose nodes are asked.
        traffic: over; what it was told is what must hold.
        measured: takes the findings.
        fork: the versionstamp at which a failover cut the history; empty = none did.
    """
    acknowledged = {key: stamp for key, stamp in traffic.record.acknowledged().items() if not is_cut(stamp, fork)}
    newest = max(acknowledged.values(), default=b"")
    missing: dict[bytes, None] = {}
    for node in stage.cluster.nodes.values():
        client = stage.direct(node)
        try:
            for least in (b"", newest):
                shown = await traffic.read_back(client, least=least)
                missing.update({key: None for key, stamp in acknowledged.items() if shown.get(key) != stamp})
                if any(is_cut(stamp, fork) for stamp in shown.values()):
                    measured.violations.append(f"{node.name} shows writes from behind the cut")
        finally:
            await client.close()
    report = await asyncio.to_thread(check, _kept(traffic.record.history.operations, fork))
    digests = await asyncio.to_thread(stage.cluster.digests)
    most = max(set(digests.values()), key=list(digests.values()).count)
    measured.acknowledged_count = len(acknowledged)
    measured.errors_count = sum(not call.ok for call in traffic.record.calls)
    measured.lost = len(missing)
    measured.violations += [str(violation) for violation in report.violations[:MAX_VIOLATIONS_COUNT]]
    measured.differing = [name for name in stage.cluster.nodes if digests.get(name) != most]


def is_cut(versionstamp: bytes, fork: bytes) -> bool:
    """Whether it is of the epoch that the failover ended, and behind the fork."""
    return bool(fork) and versionstamp[:_EPOCH_BYTES] == fork[:_EPOCH_BYTES] and versionstamp > fork


def _kept(operations: Sequence[Operation], fork: bytes) -> list[Operation]:
    """Without what only the history that was cut off has."""
    return [
        operation
        for operation in operations
        if not (isinstance(operation.outcome, Committed | Seen) and is_cut(operation.outcome.versionstamp, fork))
    ]
