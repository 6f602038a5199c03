"""The leader: it takes proposals, keeps its authority confirmed, and hands it over.

Theory of operation. A new leader appends a no-op of its own term; when that is committed, so is all before it,
and reads and membership changes may begin (Raft, sections 5.4.2 and 8; thesis 6.4, 4.1). It leads as long as a
majority of the voters was heard within an election timeout (check-quorum, thesis 6.2), so that a leader cut off
knows it and its clients go elsewhere.

Handing over (thesis 3.10): proposals stop, the target is brought up to date, then told to campaign at once; what
has not happened within an election timeout is given up. A leader that is removed manages the group without
counting itself until the removal is committed (thesis 4.2.2), then hands over to the most advanced voter.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.base.errors import InvalidRequest, NotLeader, Unavailable
from kvnode.base.invariant import invariant
from kvnode.base.limits import MAX_PROMOTION_LAG_COUNT
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import MemberRole, Membership, encode_membership
from kvnode.raft import replication
from kvnode.raft.configuration import check_change
from kvnode.raft.core import Core
from kvnode.raft.leadership import Leadership
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.progress import PeerState, Progress
from kvnode.raft.types import Role


def become_leader(core: Core) -> None:
    """Take up leadership of the term that this node was elected in."""
    invariant(core.role is Role.CANDIDATE, "only a candidate can become the leader")
    log = core.log
    core.role = Role.LEADER
    core.leader_id = core.node_id
    core.votes = {}
    core.rounds.void_through = core.rounds.sent
    lead = core.lead = Leadership(log.last_index + 1)
    sync_peers(core, lead)
    append(core, lead, EntryKind.NOOP, b"")
    replication.start_round(core, lead)


def require_lead(core: Core) -> Leadership:
    """The leadership, or NotLeader naming the leader that is known."""
    if core.lead is None:
        raise NotLeader(leader_id=core.leader_id)
    return core.lead


def sync_peers(core: Core, lead: Leadership) -> None:
    """Follow a change of membership: progress for newcomers, a farewell for those who left."""
    members = {m.node_id for m in core.history.latest.members if m.role is not MemberRole.REPLICA}
    for node_id in members - lead.peers.keys() - {core.node_id}:
        lead.peers[node_id] = Progress(node_id, core.log.last_index + 1, lead.ticks)
    for peer in lead.peers.values():
        peer.leaving_index = 0 if peer.node_id in members else core.history.latest_index


def append(core: Core, lead: Leadership, kind: EntryKind, data: bytes) -> Entry:
    """Append an entry of this term."""
    entry = Entry(core.term, core.log.last_index + 1, kind, data)
    core.log.append(entry)
    lead.appended(entry.index, len(data))
    return entry


def require_proposals_open(core: Core) -> Leadership:
    """The leadership, or why it takes nothing in: NotLeader, LEADERSHIP_TRANSFER, PRIMARY_MOVING."""
    lead = require_lead(core)
    if core.history.sealed_at:
        raise Unavailable("the primary is moving to another region; send it again", code="PRIMARY_MOVING")
    if lead.transferring:
        raise Unavailable(
            f"leadership is being handed over to node {lead.transferring}; send the operation again",
            code="LEADERSHIP_TRANSFER",
        )
    return lead


def propose(core: Core, data: bytes) -> int:
    """Append a DATA entry; see Raft.propose."""
    lead = require_proposals_open(core)
    size = lead.uncommitted_bytes
    if size and size + len(data) > core.config.max_uncommitted_bytes:
        raise Unavailable(
            f"{size} bytes wait to be committed; send the operation again when the voters have caught up",
            code="UNCOMMITTED_TAIL_FULL",
        )
    return append(core, lead, EntryKind.DATA, data).index


def propose_membership(core: Core, new: Membership) -> int:
    """Append a MEMBERSHIP entry, in force at once; see Raft.propose_membership."""
    lead = require_proposals_open(core)
    if not replication.own_term_committed(core):
        raise Unavailable("the leader is new and has committed nothing yet; try again", code="LEADER_NOT_READY")
    if core.history.latest_index > core.log.commit:
        raise InvalidRequest(
            "MEMBERSHIP_CHANGE_IN_PROGRESS",
            f"the change at index {core.history.latest_index} is not committed yet; wait for it",
        )
    promoted = check_change(core.history.latest, new)
    if promoted:
        _check_caught_up(core, lead, promoted)
    entry = append(core, lead, EntryKind.MEMBERSHIP, encode_membership(new))
    core.mark(entry)
    sync_peers(core, lead)
    after_commit_attempt(core, lead)
    return entry.index


def _check_caught_up(core: Core, lead: Leadership, node_id: int) -> None:
    """A voter that is far behind could hold up every commit until it has caught up (thesis 4.2.1)."""
    peer = lead.peers.get(node_id)
    behind = core.log.commit - (peer.match if peer else 0)
    silent = peer is None or lead.ticks - peer.contact_tick > core.config.election_ticks
    if peer is None or silent or peer.state is not PeerState.REPLICATE or behind > MAX_PROMOTION_LAG_COUNT:
        raise InvalidRequest(
            "LEARNER_NOT_CAUGHT_UP",
            f"learner {node_id} is {behind} entries behind{' and silent' if silent else ''}; wait until it caught up",
        )


def after_commit_attempt(core: Core, lead: Leadership) -> None:
    """Raise the commit index if the rule allows, and step down when that has removed this node."""
    if replication.update_commit(core, lead):
        _on_commit(core, lead)


def _on_commit(core: Core, lead: Leadership) -> None:
    if not core.is_voter(core.node_id) and core.history.latest_index <= core.log.commit:
        _abdicate(core, lead)


def _abdicate(core: Core, lead: Leadership) -> None:
    """This node's removal is committed: say so, and let the most advanced voter campaign."""
    for peer in lead.peers.values():
        replication.send_commit(core, peer)
    heirs = [lead.peers[voter_id] for voter_id in core.history.quorum.voter_ids]
    heir = max(heirs, key=lambda peer: (peer.match, -peer.node_id))
    _send_timeout_now(core, heir.node_id)
    core.become_follower(core.term, 0, "this node is no longer a voter")


def _send_timeout_now(core: Core, node_id: int) -> None:
    core.send(Message(MessageKind.TIMEOUT_NOW, node_id, core.node_id, core.term))


def transfer(core: Core, to: int) -> None:
    """Begin to hand leadership over; see Raft.transfer_leadership."""
    lead = require_lead(core)
    if to in (core.node_id, lead.transferring):
        return
    if not core.is_voter(to):
        raise InvalidRequest("TRANSFER_TARGET_INVALID", f"node {to} is not a voter; leadership cannot go to it")
    lead.transferring = to
    lead.lease_given_up = True
    lead.transfer_ticks = 0
    _continue_transfer(core, lead)


def _continue_transfer(core: Core, lead: Leadership) -> None:
    """Tell the target to campaign once it holds the whole log."""
    if lead.peers[lead.transferring].match == core.log.last_index:
        _send_timeout_now(core, lead.transferring)


def tick(core: Core) -> None:
    """One tick: check-quorum, the transfer's time limit, the heartbeat."""
    lead = core.lead
    if lead is None:
        return
    lead.ticks += 1
    if lead.transferring:
        lead.transfer_ticks += 1
        if lead.transfer_ticks >= core.config.election_ticks or not core.is_voter(lead.transferring):
            lead.transferring = 0
    if not _has_quorum_contact(core, lead):
        core.become_follower(core.term, 0, "no majority of the voters was heard within an election timeout")
        return
    lead.heartbeat_elapsed += 1
    if lead.heartbeat_elapsed >= core.config.heartbeat_ticks:
        lead.heartbeat_elapsed = 0
        replication.find_stalled(core, lead)
        replication.start_round(core, lead)


def _has_quorum_contact(core: Core, lead: Leadership) -> bool:
    """Whether a majority of the voters, itself included, was heard within an election timeout."""
    since = lead.ticks - core.config.election_ticks
    quorum = core.history.quorum
    heard = sum(voter_id == core.node_id or lead.peers[voter_id].contact_tick >= since for voter_id in quorum.voter_ids)
    return heard >= quorum.majority


def clock_gap(core: Core, lead: Leadership) -> None:
    """The process was frozen: believe no answer to what was sent before, and ask again at once."""
    core.rounds.void()
    lead.lease_void = True
    replication.start_round(core, lead)


def on_append_response(core: Core, message: Message) -> None:
    """A peer has persisted entries, or has none that match."""
    lead = core.lead
    if lead is None:
        return
    if replication.on_append_response(core, lead, message):
        _on_commit(core, lead)
    if lead is core.lead and lead.transferring == message.sender:
        _continue_transfer(core, lead)


def on_heartbeat_response(core: Core, message: Message) -> None:
    """A peer still knows this node as the leader of its term."""
    lead = core.lead
    peer = lead.peers.get(message.sender) if lead is not None else None
    if lead is None or peer is None:
        return
    peer.contact_tick = lead.ticks
    if peer.stalled:
        peer.stalled, peer.nudge = False, True
    if message.round > peer.acked_round:
        invariant(message.round <= core.rounds.sent, f"node {peer.node_id} answers a round that was never sent")
        peer.acked_round = message.round
        peer.hold_ms = message.hold_ms
        replication.confirm_rounds(core, lead)


HANDLERS: dict[MessageKind, Callable[[Core, Message], None]] = {
    MessageKind.APPEND_RESPONSE: on_append_response,
    MessageKind.HEARTBEAT_RESPONSE: on_heartbeat_response,
}
