"""Held votes: what a leader lease (Ongaro's thesis, 6.4.1) stands on.

Theory of operation. A leader that was set to use a lease asks, with each heartbeat round, that its voters hold their
votes. A voter that answers the round hears no candidate for an election timeout from then on, and says for how many
milliseconds it surely will. A leader of another term needs a majority of votes, so once a majority has answered a
round, none can be elected before the shortest of their holds has run out, counted from the *sending* of the round:
until then the leader may serve reads without asking anybody (kvnode/node/leader_lease.py keeps the time; the core
knows none).

That is more than sticky votes (election.py) give, which are about calm and may be broken:

* A hold outlasts a later term that the voter hears of, a gap in its clock, and its own restart: who may have granted
  one before it started, as nobody knows, holds its vote for an election timeout.
* A voter that is told by its leader to campaign, or asked by one who was, breaks its hold. So a leader that has begun
  to hand over, even in vain, uses no lease any more: the word that it sent may still be on its way.
* A change of membership makes another majority. The lease of a round counts only as long as the membership in which
  it was sent is in force.
* A later epoch begins without the votes of this one. Who promises it says so when its hold has run out
  (node/failover/participant.py); a leader that has sealed or promised uses no lease.
"""

from __future__ import annotations

from kvnode.raft import replication
from kvnode.raft.core import Core
from kvnode.raft.leadership import Leadership
from kvnode.raft.messages import Message

TRANSFER = b"transfer"


def grant(core: Core) -> int:
    """Hold the vote anew, as the leader of this term asks. Returns for how long at least, in milliseconds."""
    core.hold_ticks = core.config.election_ticks
    return core.config.vote_hold_ms


def tick(core: Core) -> None:
    """One tick of the clock has passed."""
    if core.hold_ticks:
        core.hold_ticks -= 1


def refuses(core: Core, message: Message) -> bool:
    """Whether a (pre-)vote request goes unheard because the vote is held."""
    return core.hold_ticks > 0 and message.term >= core.term and message.context != TRANSFER


def may_lease(core: Core) -> bool:
    """Whether this leader may go by the holds that it was granted."""
    lead = core.lead
    return (
        lead is not None
        and core.config.asks_holds
        and not lead.lease_void
        and not lead.lease_given_up
        and not core.history.sealed_at
        and not core.fenced
        and replication.own_term_committed(core)
    )


def quorum_hold_ms(core: Core, lead: Leadership) -> int:
    """The shortest hold among those of the majority that holds longest, granted with the newest round that a quorum
    has acknowledged or with a later one; 0 = a majority has not granted any."""
    confirmed = core.rounds.acknowledged
    quorum = core.history.quorum
    own = core.config.vote_hold_ms
    holds = sorted(
        own if voter_id == core.node_id else _hold_ms(lead, voter_id, confirmed) for voter_id in quorum.voter_ids
    )
    return holds[len(holds) - quorum.majority]


def _hold_ms(lead: Leadership, voter_id: int, confirmed: int) -> int:
    peer = lead.peers[voter_id]
    return peer.hold_ms if peer.acked_round >= confirmed else 0
