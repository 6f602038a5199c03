"""Whom a node knows: the members, those of whom it was told before its time, and those who have introduced themselves.

A node that joins replays memberships from before its time, which know neither it nor, perhaps, the present leader:
until it meets itself in the log it also keeps those whom it was told of when it was adopted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as with_fields

from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.node.introductions import Introductions
from kvnode.node.removal import Removal
from kvnode.node.settings import NodeSettings
from kvnode.raft.raft import Raft


class AddressBook:
    """The members and strangers of whom one node knows.

    Args:
        settings: who it is itself.
        raft: has the newest membership.
        at_start: the membership that it started with.
        removal: knows who was removed: they are no strangers.
        monotonic_ms: the clock.
        changed: told when there is a stranger more, or one less.
    """

    def __init__(
        self,
        settings: NodeSettings,
        raft: Raft,
        at_start: Membership,
        removal: Removal,
        monotonic_ms: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._raft = raft
        self._at_start = at_start
        self._removal = removal
        self.introductions = Introductions(settings.node_id, self._is_known, monotonic_ms, changed)

    @property
    def own(self) -> Member:
        """The node itself, as the cluster knows it."""
        s = self._settings
        known = self._raft.membership.get(s.node_id)
        if known is not None:
            return known
        role = MemberRole.REPLICA if s.replica else MemberRole.LEARNER
        return Member(s.node_id, s.name, s.region, s.dc, s.address, role)

    def known(self) -> Membership:
        """The newest membership, and those whom this node was told of if it is too old to know this node."""
        membership = self._raft.membership
        if membership.get(self._settings.node_id) is not None:
            return membership
        known = {member.node_id: member for member in (*self._at_start.members, *membership.members)}
        return with_fields(membership, members=tuple(known.values()))

    def reachable(self) -> Membership:
        """All whose addresses this node knows."""
        known, strangers = self.known(), self.introductions.members
        return with_fields(known, members=(*known.members, *strangers)) if strangers else known

    def peers(self) -> list[Member]:
        """All to whom there should be a stream."""
        return [member for member in self.reachable().members if member.node_id != self._settings.node_id]

    def _is_known(self, node_id: int) -> bool:
        return self.known().get(node_id) is not None or node_id in self._removal
