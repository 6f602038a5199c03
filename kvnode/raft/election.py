"""Elections: pre-vote, vote, and who refuses.

Theory of operation. A follower that has not heard a leader for its wait asks for pre-votes (thesis 9.6): "would
you vote for me in the next term?" Nobody's term moves by that, so a node that was cut off cannot disturb a
working group when it comes back. With a majority of pre-votes it raises its term, votes for itself and asks for
votes. Its own vote counts when it is on disk, like everybody's.

Votes are sticky (thesis 4.2.3): who has heard a leader within an election timeout, or leads, does not even answer,
unless the candidate was told by the leader to campaign (context "transfer"). Held votes, on which a leader lease
stands, are stricter (holds.py). A vote goes to one candidate a term whose log is at least as up to date (Raft, section
5.4.1).

Strangers. A candidate outside our membership may be a node that was removed and does not know it, or one that
was added and we do not know it (thesis 4.1); its log tells. With one at least as up to date as ours it is heard;
else it is ignored altogether, its term included. A learner votes when asked: it may have been promoted by an
entry it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.raft import holds, leader
from kvnode.raft.core import Core
from kvnode.raft.holds import TRANSFER
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.types import Role


def tick(core: Core) -> None:
    """One tick of a node that does not lead."""
    core.election_elapsed += 1
    if core.election_elapsed >= core.config.election_ticks:
        core.heard_leader = False
    if core.election_elapsed < core.election_wait or core.hold_ticks:
        return
    if core.may_campaign():
        campaign(core)
    elif core.role is Role.FOLLOWER:
        core.leader_id = 0  # silent for too long to send anybody there
    else:
        core.become_follower(core.term, 0, "this node may not campaign")


def campaign(core: Core) -> None:
    """Ask for pre-votes."""
    core.role = Role.PRE_CANDIDATE
    core.leader_id = 0
    core.heard_leader = False
    core.votes = {core.node_id: True}
    core.restart_retry_wait()
    _ask(core, MessageKind.PRE_VOTE, core.term + 1, b"")
    _count(core)


def campaign_for_real(core: Core, context: bytes = b"") -> None:
    """Raise the term and ask for votes; `context` is TRANSFER when the leader asked for it."""
    core.role = Role.CANDIDATE
    core.leader_id = 0
    core.heard_leader = False
    core.term += 1
    core.vote = core.node_id
    core.votes = {}
    core.restart_retry_wait()
    _ask(core, MessageKind.VOTE, core.term, context)


def _ask(core: Core, kind: MessageKind, term: int, context: bytes) -> None:
    log = core.log
    for voter_id in core.history.quorum.voter_ids:
        if voter_id != core.node_id:
            core.send_after_persist(
                Message(
                    kind,
                    voter_id,
                    core.node_id,
                    term,
                    log_term=log.last_term,
                    index=log.last_index,
                    context=context,
                )
            )


def count_own_vote(core: Core) -> None:
    """This node's vote for itself is on disk."""
    core.votes[core.node_id] = True
    _count(core)


def _count(core: Core) -> None:
    won = core.history.quorum.tally(core.votes)
    if won is None:
        return
    if not won:
        core.become_follower(core.term, 0, "a majority refused its vote")
    elif core.role is Role.PRE_CANDIDATE:
        campaign_for_real(core)
    else:
        leader.become_leader(core)


def on_vote_response(core: Core, message: Message) -> None:
    """A voter has answered; the first answer counts."""
    core.votes.setdefault(message.sender, not message.reject)
    _count(core)


def on_pre_vote_response(core: Core, message: Message) -> None:
    """As on_vote_response, but a grant that was asked for in an earlier term is worth nothing."""
    if message.reject or message.term == core.term + 1:
        on_vote_response(core, message)


def is_sticky(core: Core) -> bool:
    """Whether this node holds on to a leader and hears no candidate."""
    if core.lead is not None:
        return not core.lead.lease_void
    return core.heard_leader


def heeds_candidate(core: Core, message: Message) -> bool:
    """Whether a (pre-)vote request of any term is to be looked at at all."""
    if holds.refuses(core, message):
        return False
    if message.context != TRANSFER and message.term > core.term and is_sticky(core):
        return False
    stranger = core.history.latest.get(message.sender) is None
    return not stranger or core.log.is_up_to_date(message.index, message.log_term)


def on_vote(core: Core, message: Message) -> None:
    """A candidate asks for the vote of this term."""
    free = core.vote == message.sender or (core.vote == 0 and core.leader_id == 0)
    granted = free and core.log.is_up_to_date(message.index, message.log_term)
    if granted:
        core.vote = message.sender
        core.election_elapsed = 0
    _answer(core, message, MessageKind.VOTE_RESPONSE, granted)


def on_pre_vote(core: Core, message: Message) -> None:
    """A node asks whether it would get a vote in a term above ours, or in ours."""
    free = message.term > core.term or core.vote == message.sender or (core.vote == 0 and core.leader_id == 0)
    granted = free and core.log.is_up_to_date(message.index, message.log_term)
    _answer(core, message, MessageKind.PRE_VOTE_RESPONSE, granted)


def _answer(core: Core, message: Message, kind: MessageKind, granted: bool) -> None:
    # A granted pre-vote names the term it was asked for; a refusal names ours, to bring the asker up to date.
    term = message.term if granted else core.term
    core.send_after_persist(Message(kind, message.sender, core.node_id, term, reject=not granted))


PRE_CANDIDATE_HANDLERS: dict[MessageKind, Callable[[Core, Message], None]] = {
    MessageKind.PRE_VOTE_RESPONSE: on_pre_vote_response,
}
CANDIDATE_HANDLERS: dict[MessageKind, Callable[[Core, Message], None]] = {
    MessageKind.VOTE_RESPONSE: on_vote_response,
}
VOTE_HANDLERS: dict[MessageKind, Callable[[Core, Message], None]] = {
    MessageKind.VOTE: on_vote,
    MessageKind.PRE_VOTE: on_pre_vote,
}
