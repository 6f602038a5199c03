"""What would be lost with the whole primary region, as a sentence."""

from __future__ import annotations

from kvnode.proto.kv.v1 import admin_pb2


def outlook(leader: admin_pb2.NodeStatus | None) -> str:
    """How far the other regions are, as the leader knows it; empty without one."""
    if leader is None:
        return ""
    regions = leader.status.regions
    if not regions:
        return "No other region has a copy."
    known = [region for region in regions if region.node]
    lags = ", ".join(
        f"{region.region} lags {_seconds(region.lag_ms)}" if region.node else f"{region.region} has no copy yet"
        for region in regions
    )
    if not known:
        return f"No other region has a copy: {lags}."
    least = min(region.lag_ms for region in known)
    lost = f"the last {_seconds(least)} of writes" if least else "no write"
    return f"With the whole primary region {lost} would be lost: {lags}."


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms / 1_000:.1f} s"
