"""The replicated membership: who votes, who learns, and in which data center each stands."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import Enum

from kvnode.base import limits


class MemberRole(str, Enum):
    """A voter counts in elections and commits; a learner receives from the leader, on its way to voter; a replica,
    in another region, follows the changelog, and the leader knows nothing of how far it is."""

    VOTER = "voter"
    LEARNER = "learner"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class Member:
    """One node. `node_id` (63 bits, never 0) is minted at join and never used again."""

    node_id: int
    name: str
    region: str
    dc: str
    address: str
    role: MemberRole = MemberRole.VOTER


@dataclass(frozen=True, slots=True)
class Membership:
    """All members, and what holds for all of them.

    Attributes:
        min_commit_dcs: the data centers that a commit needs.
        primary_lease_ms: the leader answers only while it holds a lease of so long, and a ballot may promote another
            region (node/promotion); 0 = neither.
        lease_ends: the lease is still needed, but nobody votes in a ballot any more: it is being turned off.
        removed_ids: of those who were members, the latest one last; the last MAX_REMOVED_MEMBERS_COUNT.
        voters: the members that vote.
        replicas: the members that follow the changelog.
    """

    members: tuple[Member, ...] = ()
    min_commit_dcs: int = 2
    primary_lease_ms: int = 0
    lease_ends: bool = False
    removed_ids: tuple[int, ...] = ()
    voters: tuple[Member, ...] = field(init=False, repr=False, compare=False)
    replicas: tuple[Member, ...] = field(init=False, repr=False, compare=False)
    _by_id: dict[int, Member] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = self.members  # sorted out once: with each commit somebody asks for the voters
        object.__setattr__(self, "voters", tuple([one for one in members if one.role is MemberRole.VOTER]))
        object.__setattr__(self, "replicas", tuple([one for one in members if one.role is MemberRole.REPLICA]))
        object.__setattr__(self, "_by_id", {member.node_id: member for member in members})

    def get(self, node_id: int) -> Member | None:
        """The member of that id, or None."""
        return self._by_id.get(node_id)

    def without(self, node_id: int) -> Membership:
        """What is left after the removal of a member, whose id is remembered."""
        members = tuple(member for member in self.members if member.node_id != node_id)
        removed_ids = (*self.removed_ids, node_id)[-limits.MAX_REMOVED_MEMBERS_COUNT :]
        return replace(self, members=members, removed_ids=removed_ids)


def encode_membership(membership: Membership) -> bytes:
    """JSON: rare, small, and readable in a hex dump of a damaged log."""
    rows = [[m.node_id, m.name, m.region, m.dc, m.address, m.role.value] for m in membership.members]
    fields: dict[str, object] = {"format": 1, "min_commit_dcs": membership.min_commit_dcs, "members": rows}
    if membership.primary_lease_ms:
        fields |= {"primary_lease_ms": membership.primary_lease_ms, "lease_ends": membership.lease_ends}
    if membership.removed_ids:
        fields["removed_ids"] = membership.removed_ids
    return json.dumps(fields).encode()


def decode_membership(data: bytes) -> Membership:
    """The inverse of encode_membership. Raises ValueError on anything else."""
    parsed = json.loads(data)
    if parsed.get("format") != 1:
        raise ValueError(f"membership format {parsed.get('format')!r} is not known; this node is too old for it")
    members = tuple(
        Member(int(i), str(name), str(region), str(dc), str(address), MemberRole(role))
        for i, name, region, dc, address, role in parsed["members"]
    )
    lease_ms, lease_ends = int(parsed.get("primary_lease_ms", 0)), bool(parsed.get("lease_ends", False))
    removed_ids = tuple(int(node_id) for node_id in parsed.get("removed_ids", ()))
    return Membership(members, int(parsed["min_commit_dcs"]), lease_ms, lease_ends, removed_ids)
