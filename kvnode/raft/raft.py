"""The Raft core: messages and ticks in, a Ready out. It does no I/O and knows no clock.

Theory of operation. Diego Ongaro's "Consensus: Bridging Theory and Practice" (2014), in the manner of
etcd-io/raft: pre-vote and sticky votes, check-quorum, ReadIndex, leadership transfer, learners, membership
changes one at a time, snapshots, pipelined appends. Beyond it, a commit needs `min_commit_dcs` data centers
(quorum.py), and the leader's own fsync runs while its appends travel (Ready, in types.py).

Each message first passes the term gate below (Raft, section 5.1), then goes to the table of the node's role:

    follower.py     what a leader's messages do          election.py    votes and candidates
    leader.py       authority, proposals, hand-over      replication.py appends, acknowledgements, the commit index
    log.py          the log and its marks                reads.py       ReadIndex rounds
    progress.py     what the leader knows of a peer      configuration.py  memberships along the log

All of it is deterministic: the same calls with the same random source give the same Readys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvnode.base.errors import Unavailable
from kvnode.base.invariant import invariant
from kvnode.base.limits import MAX_PENDING_READS_COUNT
from kvnode.codec.entry import Entry, HardState
from kvnode.codec.epoch import epoch_of_term
from kvnode.codec.membership import Membership
from kvnode.raft import changelog, election, epochs, follower, holds, leader, replication
from kvnode.raft.changelog import Committed
from kvnode.raft.core import Core
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.progress import PeerState
from kvnode.raft.types import LogView, PeerProgress, RaftConfig, ReadState, Ready, Role

if TYPE_CHECKING:
    import random

_Handler = Callable[[Core, Message], None]
_KINDS = max(MessageKind) + 1


def _table(*parts: dict[MessageKind, _Handler]) -> list[_Handler | None]:
    """A role's handlers by the number of the message kind; a list, because hashing an enum member is slow."""
    table: list[_Handler | None] = [None] * _KINDS
    for part in parts:
        for kind, handler in part.items():
            table[kind] = handler
    return table


_FOLLOWER = _table(election.VOTE_HANDLERS, follower.FOLLOWER_HANDLERS)
_PRE_CANDIDATE = _table(election.VOTE_HANDLERS, follower.LEADER_MESSAGE_HANDLERS, election.PRE_CANDIDATE_HANDLERS)
_CANDIDATE = _table(election.VOTE_HANDLERS, follower.LEADER_MESSAGE_HANDLERS, election.CANDIDATE_HANDLERS)
_LEADER = _table(election.VOTE_HANDLERS, follower.LEADER_MESSAGE_HANDLERS, leader.HANDLERS)

_FROM_LEADER = frozenset(follower.LEADER_MESSAGE_HANDLERS)
_IS_VOTE_REQUEST = [kind in (MessageKind.VOTE, MessageKind.PRE_VOTE) for kind in range(_KINDS)]
_IS_RESPONSE = [
    kind
    in (
        MessageKind.APPEND_RESPONSE,
        MessageKind.HEARTBEAT_RESPONSE,
        MessageKind.VOTE_RESPONSE,
        MessageKind.PRE_VOTE_RESPONSE,
    )
    for kind in range(_KINDS)
]


class Raft(Core):
    """One node's part in one Raft group.

    Args:
        config: timing and bounds.
        log: the persisted log.
        hard_state: what the log's storage recovered; HardState() for a new node.
        membership: as of `applied`; memberships in the log beyond it are found by the core. Empty for a node
            that waits to be joined.
        applied: the index that the state has applied.
        random: the only source of randomness (election waits).
        sealed: the applied entry is a seal.

    The attribute `campaign_allowed` may be set to False to keep the node from standing for election;
    `step_down_reason` says why it last ceased to lead or to campaign.
    """

    __slots__ = ("_outstanding", "_unapplied", "_unapplied_bytes", "durable_promise")

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
        super().__init__(config, log, hard_state, membership, applied, random, sealed=sealed)
        self.durable_promise = (hard_state.epoch, hard_state.ballot)
        self._outstanding: Ready | None = None
        self._unapplied: deque[tuple[int, int]] = deque()  # (last index, bytes) of each delivery
        self._unapplied_bytes = 0

    # What it knows.

    @property
    def commit(self) -> int:
        """The commit index."""
        return self.log.commit

    @property
    def applied(self) -> int:
        """The index last reported by applied_to(), or of an installed snapshot."""
        return self.log.applied

    @property
    def last_index(self) -> int:
        """The index of the last entry, persisted or not."""
        return self.log.last_index

    @property
    def membership(self) -> Membership:
        """The membership in force: the latest in the log, committed or not."""
        return self.history.latest

    @property
    def is_leader(self) -> bool:
        """Whether this node leads its term, as far as it knows."""
        return self.lead is not None

    @property
    def own_term_committed(self) -> bool:
        """Whether this node leads and an entry of its own term is committed."""
        return replication.own_term_committed(self)

    @property
    def transferring(self) -> int:
        """The node to which leadership is being handed over; 0 = none."""
        return self.lead.transferring if self.lead else 0

    @property
    def heartbeat_round_sent(self) -> int:
        """The number of the newest heartbeat round that was made; it is in `messages` not later than the next Ready."""
        return self.rounds.sent

    @property
    def quorum_round_acknowledged(self) -> int:
        """The number of the newest heartbeat round that a quorum has acknowledged."""
        return self.rounds.acknowledged

    @property
    def quorum_hold_ms(self) -> int:
        """For how long, from the sending of that round, a majority of the voters elects nobody else; 0 = unknown."""
        return 0 if self.lead is None else holds.quorum_hold_ms(self, self.lead)

    @property
    def may_lease(self) -> bool:
        """Whether this node leads, has committed in its term, and nothing forbids that it goes by held votes."""
        return holds.may_lease(self)

    @property
    def holds_vote(self) -> bool:
        """Whether this node hears no candidate because a leader counts on it, or may."""
        return self.hold_ticks > 0

    @property
    def holds_notice(self) -> bool:
        """Whether this leader has something to tell its followers that release_notices() would send."""
        return self.lead is not None and replication.holds_notice(self, self.lead)

    def progress(self) -> list[PeerProgress]:
        """What the leader knows of each other member; [] on any other node."""
        lead = self.lead
        if lead is None:
            return []
        return [
            PeerProgress(peer.node_id, peer.match, peer.next, peer.state.value, lead.ticks - peer.contact_tick)
            for peer in lead.peers.values()
        ]

    # Inputs.

    def tick(self) -> None:
        """One tick of the clock has passed."""
        holds.tick(self)
        if self.role is Role.LEADER:
            leader.tick(self)
        else:
            election.tick(self)

    def step(self, message: Message) -> None:
        """Take in a message. Whatever is stale, doubled, out of order or not for us changes nothing.

        Raises:
            InvariantViolation: two leaders in one term, or an acknowledgement of what was never sent.
        """
        if message.to != self.node_id or message.sender == self.node_id:
            return
        if epoch_of_term(message.term) != self.epoch and not epochs.admits(self, message):
            return
        kind = message.kind
        if _IS_RESPONSE[kind] and not self._is_known(message.sender):
            return
        if _IS_VOTE_REQUEST[kind] and not election.heeds_candidate(self, message):
            return
        if message.term > self.term:
            self._meet_newer_term(message)
        elif message.term < self.term:
            self._answer_older_term(message)
            return
        handler = self._handlers()[kind]
        if handler is not None:
            handler(self, message)

    def receive_committed(self, piece: Committed) -> bool:
        """Take in a piece of the changelog (a replica's only source of entries).

        Returns:
            False when there is a gap between this node's log and the piece.

        Raises:
            InvalidRequest: CHANGELOG_FORKED or EPOCH_ENDED; nothing was changed.
        """
        invariant(self.follows_changelog, "a voter takes its entries from the leader alone")
        return changelog.receive(self, piece)

    @property
    def follows_changelog(self) -> bool:
        """Whether a source of the changelog may feed it: it does not vote, or what it voted in has ended."""
        return self.fenced or not self.is_voter(self.node_id)

    @property
    def sealed(self) -> bool:
        """Whether the log ends with a seal: in this epoch nothing more is taken in or read strongly."""
        return self.history.sealed_at > 0

    def stands_at_seal(self, index: int) -> None:
        """The state, which a snapshot has brought, ends with a seal at `index`: its Ready may be outstanding still."""
        if self.history.latest_index <= index:
            self.history.seal(index)
            self.log.ceiling = self.history.sealed_at

    def seal_is_committed(self) -> None:
        """Others act on the seal at the end of this node's log: everything up to it is committed."""
        self.log.commit_to(self.history.sealed_at)

    def promise(self, epoch: int, ballot: int, *, has_begun: bool = False) -> None:
        """Promise an epoch to a failover. It holds once `durable_promise` says so, by the next Ready.

        Args:
            has_begun: it has elsewhere; then a promise to another failover that took its number counts no more, unless
                this node's own log is in it.

        Raises:
            InvalidRequest: EPOCH_PROMISED, to another failover, or a later epoch.
        """
        epochs.promise(self, epoch, ballot, has_begun=has_begun)

    def take_tail(self, previous_index: int, previous_term: int, entries: Sequence[Entry]) -> bool:
        """Take in the most advanced node's entries, as a node that has promised an epoch and is not in it yet.

        Returns:
            False when this node does not hold the entry before the first.

        Raises:
            InvalidRequest: FAILOVER_FORKED or FAILOVER_SUPERSEDED.
            Unavailable: SNAPSHOT_UNDER_WAY.
        """
        return epochs.take_tail(self, previous_index, previous_term, entries)

    def begin_epoch(self, entry: Entry) -> None:
        """Append the first entry of the promised epoch; what this node held from its index on goes.

        Raises:
            InvalidRequest: FAILOVER_SUPERSEDED, FAILOVER_TAIL_MISSING or FAILOVER_FORKED.
            Unavailable: SNAPSHOT_UNDER_WAY.
        """
        epochs.begin(self, entry)

    def drop_tail(self, index: int) -> None:
        """Drop the entries from `index` on, of which none is committed. Raises InvalidRequest: FAILOVER_FORKED."""
        epochs.truncate(self, index)

    def propose_seal(self, data: bytes) -> int:
        """End the epoch, as its leader, with an entry that says what begins behind it. Returns its index.

        Raises:
            NotLeader: this node does not lead.
            Unavailable: LEADER_NOT_READY, LEADERSHIP_TRANSFER or PRIMARY_MOVING.
            InvalidRequest: MEMBERSHIP_CHANGE_IN_PROGRESS.
        """
        return epochs.propose_seal(self, data)

    def _handlers(self) -> list[_Handler | None]:
        role = self.role
        if role is Role.LEADER:
            return _LEADER
        if role is Role.FOLLOWER:
            return _FOLLOWER
        return _CANDIDATE if role is Role.CANDIDATE else _PRE_CANDIDATE

    def _is_known(self, node_id: int) -> bool:
        """Whether a node is a member, or one that has just been removed and is still served."""
        if self.lead is not None:
            return node_id in self.lead.peers
        return self.history.latest.get(node_id) is not None

    def _meet_newer_term(self, message: Message) -> None:
        """Adopt the term, unless the message only asks or answers about a term to come."""
        kind = message.kind
        if kind is MessageKind.PRE_VOTE or (kind is MessageKind.PRE_VOTE_RESPONSE and not message.reject):
            return
        sender = message.sender
        leader_id = sender if kind in _FROM_LEADER else 0
        self.become_follower(message.term, leader_id, f"node {sender} is in the later term {message.term}")

    def _answer_older_term(self, message: Message) -> None:
        """Bring the sender up to date where it could not learn of our term otherwise.

        A leader of an older term steps down on any answer of a newer one; without it a node with a higher term
        that nobody follows would never be heard again (etcd-io/raft, check-quorum).
        """
        if message.kind in _FROM_LEADER:
            kind = MessageKind.APPEND_RESPONSE
        elif message.kind is MessageKind.PRE_VOTE:
            kind = MessageKind.PRE_VOTE_RESPONSE
        else:
            return
        self.send_after_persist(Message(kind, message.sender, self.node_id, self.term, reject=True))

    def propose(self, data: bytes) -> int:
        """Append a DATA entry. What is proposed before a Ready travels together.

        Returns:
            Its index. It is committed if an entry of that index and the present term is delivered.

        Raises:
            NotLeader: this node does not lead.
            Unavailable: UNCOMMITTED_TAIL_FULL, or LEADERSHIP_TRANSFER while leadership is being handed over.
        """
        return leader.propose(self, data)

    def propose_membership(self, new: Membership) -> int:
        """Append a change of membership; it is in force at once, and settled when committed.

        Returns:
            The index of its entry.

        Raises:
            NotLeader: this node does not lead.
            Unavailable: LEADER_NOT_READY (nothing of its own term is committed yet) or LEADERSHIP_TRANSFER.
            InvalidRequest: MEMBERSHIP_CHANGE_IN_PROGRESS, LEARNER_NOT_CAUGHT_UP, or what check_change() refuses.
        """
        return leader.propose_membership(self, new)

    def request_read(self, context: int) -> None:
        """Ask for a ReadState; it joins the ReadIndex round that is sent next.

        A read that still waits when leadership is lost gets no ReadState.

        Raises:
            NotLeader: this node does not lead.
            Unavailable: TOO_MANY_READS.
        """
        leader.require_lead(self)
        if self.rounds.pending_count >= MAX_PENDING_READS_COUNT:
            raise Unavailable("too many strong reads wait; send the read again", code="TOO_MANY_READS")
        self.rounds.join(context)

    def release_notices(self) -> None:
        """Let the next ready() tell the followers the commit index, if no append of it does."""
        if self.lead is not None:
            self.lead.notices_due = True

    def transfer_leadership(self, to: int) -> None:
        """Hand leadership over to a voter; given up after an election timeout. Proposals are refused meanwhile.

        Raises:
            NotLeader: this node does not lead.
            InvalidRequest: TRANSFER_TARGET_INVALID.
        """
        leader.transfer(self, to)

    def campaign(self) -> None:
        """Stand for election now, with pre-vote; nothing happens on a leader or where it is not allowed."""
        if self.role is not Role.LEADER and self.may_campaign() and not self.hold_ticks:
            election.campaign(self)

    def step_down(self, reason: str) -> None:
        """Cease to lead or to campaign."""
        if self.role is not Role.FOLLOWER:
            self.become_follower(self.term, 0, reason)

    def clock_gap(self) -> None:
        """The process was frozen for longer than an election timeout.

        A leader's open read rounds are void and their reads join a new one; until a quorum answers it, the
        leader no longer refuses candidates. Others cease to vouch for a leader and wait anew before they campaign.
        """
        if self.lead is not None:
            leader.clock_gap(self, self.lead)
        else:
            self.heard_leader = False
            self.restart_election_wait()

    def report_unreachable(self, node_id: int) -> None:
        """Messages to a peer were lost: stop pipelining and look where the logs meet."""
        peer = self.lead.peers.get(node_id) if self.lead else None
        if peer is not None and peer.state is PeerState.REPLICATE:
            peer.become_probe()

    def report_snapshot(self, node_id: int, ok: bool) -> None:
        """A snapshot's transfer has ended. Every SNAPSHOT message must be reported once, or the peer stays behind."""
        peer = self.lead.peers.get(node_id) if self.lead else None
        if peer is None or peer.state is not PeerState.SNAPSHOT:
            return
        if not ok:
            peer.snapshot_index = 0
        peer.become_probe()
        peer.paused = True  # until a heartbeat is answered

    # Outputs.

    def has_ready(self) -> bool:
        """Whether ready() would hand out anything; False while a Ready is outstanding."""
        if self._outstanding is not None:
            return False
        return bool(
            self.after_persist
            or self.log.has_unstable()
            or self.log.snapshot is not None
            or self._turned
            or self.has_urgent()
        )

    def has_urgent(self) -> bool:
        """Whether urgent() would hand out anything."""
        return bool(
            self.messages
            or self.read_states
            or (self.log.has_undelivered() and self._unapplied_bytes < self.config.max_unapplied_bytes)
            or (self.lead is not None and replication.needs_flush(self, self.lead))
        )

    @property
    def _turned(self) -> bool:
        """Whether a promise was made that the disk does not know."""
        saved = self.saved
        if self.term != saved.term or self.vote != saved.vote:
            return True
        return self.promised_epoch != saved.epoch or self.promised_ballot != saved.ballot

    def ready(self) -> Ready:
        """Hand out all that is to be done; see Ready for what the caller owes."""
        invariant(self._outstanding is None, "ready() was called before persisted()")
        messages = self._take_messages()
        entries = self.log.unstable()
        snapshot = self.log.snapshot
        hard_state = None
        turned = self._turned
        if turned or ((entries or snapshot) and self.log.commit != self.saved.commit):
            # A commit index alone is not worth a write: it is forgotten safely (Raft, figure 2).
            hard_state = self.saved = HardState(
                self.term, self.vote, self.log.commit, self.promised_epoch, self.promised_ballot
            )
        after_persist, self.after_persist = self.after_persist, []
        must_sync = turned or bool(entries) or snapshot is not None
        ready = Ready(
            hard_state, entries, must_sync, snapshot, self._deliver(), self._take_reads(), messages, after_persist
        )
        self._outstanding = ready
        return ready

    def urgent(self) -> Ready:
        """Hand out what needs no disk, at any time: messages, committed entries, read states.

        The parts that concern the disk are empty, and persisted() is not called for it. A leader whose fsync
        is slow goes on replicating, committing with the others' acknowledgements, and serving reads by it.
        """
        return Ready(None, [], False, None, self._deliver(), self._take_reads(), self._take_messages(), [])

    def _take_messages(self) -> list[Message]:
        if self.lead is not None:
            replication.flush(self, self.lead)
        messages, self.messages = self.messages, []
        return messages

    def _take_reads(self) -> list[ReadState]:
        read_states, self.read_states = self.read_states, []
        return read_states

    def _deliver(self) -> list[Entry]:
        room = self.config.max_unapplied_bytes - self._unapplied_bytes
        if room <= 0:
            return []
        entries = self.log.deliver(room)
        if entries:
            size = sum(len(entry.data) for entry in entries)
            self._unapplied.append((entries[-1].index, size))
            self._unapplied_bytes += size
        return entries

    def persisted(self, ready: Ready) -> None:
        """The outstanding Ready's snapshot, entries and hard state are on disk."""
        invariant(ready is self._outstanding, "persisted() names a Ready that is not outstanding")
        self._outstanding = None
        if ready.snapshot is not None:
            self._forget_unapplied(ready.snapshot.index)
        if ready.hard_state is not None:
            self.durable_promise = (ready.hard_state.epoch, ready.hard_state.ballot)
        self.log.persisted(ready.entries, ready.snapshot)
        if self._unapplied_bytes >= self.config.max_unapplied_bytes:
            self.log.release()
        if self.lead is not None:
            leader.after_commit_attempt(self, self.lead)
        elif self.role is Role.CANDIDATE and (self.saved.term, self.saved.vote) == (self.term, self.node_id):
            election.count_own_vote(self)

    def applied_to(self, index: int) -> None:
        """The state has applied everything up to `index`, which was delivered."""
        log = self.log
        invariant(index <= log.delivered, f"entry {index} was applied but only {log.delivered} was delivered")
        if index > log.applied:
            log.applied = index
            self.history.prune(index)
            self._forget_unapplied(index)

    def _forget_unapplied(self, index: int) -> None:
        unapplied = self._unapplied
        while unapplied and unapplied[0][0] <= index:
            self._unapplied_bytes -= unapplied.popleft()[1]
