"""Members on the wire of the Admin and Peer services."""

from __future__ import annotations

from kvnode.base.errors import InvalidRequest
from kvnode.codec.membership import Member, MemberRole
from kvnode.proto.kv.v1 import admin_pb2


def member_to_wire(member: Member) -> admin_pb2.Member:
    """The wire form of a member."""
    return admin_pb2.Member(
        node_id=member.node_id,
        name=member.name,
        region=member.region,
        dc=member.dc,
        address=member.address,
        role=member.role.value,
    )


def member_from_wire(member: admin_pb2.Member) -> Member:
    """The inverse of member_to_wire; no role means learner. Raises InvalidRequest: MEMBER_ROLE_UNKNOWN."""
    try:
        role = MemberRole(member.role) if member.role else MemberRole.LEARNER
    except ValueError:
        known = " or ".join(f"'{role.value}'" for role in MemberRole)
        raise InvalidRequest("MEMBER_ROLE_UNKNOWN", f"the role '{member.role}' is unknown: it is {known}") from None
    return Member(member.node_id, member.name, member.region, member.dc, member.address, role)
