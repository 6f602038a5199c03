"""Whom a replica follows.

The replicas of a region stand in the order of their node ids. Each prefers the first of them, so that the others are
fed inside the region and the WAN carries each byte once; the first one itself follows a voter. Because a replica only
ever follows one with a lower id, there are no circles. Of the voters those that do not lead come first: the leader has
enough to do. Each region begins with another one of them.
"""

from __future__ import annotations

from zlib import crc32

from kvnode.codec.membership import Member, Membership


def sources(membership: Membership, node_id: int, region: str, leader_id: int) -> list[Member]:
    """The members that a replica may follow, the best first.

    Args:
        membership: as the replica knows it.
        node_id, region: of the replica.
        leader_id: 0 = unknown.
    """
    voters = sorted(membership.voters, key=lambda m: m.node_id)
    if voters:
        first = crc32(region.encode()) % len(voters)
        voters = voters[first:] + voters[:first]
    followers = [m for m in voters if m.node_id != leader_id]
    leading = [m for m in voters if m.node_id == leader_id]
    return [*neighbours(membership, node_id, region), *followers, *leading]


def neighbours(membership: Membership, node_id: int, region: str) -> list[Member]:
    """The replicas of its region that a replica prefers to the voters, the best first."""
    found = [m for m in membership.replicas if m.region == region and m.node_id < node_id]
    return sorted(found, key=lambda m: m.node_id)


def all_others(membership: Membership, node_id: int, first_id: int = 0) -> list[Member]:
    """Whom a node asks that knows only that the epoch of its own membership has ended: who said so, then other
    regions."""
    own = membership.get(node_id)
    others = [m for m in membership.members if m.node_id != node_id]
    return sorted(others, key=lambda m: (m.node_id != first_id, own is not None and m.region == own.region, m.node_id))
