"""From the nodes' configurations to what is in force in the cluster, which stands in the membership.

    off ──(every member wants the same lease)──► on ──(the leader wants another, or none)──► ending ──► off

A configuration is only a wish. *On* is an entry of the log like any change of membership: leaders need the lease from
its append on, and a node votes in ballots once it knows the entry to be committed, so no ballot can be held against a
leader that knows of no lease. *Ending* still needs the lease, and who knows of it votes no more; *off* follows when so
many know of it that the others are no quorum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvnode.codec.membership import Membership
from kvnode.node.promotion.quorum import REGIONS_COUNT, can_promote, majority_count


def next_setting(
    membership: Membership, wished_ms: int, wishes: Mapping[int, int], holders_count: int
) -> Membership | None:
    """The membership that the leader is to propose now; None = what is in force stays.

    Args:
        membership: committed, and the newest.
        wished_ms: the lease that the leader's own configuration wants; 0 = none.
        wishes: those of the members that were heard, its own included.
        holders_count: members that know this membership to be committed.
    """
    if not membership.primary_lease_ms:
        agreed = all(wishes.get(member.node_id) == wished_ms for member in membership.members)
        if wished_ms and agreed and can_promote(membership):
            return replace(membership, primary_lease_ms=wished_ms, lease_ends=False)
        return None
    if not membership.lease_ends:
        in_one_region = len({member.region for member in membership.members}) < REGIONS_COUNT
        ends = wished_ms != membership.primary_lease_ms or in_one_region
        return replace(membership, lease_ends=True) if ends else None
    if len(membership.members) - holders_count < majority_count(membership):
        return replace(membership, primary_lease_ms=0, lease_ends=False)
    return None
