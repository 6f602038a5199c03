"""What would be lost with the whole primary region, or is if it stays gone, as a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.base import limits
from kvnode.codec.membership import MemberRole
from kvnode.proto.kv.v1 import admin_pb2


def outlook(leader: admin_pb2.NodeStatus | None, answers: Sequence[admin_pb2.NodeStatus] = ()) -> str:
    """How far the other regions are.

    Args:
        leader: who leads, and knows it; None = nobody does.
        answers: of all members, for when nobody leads.

    Returns:
        The sentence; empty while the voters that answer are enough to elect a leader.
    """
    if leader is None:
        return _without_leader(answers)
    regions = leader.status.regions
    if not regions:
        return "No other region has a copy."
    heard = [region for region in regions if region.node and region.silent_ms < limits.REGION_SILENT_MS]
    silent = [_silence(region) for region in regions if region.node and region.silent_ms >= limits.REGION_SILENT_MS]
    if never := " or ".join(region.region for region in regions if not region.node):
        # It may have one all the same: an old primary region that is down while another leads, say.
        silent.append(f"no copy in {never} has been heard of since the leader began to lead")
    if not heard:
        return f"It is not known what would be left without the primary region: {'; '.join(silent)}."
    lags = ", ".join(f"{region.region} lags {_seconds(region.lag_ms)}" for region in heard)
    least = min(region.lag_ms for region in heard)
    lost = f"the last {_seconds(least)} of writes" if least else "no write"
    return f"With the whole primary region {lost} would be lost: {'; '.join([lags, *silent])}."


def _silence(region: admin_pb2.RegionProgress) -> str:
    """Of a region that was heard of, and is not any more: its copies may be gone, however much they held."""
    had = f"and lags {_seconds(region.lag_ms)}" if region.lag_ms else "and held every write then"
    return f"{region.region} has not been heard of for {_seconds(region.silent_ms)}, {had}"


def _without_leader(answers: Sequence[admin_pb2.NodeStatus]) -> str:
    voters = [answer for answer in answers if answer.member.role == MemberRole.VOTER.value]
    if not voters or 2 * sum(not voter.error for voter in voters) > len(voters):
        return ""
    ages_ms: dict[str, list[int]] = {}
    for answer in answers:
        if answer.member.role == MemberRole.REPLICA.value and not answer.error:
            ages_ms.setdefault(answer.member.region, []).append(answer.status.age_ms)
    if not ages_ms:
        return "No node of another region answers that could take over: start the voters."
    copies = ", ".join(f"{region} has the state {_as_of(ages_ms[region])}" for region in sorted(ages_ms))
    return (
        f"Start the voters, or if they are gone for good have another region take over: {copies}, and what was "
        "acknowledged after that would be lost. `kvnode failover --to REGION --dry-run` says more."
    )


def _as_of(ages_ms: Sequence[int]) -> str:
    known = [age_ms for age_ms in ages_ms if age_ms >= 0]
    return f"as of {_seconds(min(known))} ago" if known else "of an unknown age"


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms / 1_000:.1f} s"
