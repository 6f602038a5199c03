"""How a leader's entries reach its peers and become committed.

Theory of operation. Nothing is sent when an entry is proposed: flush(), called for each Ready, sends each peer
what flow control allows, so that all that was proposed since the last one travels in one append. An append
carries the commit index along. When the commit index has moved and there is no append to carry it, a heartbeat
of round 0 does, which nobody answers: at once when nothing is in flight (eventual reads are fresh), or, if
config.holds_commit_notices, when the node calls for it; else the append of the next batch, the commit of the last one,
or the periodic heartbeat brings it. So a busy leader sends each follower one message a batch.

Lost appends (a broken connection) are found by the periodic heartbeat: a peer that answers but whose match does
not move is nudged with an empty append, whose rejection or acceptance tells where the logs meet. So is a peer in
PROBE that holds the whole log, since no entry may come for long that would bring it back to REPLICATE.
"""

from __future__ import annotations

from kvnode.base.invariant import invariant
from kvnode.codec.entry import Entry
from kvnode.codec.membership import encode_membership
from kvnode.raft.core import Core
from kvnode.raft.leadership import Leadership
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.progress import PeerState, Progress

_Slices = dict[int, tuple[tuple[Entry, ...], int]]  # first index -> entries and their bytes, shared by the peers


def own_term_committed(core: Core) -> bool:
    """Whether this leader's own term has a committed entry."""
    lead = core.lead
    return lead is not None and core.log.commit >= lead.first_index


def start_round(core: Core, lead: Leadership) -> None:
    """Send a heartbeat round; the waiting reads join it once the own term has a commit."""
    log = core.log
    number = core.rounds.start(log.commit, take_reads=own_term_committed(core))
    for peer in lead.peers.values():
        _send_heartbeat(core, peer, number)
    confirm_rounds(core, lead)


def _send_heartbeat(core: Core, peer: Progress, number: int) -> None:
    # The commit index is cut to what the peer is known to hold: beyond, its log may still differ from ours.
    commit = min(core.log.commit, peer.match)
    peer.sent_commit = max(peer.sent_commit, commit)
    core.messages.append(
        Message(
            MessageKind.HEARTBEAT,
            peer.node_id,
            core.node_id,
            core.term,
            commit=commit,
            round=number,
            hold_ms=1 if core.config.asks_holds and number else 0,
        )
    )


def send_commit(core: Core, peer: Progress) -> None:
    """Tell a peer the commit index by a heartbeat that it does not answer."""
    _send_heartbeat(core, peer, 0)


def confirm_rounds(core: Core, lead: Leadership) -> None:
    """Serve the reads of every round that a quorum has answered."""
    own = core.rounds.sent
    peers = lead.peers
    answered = [
        own if voter_id == core.node_id else peers[voter_id].acked_round for voter_id in core.history.quorum.voter_ids
    ]
    acknowledged = sorted(answered)[(len(answered) - 1) // 2]
    if acknowledged > core.rounds.void_through:
        lead.lease_void = False
        if acknowledged > core.rounds.acknowledged:
            core.read_states.extend(core.rounds.confirm(acknowledged))


def _wants_read_round(core: Core) -> bool:
    return bool(core.rounds.waiting) and core.rounds.idle and own_term_committed(core)


def _wants_append(core: Core, peer: Progress, last_index: int) -> bool:
    return peer.nudge or (peer.next <= last_index and peer.can_send(core.config))


def _wants_commit_notice(core: Core, lead: Leadership, peer: Progress, last_index: int) -> bool:
    """Whether to tell the peer the commit index by itself; see the head of this file."""
    if core.config.holds_commit_notices and not lead.notices_due and not peer.leaving_index:
        return False
    return _lacks_commit(core, peer, last_index)


def holds_notice(core: Core, lead: Leadership) -> bool:
    """Whether release_notices() would send anything."""
    last_index = core.log.last_index
    return not lead.notices_due and any(_lacks_commit(core, peer, last_index) for peer in lead.peers.values())


def _lacks_commit(core: Core, peer: Progress, last_index: int) -> bool:
    commit = core.log.commit
    return (
        (commit == last_index or peer.leaving_index > 0)
        and peer.sent_commit < commit
        and peer.match > peer.sent_commit
        and peer.state is PeerState.REPLICATE
    )


def needs_flush(core: Core, lead: Leadership) -> bool:
    """Whether flush() would send anything."""
    if _wants_read_round(core):
        return True
    last_index = core.log.last_index
    return any(
        _wants_append(core, peer, last_index) or _wants_commit_notice(core, lead, peer, last_index)
        for peer in lead.peers.values()
    )


def flush(core: Core, lead: Leadership) -> None:
    """Send what is due: entries within flow control, a read round, the commit index."""
    last_index = core.log.last_index
    slices: _Slices = {}
    left: list[int] = []
    for peer in lead.peers.values():
        if peer.nudge:
            peer.nudge = False
            _send_append(core, peer, (), 0)
        while peer.next <= last_index and peer.can_send(core.config):
            _send_entries(core, peer, last_index, slices)
        if _wants_commit_notice(core, lead, peer, last_index):
            send_commit(core, peer)
        if peer.leaving_index and _has_left(core, lead, peer):
            left.append(peer.node_id)
    lead.notices_due = False
    for node_id in left:
        del lead.peers[node_id]
    if _wants_read_round(core):
        start_round(core, lead)


def _has_left(core: Core, lead: Leadership, peer: Progress) -> bool:
    """Whether a removed peer knows it, or has been silent for too long to be told."""
    return peer.sent_commit >= peer.leaving_index or lead.ticks - peer.contact_tick > core.config.election_ticks


def _send_entries(core: Core, peer: Progress, last_index: int, slices: _Slices) -> None:
    low = peer.next
    found = slices.get(low)
    if found is None:
        entries = tuple(core.log.entries(low, last_index + 1, core.config.max_append_bytes))
        found = slices[low] = (entries, sum(len(entry.data) for entry in entries))
    if not found[0]:
        _send_snapshot(core, peer)
        return
    _send_append(core, peer, *found)


def _send_append(core: Core, peer: Progress, entries: tuple[Entry, ...], size_bytes: int) -> None:
    log = core.log
    previous = peer.next - 1
    previous_term = log.term(previous)
    if previous_term is None:
        _send_snapshot(core, peer)
        return
    last = previous + len(entries)
    core.messages.append(
        Message(
            MessageKind.APPEND,
            peer.node_id,
            core.node_id,
            core.term,
            log_term=previous_term,
            index=previous,
            commit=log.commit,
            entries=entries,
        )
    )
    peer.sent(last, len(entries), size_bytes)
    peer.sent_commit = max(peer.sent_commit, min(log.commit, last))


def _send_snapshot(core: Core, peer: Progress) -> None:
    """Name a snapshot at the applied index; the node may ship another that the log continues."""
    log = core.log
    term = log.term(log.applied)
    invariant(term is not None, f"the log does not know the term of the applied index {log.applied}")
    peer.become_snapshot(log.applied)
    membership = encode_membership(core.history.at(log.applied))
    core.messages.append(
        Message(
            MessageKind.SNAPSHOT,
            peer.node_id,
            core.node_id,
            core.term,
            log_term=term or 0,
            index=log.applied,
            commit=log.commit,
            context=membership,
        )
    )


def update_commit(core: Core, lead: Leadership) -> bool:
    """Raise the commit index by the rule. Entries of earlier terms are committed only through one of our own
    (Raft, section 5.4.2): an index below this leadership's first is never committed by counting."""
    log = core.log
    peers = lead.peers
    quorum = core.history.quorum
    index = quorum.commit_index(
        [log.stable if voter_id == core.node_id else peers[voter_id].match for voter_id in quorum.voter_ids]
    )
    moved = index >= lead.first_index and log.commit_to(index)
    lead.settled(min(log.commit, log.stable))
    return moved


def find_stalled(core: Core, lead: Leadership) -> None:
    """At a heartbeat: mark the peers whose match has stood still since the last one, though something is unacknowledged
    or they are in PROBE. An answer gets them nudged."""
    last_index = core.log.last_index
    for peer in lead.peers.values():
        has_cause = peer.match < last_index or peer.state is PeerState.PROBE
        stands_still = peer.match == peer.match_at_heartbeat
        peer.stalled = has_cause and stands_still and peer.state is not PeerState.SNAPSHOT
        peer.match_at_heartbeat = peer.match


def on_append_response(core: Core, lead: Leadership, message: Message) -> bool:
    """Take note of an acknowledgement or rejection. Returns whether the commit index moved."""
    peer = lead.peers.get(message.sender)
    if peer is None:
        return False
    peer.contact_tick = lead.ticks
    if message.reject:
        _on_rejection(core, peer, message)
        return False
    invariant(message.index <= core.log.last_index, f"node {peer.node_id} acknowledges beyond the leader's log")
    advanced = peer.acknowledge(message.index)
    if peer.state is PeerState.PROBE:
        if advanced or peer.match == message.index:
            peer.become_replicate()
    elif peer.state is PeerState.SNAPSHOT and peer.match + 1 >= core.log.first_index():
        peer.become_replicate()
    return advanced and core.is_voter(peer.node_id) and update_commit(core, lead)


def _on_rejection(core: Core, peer: Progress, message: Message) -> None:
    hint = message.hint_index
    if message.hint_term > 0:
        hint, _ = core.log.find_conflict_by_term(hint, message.hint_term)
    peer.reject(message.index, hint)
