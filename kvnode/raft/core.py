"""The state that all roles share, and the transitions among those that need nothing of a leader.

The layers of the core: core < replication < leader < election < follower < raft. Each role module is a table
from message kinds to small functions over this state; raft.py chooses the table. Nobody outside this package
uses Core: Raft (raft.py) is the public face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.base.invariant import invariant
from kvnode.codec.entry import Entry, HardState
from kvnode.codec.epoch import epoch_of_term
from kvnode.codec.membership import Membership
from kvnode.raft.configuration import MembershipHistory
from kvnode.raft.leadership import Leadership
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.reads import ReadRounds
from kvnode.raft.types import LogView, RaftConfig, ReadState, Role

if TYPE_CHECKING:
    import random

_SCAN_BYTES = 4 * 1_048_576  # of the log's unapplied part, at once, when it is searched for memberships


class Core:
    """One node's consensus state; see Raft for the arguments."""

    __slots__ = (
        "after_persist",
        "campaign_allowed",
        "config",
        "election_elapsed",
        "election_wait",
        "heard_leader",
        "history",
        "hold_ticks",
        "lead",
        "leader_id",
        "log",
        "lost_through",
        "messages",
        "node_id",
        "promised_ballot",
        "promised_epoch",
        "random",
        "read_states",
        "role",
        "rounds",
        "saved",
        "step_down_reason",
        "term",
        "vote",
        "votes",
    )

    def __init__(
        self,
        config: RaftConfig,
        log: LogView,
        hard_state: HardState,
        membership: Membership,
        applied: int,
        random: random.Random,
        *,
        sealed: bool = False,
    ) -> None:
        invariant(config.node_id > 0, "a node id is above 0")
        invariant(0 < config.heartbeat_ticks < config.election_ticks, "heartbeats must be faster than elections")
        self.config = config
        self.node_id = config.node_id
        self.random = random
        self.log = RaftLog(log, hard_state.commit, applied)
        self.history = MembershipHistory(membership, applied, epoch_of_term(self.log.term(applied) or 0), sealed=sealed)
        self._scan_marks()
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.promised_epoch = hard_state.epoch
        self.promised_ballot = hard_state.ballot
        self.saved = hard_state  # what the disk holds, or will when the outstanding Ready is persisted
        self.role = Role.FOLLOWER
        self.leader_id = 0
        self.lead: Leadership | None = None  # exists while this node leads
        self.rounds = ReadRounds()
        self.votes: dict[int, bool] = {}
        self.campaign_allowed = True
        self.step_down_reason = ""
        self.lost_through = 0  # the leader knows that this log once reached as far, and it does not; see on_heartbeat
        self.heard_leader = False  # within the election timeout: makes votes sticky
        may_have_granted = config.holds_vote_at_start and hard_state.term > 0
        self.hold_ticks = config.election_ticks if may_have_granted else 0  # of the vote; see holds.py
        self.election_elapsed = 0
        self.election_wait = 0
        self.messages: list[Message] = []
        self.after_persist: list[Message] = []
        self.read_states: list[ReadState] = []
        self.restart_election_wait()

    def _scan_marks(self) -> None:
        """Find the memberships, epochs and seals that the log holds beyond the applied index."""
        index = self.log.applied + 1
        while index <= self.log.last_index:
            entries = self.log.entries(index, self.log.last_index + 1, _SCAN_BYTES)
            invariant(bool(entries), f"the log has lost entry {index}")
            for entry in entries:
                self.history.append(entry)
            index = entries[-1].index + 1
        self.log.ceiling = self.history.sealed_at

    def mark(self, entry: Entry) -> None:
        """An entry was appended: what it changes is in force."""
        self.history.append(entry)
        self.log.ceiling = self.history.sealed_at

    def unmark(self, index: int) -> None:
        """The entries from `index` on were truncated."""
        if self.history.latest_index >= index:
            self.history.truncate(index)
            self.log.ceiling = self.history.sealed_at

    @property
    def epoch(self) -> int:
        """The latest epoch that this node takes part in, as epoch_of_term counts: promised, or that of its term."""
        return max(self.promised_epoch, epoch_of_term(self.term))

    @property
    def fenced(self) -> bool:
        """Whether a later epoch than that of its own log has begun, or is about to: then it neither campaigns nor
        votes nor acknowledges in the epoch of its log, and what it holds may end with a fork."""
        return self.epoch > self.history.epoch

    def restart_election_wait(self) -> None:
        """Draw a new wait from (election_ticks, 2 * election_ticks].

        Above election_ticks, so that the others no longer hold on to the leader when the first one asks them.
        """
        self.election_elapsed = 0
        self.election_wait = self.config.election_ticks + self.random.randint(1, self.config.election_ticks)

    def restart_retry_wait(self) -> None:
        """Draw the wait of a (pre-)candidate that got no majority: shorter, as pre-votes disturb nobody."""
        self.election_elapsed = 0
        quarter = max(1, self.config.election_ticks // 4)
        self.election_wait = quarter + self.random.randint(1, quarter)

    def send(self, message: Message) -> None:
        """Send at once."""
        self.messages.append(message)

    def send_after_persist(self, message: Message) -> None:
        """Send when all that was accepted so far is on disk; a later acknowledgement replaces an earlier one."""
        queue = self.after_persist
        if queue and message.kind is MessageKind.APPEND_RESPONSE and not message.reject:
            last = queue[-1]
            if (
                last.kind is MessageKind.APPEND_RESPONSE
                and last.to == message.to
                and last.term == message.term
                and not last.reject
                and last.index <= message.index
            ):
                queue[-1] = message
                return
        queue.append(message)

    def is_voter(self, node_id: int) -> bool:
        """Whether a node votes in the membership in force."""
        return node_id in self.history.quorum.voter_ids

    def may_campaign(self) -> bool:
        """Whether this node may stand for election: allowed to, no snapshot half installed, and a voter.

        A voter whose removal is not known to be committed still counts as one: it may hold the only log that
        can win, the removal being its last entry (thesis 4.2.2). It then leads without counting itself.
        """
        if not self.campaign_allowed or self.log.snapshot is not None or self.fenced:
            return False
        return self.is_voter(self.node_id) or (
            self.history.latest_index > self.log.commit and self.history.was_voter(self.node_id)
        )

    def become_follower(self, term: int, leader_id: int, reason: str = "") -> None:
        """Follow `leader_id` (0 while unknown) in `term`; gives up leadership or candidacy."""
        invariant(term >= self.term, f"the term cannot go back from {self.term} to {term}")
        if term > self.term:
            self.term = term
            self.vote = 0
        if self.role is not Role.FOLLOWER:
            self.step_down_reason = reason
            self.rounds.drop()
        self.role = Role.FOLLOWER
        self.lead = None
        self.votes = {}
        self.leader_id = leader_id
        self.heard_leader = leader_id != 0
        self.restart_election_wait()

    def heard_from_leader(self, leader_id: int) -> None:
        """A message of this term's leader has come."""
        if self.role is not Role.FOLLOWER or self.leader_id != leader_id:
            invariant(self.role is not Role.LEADER, f"nodes {self.node_id} and {leader_id} both lead term {self.term}")
            self.become_follower(self.term, leader_id, f"node {leader_id} leads term {self.term}")
        self.heard_leader = True
        self.election_elapsed = 0
