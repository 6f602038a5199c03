"""What a leader's messages do to everybody else.

A message of this term's leader makes a follower of a (pre-)candidate. It is heeded also when its sender is not in
our membership: it was elected by a majority of one that we have not seen yet (thesis 4.1), and a node that joins
has none at all.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.codec.epoch import epoch_of_term
from kvnode.codec.membership import decode_membership
from kvnode.raft import election, holds
from kvnode.raft.core import Core
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.types import SnapshotMeta


def _acknowledge(core: Core, message: Message, index: int) -> None:
    core.send_after_persist(Message(MessageKind.APPEND_RESPONSE, message.sender, core.node_id, core.term, index=index))


def on_append(core: Core, message: Message) -> None:
    """Append what follows an entry that we have, or say where the logs may meet."""
    core.heard_from_leader(message.sender)
    entries = message.entries
    log = core.log
    last = message.index + len(entries)
    if entries and (entries[0].index != message.index + 1 or entries[-1].index != last):
        return  # no leader sends a gap
    if message.index < log.commit:
        # A late duplicate, or one that reaches beyond the commit index and will come again from there.
        _acknowledge(core, message, log.commit)
        return
    changed_from = log.try_append(message.index, message.log_term, entries)
    if changed_from is None:
        _reject(core, message)
        return
    _follow_memberships(core, message, changed_from)
    log.commit_to(min(message.commit, last))
    _acknowledge(core, message, last)


def _follow_memberships(core: Core, message: Message, changed_from: int) -> None:
    """Roll memberships back that were truncated, and put new ones in force."""
    core.unmark(changed_from)
    for entry in message.entries:
        if entry.index >= changed_from:
            core.mark(entry)


def _reject(core: Core, message: Message) -> None:
    hint, hint_term = core.log.find_conflict_by_term(message.index, message.log_term)
    core.send_after_persist(
        Message(
            MessageKind.APPEND_RESPONSE,
            message.sender,
            core.node_id,
            core.term,
            index=message.index,
            reject=True,
            hint_index=hint,
            hint_term=hint_term,
        )
    )


def on_heartbeat(core: Core, message: Message) -> None:
    """The leader lives; its commit index is cut to what it knows us to hold. Round 0 wants no answer.

    A log that does not reach so far has lost what it had acknowledged: its directory was put back from an old copy, or
    its disk forgot. Others count on what is gone, and a vote of this node may elect one who lacks it too. The leader
    cannot make it good: it takes our rejections for old ones. So nothing is answered, and the node ends itself.
    """
    core.heard_from_leader(message.sender)
    if message.commit > core.log.last_index and not core.fenced:
        core.lost_through = max(core.lost_through, message.commit)
        return
    core.log.commit_to(message.commit)
    if message.round:
        hold_ms = holds.grant(core) if message.hold_ms else 0
        kind, to = MessageKind.HEARTBEAT_RESPONSE, message.sender
        core.send(Message(kind, to, core.node_id, core.term, round=message.round, hold_ms=hold_ms))


def on_snapshot(core: Core, message: Message) -> None:
    """A verified snapshot lies ready; take it unless we have what it holds. Either way the leader is told.

    It is taken when the next Ready names it; otherwise the node throws the file away.
    """
    core.heard_from_leader(message.sender)
    log = core.log
    if message.index > log.commit:
        if log.term(message.index) == message.log_term:
            log.commit_to(message.index)  # we hold all of it, and now know that it is committed
        else:
            membership = decode_membership(message.context)
            log.restore(SnapshotMeta(message.index, message.log_term, membership))
            core.history.restore(membership, message.index, epoch_of_term(message.log_term))
            log.ceiling = 0
    _acknowledge(core, message, log.commit)


def on_timeout_now(core: Core, message: Message) -> None:
    """The leader hands over to us: campaign at once, without pre-vote."""
    if message.sender == core.leader_id and core.may_campaign():
        election.campaign_for_real(core, holds.TRANSFER)


LEADER_MESSAGE_HANDLERS: dict[MessageKind, Callable[[Core, Message], None]] = {
    MessageKind.APPEND: on_append,
    MessageKind.HEARTBEAT: on_heartbeat,
    MessageKind.SNAPSHOT: on_snapshot,
}
FOLLOWER_HANDLERS: dict[MessageKind, Callable[[Core, Message], None]] = {
    **LEADER_MESSAGE_HANDLERS,
    MessageKind.TIMEOUT_NOW: on_timeout_now,
}
