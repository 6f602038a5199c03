"""What a replica takes in from the changelog: entries that are committed already, whoever hands them on.

Theory of operation. A replica stands outside the Raft group: it neither votes nor is counted, and no leader knows how
far it is. It copies the group's *committed* prefix, from a voter or from another replica, into a log of its own, with
the terms that the entries have there. A committed entry is never replaced (Raft, section 5.4, State Machine Safety), so
what it holds needs no consistency check beyond this: where the two logs overlap they are equal. If they are not, one
of them belongs to a history that a failover has ended.

The entries then pass through the ordinary Ready cycle: fsynced, then applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvnode.base.errors import InvalidRequest
from kvnode.codec.entry import Entry
from kvnode.codec.epoch import epoch_of_term
from kvnode.raft.core import Core


class Committed(NamedTuple):
    """A piece of the changelog. Without entries it says who leads."""

    term: int  # of the group, as far as the source knows
    leader_id: int  # 0 = the source knows none
    previous_index: int
    previous_term: int
    entries: Sequence[Entry]


def receive(core: Core, piece: Committed) -> bool:
    """Append what is new in a piece.

    Returns:
        False when there is a gap between the own log and the piece: the stream must begin anew at the own end.

    Raises:
        InvalidRequest: CHANGELOG_FORKED, the source's committed entries are not what this node knows to be committed;
            EPOCH_ENDED, the source is in an earlier epoch. Nothing was changed.
    """
    _check_epoch(core, piece)
    _follow_leader(core, piece)
    log = core.log
    if log.snapshot is not None:
        # One is being installed. What lies beyond it must come again: the source takes what it has sent for received.
        return not piece.entries or piece.entries[-1].index <= log.snapshot.index
    _check_overlap(core, piece.previous_index, piece.previous_term)
    if log.term(piece.previous_index) != piece.previous_term and piece.previous_index >= log.commit:
        return False  # beyond the own end, or in an own tail that nobody else has
    for entry in piece.entries:
        if entry.index <= log.last_index:
            _check_overlap(core, entry.index, entry.term)
    for entry in piece.entries:
        if entry.index <= log.last_index and log.term(entry.index) not in (None, entry.term):
            # A tail that was never committed: of a deposed leader, or behind a seal.
            log.truncate(entry.index)
            core.unmark(entry.index)
        if entry.index > log.last_index:
            log.append(entry)
            core.mark(entry)
    log.commit_to(piece.previous_index + len(piece.entries))
    return True


def _follow_leader(core: Core, piece: Committed) -> None:
    """A term is adopted also while nobody is known to lead it: entries of it may follow."""
    leader_id = piece.leader_id if piece.leader_id != core.node_id else 0
    if piece.term > core.term:
        core.become_follower(piece.term, leader_id, f"the group is in term {piece.term}")
    if leader_id and piece.term == core.term:
        core.heard_from_leader(leader_id)


def _check_epoch(core: Core, piece: Committed) -> None:
    if epoch_of_term(piece.term) < core.epoch:
        raise InvalidRequest(
            "EPOCH_ENDED",
            f"the source is in epoch {epoch_of_term(piece.term) or 1}, which ended: this node knows of {core.epoch}",
            phase="changelog",
        )


def _check_overlap(core: Core, index: int, term: int) -> None:
    own = core.log.term(index) if index <= core.log.commit else None
    if own is not None and own != term:
        raise InvalidRequest(
            "CHANGELOG_FORKED",
            f"entry {index} is of term {own} here and of term {term} at the source: one of the two nodes belongs to a "
            "history that a failover has ended; give this node an empty data directory and add it anew",
            phase="changelog",
        )
