"""The membership over the log's course, and which change of it may be proposed.

Theory of operation (Ongaro's thesis, chapter 4). A membership takes effect when it is *appended*, committed or
not, and goes when its entry is truncated. Only one change is on its way at a time and it alters at most one
voter, so that every majority of the old membership meets every majority of the new. A leader starts one only
after an entry of its own term is committed: without that, two leaders' single changes could miss each other
(Ongaro, raft-dev, 10 July 2015).
"""

from __future__ import annotations

from typing import NamedTuple

from kvnode.base.errors import InvalidRequest
from kvnode.base.invariant import invariant
from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.codec.epoch import epoch_of_term, membership_of
from kvnode.codec.membership import MemberRole, Membership, encode_membership
from kvnode.raft.quorum import Quorum

_PLAIN = frozenset((EntryKind.DATA, EntryKind.NOOP))


def bootstrap_log(membership: Membership) -> tuple[list[Entry], HardState]:
    """The log and hard state with which every founding member of a cluster starts.

    The first membership is a committed entry like any other, so that a node which joins later learns it from
    the log. All founders must write the same one.
    """
    entry = Entry(1, 1, EntryKind.MEMBERSHIP, encode_membership(membership))
    return [entry], HardState(term=1, vote=0, commit=1)


class _Mark(NamedTuple):
    """What is in force from an index of the log on."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    membership: Membership
    epoch: int  # of the terms (epoch_of_term): 0 in the cluster's first one
    sealed: bool  # the entry is a seal: nothing behind it belongs to this epoch


class MembershipHistory:
    """The memberships that may still be in force: the applied one and those after it; with them the epochs and seals.

    Args:
        membership, index: what is applied.
        epoch: of the applied entry's term.
        sealed: whether the last entry of that kind is a seal.
    """

    __slots__ = ("_history", "quorum")

    def __init__(self, membership: Membership, index: int, epoch: int = 0, *, sealed: bool = False) -> None:
        self._history = [_Mark(index, membership, epoch, sealed)]
        self.quorum = Quorum(membership)

    @property
    def latest(self) -> Membership:
        """The membership in force: the latest in the log."""
        return self._history[-1].membership

    @property
    def latest_index(self) -> int:
        """The index of its entry, or an earlier applied index."""
        return self._history[-1].index

    @property
    def epoch(self) -> int:
        """The epoch that the log's end belongs to, as epoch_of_term counts."""
        return self._history[-1].epoch

    @property
    def begun(self) -> list[tuple[int, int]]:
        """(epoch, index of its first entry) of the epochs that began behind what is applied."""
        begun, epoch = [], self._history[0].epoch
        for mark in self._history:
            if mark.epoch != epoch:
                begun.append((mark.epoch, mark.index))
            epoch = mark.epoch
        return begun

    @property
    def sealed_at(self) -> int:
        """The index of the seal that ends the log's epoch; 0 = it is not sealed."""
        last = self._history[-1]
        return last.index if last.sealed else 0

    def at(self, index: int) -> Membership:
        """The membership as of `index`, not before the one last pruned to."""
        found = self._history[0].membership
        for mark in self._history:
            if mark.index <= index:
                found = mark.membership
        return found

    def was_voter(self, node_id: int) -> bool:
        """Whether a node votes in the membership before the latest, in the same epoch."""
        if len(self._history) == 1 or self._history[-2].epoch != self.epoch:
            return False
        member = self._history[-2].membership.get(node_id)
        return member is not None and member.role is MemberRole.VOTER

    def append(self, entry: Entry) -> None:
        """Take note of an entry that is appended: what it changes is in force from here on."""
        if entry.kind in _PLAIN:
            return
        before = self._history[-1]
        invariant(entry.index > before.index, f"mark {entry.index} behind {before.index}")
        membership = membership_of(entry) or before.membership
        epoch = epoch_of_term(entry.term) if entry.kind is EntryKind.EPOCH else before.epoch
        self._history.append(_Mark(entry.index, membership, epoch, entry.kind is EntryKind.SEAL))
        if membership is not before.membership:
            self.quorum = Quorum(membership)

    def truncate(self, index: int) -> bool:
        """Roll back what the entries from `index` on had put in force. Returns whether that changed anything."""
        if self.latest_index < index or len(self._history) == 1:
            return False
        while len(self._history) > 1 and self.latest_index >= index:
            self._history.pop()
        self.quorum = Quorum(self.latest)
        return True

    def seal(self, index: int) -> None:
        """The entry at `index`, behind which nothing is known to be in force, is a seal: a snapshot says so."""
        self._history[-1] = self._history[-1]._replace(index=index, sealed=True)

    def prune(self, applied: int) -> None:
        """Forget what an applied membership has replaced."""
        while len(self._history) > 1 and self._history[1].index <= applied:
            del self._history[0]

    def restore(self, membership: Membership, index: int, epoch: int) -> None:
        """Start again from a snapshot."""
        self._history = [_Mark(index, membership, epoch, sealed=False)]
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
