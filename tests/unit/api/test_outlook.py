"""What would be lost with the whole primary region."""

from __future__ import annotations

from kvnode.api.outlook import outlook
from kvnode.proto.kv.v1 import admin_pb2


def cluster(*regions: tuple[str, str, int]) -> str:
    leader = admin_pb2.NodeStatus()
    for region, node, lag_ms in regions:
        leader.status.regions.add(region=region, node=node, lag_ms=lag_ms)
    return outlook(leader)


def test_the_sentences() -> None:
    assert outlook(None) == ""
    assert cluster() == "No other region has a copy."
    assert cluster(("asia", "", 7_000)) == "No other region has a copy: asia has no copy yet."
    assert cluster(("europe", "e1", 0)) == "With the whole primary region no write would be lost: europe lags 0.0 s."
    assert cluster(("asia", "", 7_000), ("europe", "e1", 210)) == (
        "With the whole primary region the last 0.2 s of writes would be lost: asia has no copy yet, europe lags 0.2 s."
    )
