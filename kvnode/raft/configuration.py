"""The membership over the log's course, and which change of it may be proposed.

Theory of operation (Ongaro's thesis, chapter 4). A membership takes effect when it is *appended*, committed or
not, and goes when its entry is truncated. Only one change is on its way at a time and it alters at most one
voter, so that every majority of the old membership meets every majority of the new. A leader starts one only
after an entry of its own term is committed: without that, two leaders' single changes could miss each other
(Ongaro, raft-dev, 10 July 2015).
"""

from __future__ import annotations

from kvnode.base.errors import InvalidRequest
from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.codec.membership import MemberRole, Membership, decode_membership, encode_membership
from kvnode.raft.quorum import Quorum


def bootstrap_log(membership: Membership) -> tuple[list[Entry], HardState]:
    """The log and hard state with which every founding member of a cluster starts.

    The first membership is a committed entry like any other, so that a node which joins later learns it from
    the log. All founders must write the same one.
    """
    entry = Entry(1, 1, EntryKind.MEMBERSHIP, encode_membership(membership))
    return [entry], HardState(term=1, vote=0, commit=1)


class MembershipHistory:
    """The memberships that may still be in force: the applied one and those after it."""

    __slots__ = ("_history", "quorum")

    def __init__(self, membership: Membership, index: int) -> None:
        self._history = [(index, membership)]
        self.quorum = Quorum(membership)

    @property
    def latest(self) -> Membership:
        """The membership in force: the latest in the log."""
        return self._history[-1][1]

    @property
    def latest_index(self) -> int:
        """The index of its entry, or an earlier applied index."""
        return self._history[-1][0]

    def at(self, index: int) -> Membership:
        """The membership as of `index`, not before the one last pruned to."""
        found = self._history[0][1]
        for since, membership in self._history:
            if since <= index:
                found = membership
        return found

    def was_voter(self, node_id: int) -> bool:
        """Whether a node votes in the membership before the latest."""
        if len(self._history) == 1:
            return False
        member = self._history[-2][1].get(node_id)
        return member is not None and member.role is MemberRole.VOTER

    def append(self, entry: Entry) -> None:
        """Put the membership of a MEMBERSHIP entry in force."""
        self._history.append((entry.index, decode_membership(entry.data)))
        self.quorum = Quorum(self.latest)

    def truncate(self, index: int) -> bool:
        """Roll back what the entries from `index` on had put in force. Returns whether that changed anything."""
        if self.latest_index < index or len(self._history) == 1:
            return False
        while len(self._history) > 1 and self.latest_index >= index:
            self._history.pop()
        self.quorum = Quorum(self.latest)
        return True

    def prune(self, applied: int) -> None:
        """Forget what an applied membership has replaced."""
        while len(self._history) > 1 and self._history[1][0] <= applied:
            del self._history[0]

    def restore(self, membership: Membership, index: int) -> None:
        """Start again from a snapshot."""
        self._history = [(index, membership)]
        self.quorum = Quorum(membership)


def check_change(old: Membership, new: Membership) -> int:
    """Check a change by itself.

    Returns:
        The node id of the learner that it promotes, or 0.

    Raises:
        InvalidRequest: with the code NODE_ID_INVALID, NO_VOTER_LEFT, TOO_FEW_DATA_CENTERS,
            ONE_VOTER_AT_A_TIME or VOTER_NOT_LEARNER_FIRST.
    """
    ids = [member.node_id for member in new.members]
    if len(set(ids)) < len(ids) or any(node_id <= 0 for node_id in ids):
        raise InvalidRequest("NODE_ID_INVALID", "every member needs a node id of its own, above 0")
    voters = {member.node_id for member in new.voters}
    if not voters:
        raise InvalidRequest("NO_VOTER_LEFT", "the last voter cannot go: add and promote another node first")
    dcs = {member.dc for member in new.voters}
    if new.min_commit_dcs < 1 or len(dcs) < new.min_commit_dcs:
        raise InvalidRequest(
            "TOO_FEW_DATA_CENTERS",
            f"voters in {len(dcs)} data center(s) cannot commit in min_commit_dcs = {new.min_commit_dcs}: "
            "promote a node in another data center first, or lower min_commit_dcs",
        )
    changed = voters ^ {member.node_id for member in old.voters}
    if len(changed) > 1:
        raise InvalidRequest("ONE_VOTER_AT_A_TIME", "a change may add or remove one voter; make several changes")
    promoted = next(iter(changed & voters), 0)
    before = old.get(promoted)
    if promoted and (before is None or before.role is not MemberRole.LEARNER):
        raise InvalidRequest("VOTER_NOT_LEARNER_FIRST", "add the node as a learner, and promote it when it caught up")
    return promoted
