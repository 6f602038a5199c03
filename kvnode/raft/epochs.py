"""How a node leaves an epoch for the next: the promise, the tail that it is given, and the entry that begins it.

Theory of operation. A failover cuts the log at its fork point and begins an epoch behind it, with other voters. What
Raft does inside an epoch is untouched, because terms tell epochs apart (codec/epoch.py):

- A *promise* of epoch E (a term for the epochs: one failover each, durable) ends the node's part in all before: from
  then on `step` passes over every message of an earlier epoch, so it grants no vote and acknowledges nothing there, and
  it does not campaign. It answers none of those messages either: only what a failover says, or an epoch that has begun,
  ends an epoch for others.
- Each new voter is given the tail up to the fork point, compared by index and term as a leader's appends are.
- `begin` then appends the epoch's first entry, the same bytes at the same index on each new voter. It is as if a
  leader of the epoch's first term had sent it: that term is nobody else's, and all elections of the new voters are in
  later terms. From here on they are an ordinary group: the entry is committed when a leader's own no-op behind it is.

A *seal* ends an epoch from inside. It is committed like any entry; from its append on the leader takes nothing more in,
and no entry behind it is ever committed in its epoch (RaftLog.ceiling), so that what the next one begins with is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.base.errors import InvalidRequest, Unavailable
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import decode_epoch_start, epoch_of_term
from kvnode.raft import leader, replication
from kvnode.raft.core import Core
from kvnode.raft.messages import Message, MessageKind


def admits(core: Core, message: Message) -> bool:
    """Whether a message of another epoch than the node's is to be looked at.

    A node that has never been in any is told of its first one by the leader. A snapshot comes only to whom asked for
    it, and brings the epoch along.
    """
    if epoch_of_term(message.term) < core.epoch:
        return False
    return core.term == 0 or message.kind is MessageKind.SNAPSHOT


def promise(core: Core, epoch: int, ballot: int, *, has_begun: bool) -> None:
    """Promise `epoch` to the failover `ballot`; see Raft.promise."""
    held = (core.promised_epoch, core.promised_ballot)
    if (epoch, ballot) == held:
        return
    is_open = has_begun or core.promised_epoch < epoch  # heard of by a term alone, it is promised to nobody yet
    is_free = epoch > core.epoch or (epoch == core.epoch and core.fenced and is_open)
    if not is_free:
        raise InvalidRequest(
            "EPOCH_PROMISED",
            f"this node has promised epoch {core.epoch} to another failover, or is in it: epoch {epoch} is not free",
            phase="failover",
        )
    core.promised_epoch, core.promised_ballot = epoch, ballot
    core.messages.clear()
    core.after_persist.clear()
    core.become_follower(core.term, 0, f"epoch {epoch} is about to begin")


def take_tail(core: Core, previous_index: int, previous_term: int, entries: Sequence[Entry]) -> bool:
    """Take in what the most advanced node holds behind (previous_index, previous_term), in the place of what differs.

    Returns:
        False when this node's log has no such entry.

    Raises:
        InvalidRequest: FAILOVER_FORKED, this node has committed something else; nothing was changed.
    """
    log = core.log
    _require_open(core)
    if log.term(previous_index) != previous_term:
        return False
    first_new = next((e.index for e in entries if log.term(e.index) != e.term), None)
    if first_new is None:
        return True
    _check_uncommitted(core, first_new)
    if entries[-1].term > core.term:  # no log holds an entry of a term that its hard state has not reached
        core.become_follower(entries[-1].term, 0, "the most advanced node was in a later term")
    log.try_append(previous_index, previous_term, entries)
    core.unmark(first_new)
    for entry in entries:
        if entry.index >= first_new:
            core.mark(entry)
    return True


def begin(core: Core, entry: Entry) -> None:
    """Append the first entry of the promised epoch; see Raft.begin_epoch."""
    log = core.log
    start = decode_epoch_start(entry.data)
    if log.term(entry.index) == entry.term:
        return  # it is here already, by this way or by a leader's append
    if (core.promised_epoch, core.promised_ballot) != (start.epoch, start.ballot):
        raise InvalidRequest(
            "FAILOVER_SUPERSEDED",
            f"this node has promised epoch {core.promised_epoch} to another failover than the one that begins "
            f"{start.epoch}",
            phase="failover",
        )
    _require_open(core)
    if log.last_index < entry.index - 1:
        raise InvalidRequest(
            "FAILOVER_TAIL_MISSING",
            f"the epoch begins at {entry.index}, and this node's log ends at {log.last_index}",
            phase="failover",
        )
    if log.last_index >= entry.index:
        truncate(core, entry.index)
    core.become_follower(max(core.term, entry.term), 0, f"epoch {start.epoch} begins")
    core.hold_ticks = 0  # the leader of the old epoch has sealed, or its voters' holds were waited for (holds.py)
    log.append(entry)
    core.mark(entry)


def truncate(core: Core, index: int) -> None:
    """Drop the entries from `index` on, which a later epoch has not.

    Raises InvalidRequest: FAILOVER_FORKED, one of them is committed here.
    """
    if index <= core.log.last_index:
        _check_uncommitted(core, index)
        core.log.truncate(index)
        core.unmark(index)


def _require_open(core: Core) -> None:
    if core.log.snapshot is not None:
        raise Unavailable("a snapshot is being installed; try again", code="SNAPSHOT_UNDER_WAY", phase="failover")
    if not core.fenced:
        raise InvalidRequest("FAILOVER_SUPERSEDED", f"this node is in epoch {core.epoch} already", phase="failover")


def _check_uncommitted(core: Core, index: int) -> None:
    if index <= core.log.commit:
        raise InvalidRequest(
            "FAILOVER_FORKED",
            f"entry {index} is committed here (up to {core.log.commit}) and is another one there: this node belongs to "
            "a history that a failover has ended",
            phase="failover",
        )


def propose_seal(core: Core, data: bytes) -> int:
    """End the epoch with a SEAL entry; see Raft.propose_seal."""
    lead = leader.require_proposals_open(core)
    if not replication.own_term_committed(core):
        raise Unavailable("the leader is new and has committed nothing yet; try again", code="LEADER_NOT_READY")
    if core.history.latest_index > core.log.commit:
        raise InvalidRequest(
            "MEMBERSHIP_CHANGE_IN_PROGRESS",
            f"the change at index {core.history.latest_index} is not committed yet; wait for it",
        )
    entry = leader.append(core, lead, EntryKind.SEAL, data)
    core.mark(entry)
    leader.after_commit_attempt(core, lead)
    return entry.index
