"""Who votes in the epoch that a failover begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvnode.codec.epoch import EpochStart
from kvnode.codec.membership import Member, MemberRole, Membership


def epoch_start(
    membership: Membership,
    voters: Sequence[Member],
    region: str,
    epoch: int,
    ballot: int,
    wanted_commit_dcs: int,
    *,
    planned: bool = False,
) -> EpochStart:
    """These vote, and a commit takes as many data centers as is wanted and as they stand in; everybody else follows."""
    ids = {member.node_id for member in voters}
    members = tuple(
        replace(member, role=MemberRole.VOTER if member.node_id in ids else MemberRole.REPLICA)
        for member in membership.members
    )
    wanted = max(1, wanted_commit_dcs)
    dcs_count = len({member.dc for member in voters})
    started = replace(membership, members=members, min_commit_dcs=min(wanted, dcs_count))
    return EpochStart(epoch, ballot, region, started, wanted, planned)
