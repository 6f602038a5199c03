"""Who has to agree: a majority of all nodes, in at least two regions.

The same quorum grants the primary lease and wins a ballot, so that every lease meets every ballot in one node. All
members count, a learner too: so neither a change of role nor the beginning of an epoch changes what a majority is, and
a change of membership, which adds or removes one node, leaves the majorities of before and after one in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256

from kvnode.codec.membership import Membership, encode_membership
from kvnode.raft.quorum import data_center_value, majority_value

REGIONS_COUNT = 2


def quorum_value(membership: Membership, values: Mapping[int, int]) -> int:
    """The highest value, 0 or more, that a quorum has reached.

    Args:
        values: by node id; who is left out has 0.
    """
    members = membership.members
    reached = [values.get(member.node_id, 0) for member in members]
    in_regions = data_center_value(reached, [member.region for member in members], REGIONS_COUNT)
    return min(majority_value(reached), in_regions)


def is_quorum(membership: Membership, node_ids: Iterable[int]) -> bool:
    """Whether these are a majority of all nodes, in at least two regions."""
    return quorum_value(membership, dict.fromkeys(node_ids, 1)) == 1


def majority_count(membership: Membership) -> int:
    """How many nodes are a majority."""
    return len(membership.members) // 2 + 1


def can_promote(membership: Membership) -> bool:
    """Whether the nodes outside the primary region are a quorum without it."""
    primary = {voter.region for voter in membership.voters}
    return is_quorum(membership, [member.node_id for member in membership.members if member.region not in primary])


@lru_cache(maxsize=64)
def digest_of(membership: Membership) -> int:
    """64 bits by which nodes tell each other which membership they mean."""
    return int.from_bytes(sha256(encode_membership(membership)).digest()[:8], "big")
