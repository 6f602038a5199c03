"""More planted bugs, one for each sentence of the design that says why something would be unsafe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvnode.codec.entry import HardState
from kvnode.codec.membership import MemberRole, Membership
from kvnode.machine import resolve
from kvnode.machine.sessions import SessionWindow
from kvnode.node import reads
from kvnode.node.barriers import Barriers, Item
from kvnode.node.changelog.source import Source
from kvnode.node.freshness import FreshnessTracker
from kvnode.raft import changelog, leader, replication
from kvnode.raft.configuration import MembershipHistory
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.quorum import Quorum
from kvnode.raft.raft import Raft
from kvnode.raft.reads import ReadRounds
from kvnode.storage.log import Log
from tests.simulation.planting import Patch, replaced
from tests.simulation.state import SimulatedState


def learners_count() -> Patch:
    """Learners vote, commit and make up data centers like voters."""
    original = Quorum.__init__

    def init(self: Quorum, membership: Membership) -> None:
        members = tuple(replace(member, role=MemberRole.VOTER) for member in membership.members)
        original(self, Membership(members, membership.min_commit_dcs))

    return replaced(Quorum, "__init__", init)


def count_the_leader_before_its_fsync() -> Patch:
    """A leader counts itself for entries that are still on their way to its disk."""
    original = replication.update_commit

    def update_commit(core: Any, lead: Any) -> bool:
        stable, core.log.stable = core.log.stable, core.log.last_index
        try:
            return original(core, lead)
        finally:
            core.log.stable = stable

    return replaced(replication, "update_commit", update_commit)


def tell_the_commit_index_uncut() -> Patch:
    """A heartbeat raises the commit index of a peer whose log may still differ."""

    def send_heartbeat(core: Any, peer: Any, number: int) -> None:
        commit = core.log.commit
        peer.sent_commit = max(peer.sent_commit, commit)
        core.messages.append(
            Message(MessageKind.HEARTBEAT, peer.node_id, core.node_id, core.term, commit=commit, round=number)
        )

    return replaced(replication, "_send_heartbeat", send_heartbeat)


def read_before_an_own_commit() -> Patch:
    """A new leader answers strong reads by a commit index that may lack what its predecessor acknowledged."""
    return replaced(replication, "own_term_committed", lambda core: core.lead is not None)


def join_the_round_under_way() -> Patch:
    """A strong read joins a ReadIndex round that has been sent."""
    original = ReadRounds.join

    def join(self: ReadRounds, context: int) -> None:
        if self._open:
            self._open[-1][2].append(context)
            self.pending_count += 1
        else:
            original(self, context)

    return replaced(ReadRounds, "join", join)


def join_a_batch_that_was_sent() -> Patch:
    """A strong read joins reads whose ReadIndex round is under way."""
    original = Barriers._take_unsent

    def take_unsent(self: Barriers) -> list[Item]:
        generation = self.generation
        items = original(self)
        self.generation = generation
        return items

    return replaced(Barriers, "_take_unsent", take_unsent)


def believe_the_frozen() -> Patch:
    """A process that was frozen goes on as if nothing had been."""
    return replaced(Raft, "clock_gap", lambda self: None)


def keep_a_truncated_membership() -> Patch:
    """A membership stays in force when its entry is truncated."""
    return replaced(MembershipHistory, "truncate", lambda self, index: False)


def keep_the_tail_under_a_snapshot() -> Patch:
    """A snapshot replaces the log, and a tail from before it stays."""
    original = RaftLog.restore

    def restore(self: RaftLog, snapshot: Any) -> None:
        tail = [entry for entry in self._tail if entry.index > snapshot.index]
        original(self, snapshot)
        self._tail.extend(tail)

    return replaced(RaftLog, "restore", restore)


def forget_the_term_at_install() -> Patch:
    """Beginning the log anew behind a snapshot takes the hard state along."""
    original = Log.reset

    async def reset(self: Log, index: int, term: int, *, discard: bool = False) -> None:
        self.hard_state = HardState()
        await original(self, index, term, discard=discard)

    return replaced(Log, "reset", reset)


def compact_what_is_applied() -> Patch:
    """The log drops what the state has applied, and not yet made durable."""
    return replaced(SimulatedState, "durable_applied", property(lambda self: self.meta.applied_index))


def execute_for_an_expired_session() -> Patch:
    """A request of an unknown or expired session is executed: its first copy may have been."""
    original = resolve.admit

    def admit(window: Any, request: Any, log_time_ms: int, applied_index: int) -> Any:
        found = original(window, request, log_time_ms, applied_index)
        if type(found).__name__ == "Refused" and (window is None or window.expire_at_ms <= log_time_ms):
            return window or SessionWindow(request.client_id, request.owner, 1 << 62, request.sequence, 0)
        return found

    return replaced(resolve, "admit", admit)


def execute_below_the_lowest_unanswered() -> Patch:
    """A request below the lowest unanswered one is executed: its outcome has been dropped."""
    original = resolve.admit

    def admit(window: Any, request: Any, log_time_ms: int, applied_index: int) -> Any:
        if window is not None and request.sequence < window.lowest_unanswered:
            return window
        return original(window, request, log_time_ms, applied_index)

    return replaced(resolve, "admit", admit)


def fresh_since_the_acknowledgement() -> Patch:
    """The age of an eventual read is counted from the answers to a round, not from its sending."""
    original = FreshnessTracker.round_acknowledged

    def round_acknowledged(self: FreshnessTracker, round_number: int, applied_index: int) -> None:
        now_ms, wall_ms = self._clock.monotonic_ms(), self._clock.now_ms()
        kept = [(number, found._replace(sent_at_ms=wall_ms), now_ms) for number, found, _ in self._rounds]
        self._rounds.clear()
        self._rounds.extend(kept)
        original(self, round_number, applied_index)

    return replaced(FreshnessTracker, "round_acknowledged", round_acknowledged)


def fresh_before_it_is_applied() -> Patch:
    """The age of an eventual read is that of the last confirmed round, whether its commits are applied or not."""
    original = FreshnessTracker.age_ms

    def age_ms(self: FreshnessTracker, reached: Any = None) -> int:
        self._reached = self._latest_confirmed
        return original(self)

    return replaced(FreshnessTracker, "age_ms", age_ms)


def ignore_the_bound_on_staleness() -> Patch:
    """An eventual read is answered by the node's own state, however old it may be."""
    return replaced(reads, "is_within", lambda age_ms, max_staleness_ms: True)


def ignore_the_wanted_versionstamp() -> Patch:
    """A read is answered before the state holds the commit that it must see."""
    return replaced(reads.Reads, "_must_wait", lambda self, call, stamp, *, strong: False)


def change_before_an_own_commit() -> Patch:
    """A new leader changes the membership before an entry of its own term is committed."""
    original = leader.propose_membership

    def propose_membership(core: Any, new: Membership) -> int:
        with replaced(replication, "own_term_committed", lambda core: core.lead is not None):
            return original(core, new)

    return replaced(leader, "propose_membership", propose_membership)


def stream_what_is_not_committed() -> Patch:
    """A replica is sent all that its source's log holds."""
    original = Source._take

    def take(self: Source) -> Any:
        log = self._raft.log
        delivered, log.delivered = log.delivered, log.stable
        try:
            return original(self)
        finally:
            log.delivered = delivered

    return replaced(Source, "_take", take)


def keep_the_old_term() -> Patch:
    """A replica adopts a term only when its leader is known."""

    def follow(core: Any, piece: Any) -> None:
        if piece.leader_id not in (0, core.node_id) and piece.term >= core.term:
            if piece.term > core.term:
                core.become_follower(piece.term, piece.leader_id)
            core.heard_from_leader(piece.leader_id)

    return replaced(changelog, "_follow_leader", follow)


def begin_where_others_end() -> Patch:
    """A source takes it that a replica has what the source itself has made durable."""
    original = Source.__init__

    def init(self: Source, raft: Any, *rest: Any, **named: Any) -> None:
        original(self, raft, *rest, **named)
        self._next = max(self._next, raft.log.delivered + 1)

    return replaced(Source, "__init__", init)


def take_a_fork() -> Patch:
    """A replica does not compare what it has with what it is sent."""

    def check(core: Any, index: int, term: int) -> None:
        return None

    return replaced(changelog, "_check_overlap", check)


SEEN_BY_SEEDS = (
    stream_what_is_not_committed,
    keep_the_old_term,
    begin_where_others_end,
    ignore_the_bound_on_staleness,
    ignore_the_wanted_versionstamp,
    learners_count,
    count_the_leader_before_its_fsync,
    tell_the_commit_index_uncut,
    read_before_an_own_commit,
    compact_what_is_applied,
    execute_for_an_expired_session,
    execute_below_the_lowest_unanswered,
)
