"""What must hold at every instant, watched from outside of the nodes.

The observer sees three seams: what leaves a node (its messages), what its log has made durable, and what its
state applies. From these it keeps a ledger, the one committed history, and finds at once:

- *leader*: two nodes lead in one term (only a leader sends appends and heartbeats; Raft, figure 3, Election Safety);
- *log-matching*: two entries of one index and term differ, or their predecessors do (Log Matching);
- *state-machine*: two nodes apply different entries at one index (State Machine Safety), or come to different digests;
- *commit-durable*: an entry is applied that is not durable on a majority of the voters in enough data centers;
- *commit-safe*: an entry is applied and voters without it could still elect a leader without it (section 5.4.2);
- *leader-completeness*: a new leader's log lacks a committed entry (section 5.4.3);
- *apply-order*: a state applies what its own log does not hold durably;
- *vote*: a node votes twice in a term;
- *exactly-once*: one request id has two outcomes in the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import Membership, decode_membership
from kvnode.codec.versionstamp import split, versionstamp
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.raft.messages import Message, MessageKind


class Violation(Exception):
    """A promise is broken; the seed has failed."""

    def __init__(self, checker: str, message: str) -> None:
        super().__init__(f"{checker}: {message}")
        self.checker = checker
        self.message = message


class Outcome(NamedTuple):
    """What the log says of one request id."""

    versionstamp: bytes
    kind: int
    failed_checks: tuple[int, ...]


@dataclass
class DurableLog:
    """What a node's disk would still hold after a crash, by index."""

    base: int = 0  # everything up to here is in a durable snapshot or was compacted
    base_term: int = 0
    terms: dict[int, int] = field(default_factory=dict)  # changed by keep and drop alone
    _last: int = 0  # the greatest index in `terms`; 0 = there is none

    def holds(self, index: int, term: int) -> bool:
        """Whether that entry survives a crash of the node."""
        return index <= self.base or self.terms.get(index) == term

    @property
    def end(self) -> tuple[int, int]:
        """(term, index) of the last entry: what a vote compares (Raft, section 5.4.1)."""
        last = self._last or self.base
        return self.terms.get(last, self.base_term), last

    def keep(self, index: int, term: int) -> None:
        """An entry is on the disk."""
        self.terms[index] = term
        self._last = max(index, self._last)

    def drop_conflicting(self, entries: Sequence[Entry]) -> None:
        """What stands where these entries begin, or behind, is gone unless it is one of them."""
        if self._last < entries[0].index:
            return
        new = {entry.index: entry.term for entry in entries}
        for index in [index for index in self.terms if index >= entries[0].index]:
            if self.terms[index] != new.get(index):
                del self.terms[index]
        self._last = max(self.terms, default=0)


@dataclass
class Observer:
    """Fed by the harness; the first broken promise is kept in `violation`."""

    violation: Violation | None = None
    leaders: dict[int, int] = field(default_factory=dict)  # term: node
    votes: dict[tuple[int, int], int] = field(default_factory=dict)  # (voter, term): candidate
    entries: dict[tuple[int, int], tuple[bytes, int]] = field(
        default_factory=dict
    )  # (index, term): digest, term before
    committed: dict[int, Entry] = field(default_factory=dict)
    digests: dict[int, int] = field(default_factory=dict)
    outcomes: dict[tuple[bytes, int], Outcome] = field(default_factory=dict)
    durable: dict[int, DurableLog] = field(default_factory=dict)
    memberships: list[Membership] = field(default_factory=list)  # in force since they were appended, not committed
    _placed: set[tuple[int, int]] = field(default_factory=set)  # (index, term) of each membership
    installs_count: int = 0
    on_leader: Callable[[int, int], None] = lambda term, node_id: None
    trace: hashlib._Hash = field(default_factory=hashlib.sha256)

    def fail(self, checker: str, message: str) -> None:
        """Keep the first violation."""
        if self.violation is None:
            self.violation = Violation(checker, message)

    def raise_violation(self) -> None:
        """Raise the first violation, if there is one."""
        if self.violation is not None:
            raise self.violation

    def note(self, text: str) -> None:
        """Add to the trace, by which two runs of a seed are compared."""
        self.trace.update(text.encode())

    def is_committed(self, stamp: bytes) -> bool:
        """Whether some node has applied the entry of that versionstamp, or might: enough voters hold it durably."""
        index = split(stamp)[1]
        return index in self.committed or self._may_be_applied(index, lambda term: True)

    def _may_be_applied(self, index: int, is_meant: Callable[[int], bool]) -> bool:
        """Whether an entry at `index`, of a term that is meant, is durable where a commit asks for it."""
        terms = {log.terms[index] for log in self.durable.values() if index in log.terms}
        return any(
            self._is_durable(index, term, membership)
            for term in terms
            if is_meant(term)
            for membership in self._may_count(term)
        )

    def is_lost(self, stamp: bytes) -> bool:
        """Whether a versionstamp is of a history that has ended."""
        return False

    def histories(self) -> list[dict[int, Entry]]:
        """Every history there was, by index: those that have ended, each with what it grew out of, and the last one."""
        return [self.committed]

    # Messages.

    def sent(self, sender: int, message: Message) -> None:
        """A message leaves a node."""
        kind = message.kind
        if kind in (MessageKind.APPEND, MessageKind.HEARTBEAT):
            leader = self.leaders.get(message.term)
            if leader is None:
                self._elected(message.term, sender)
            elif leader != sender:
                self.fail("leader", f"nodes {leader} and {sender} both lead in term {message.term}")
        elif kind is MessageKind.VOTE_RESPONSE and not message.reject:
            self._voted(sender, message.term, message.to)
        elif kind is MessageKind.VOTE:
            self._voted(sender, message.term, sender)

    def _elected(self, term: int, node_id: int) -> None:
        """A leader speaks for the first time in its term: it must hold all that was committed before it."""
        self.leaders[term] = node_id
        log = self.durable.get(node_id, DurableLog())
        for index, entry in self.committed.items():
            if entry.term < term and not log.holds(index, entry.term):
                self.fail("leader-completeness", f"node {node_id} leads term {term} without entry {index}/{entry.term}")
        self.on_leader(term, node_id)

    def _voted(self, voter: int, term: int, candidate: int) -> None:
        chosen = self.votes.setdefault((voter, term), candidate)
        if chosen != candidate:
            self.fail("vote", f"node {voter} voted for {chosen} and for {candidate} in term {term}")

    # Logs.

    def proposed(self, entries: Sequence[Entry]) -> None:
        """A node's log holds these entries, on disk or not: a membership among them is in force there."""
        for entry in entries:
            place = (entry.index, entry.term)
            if entry.kind is EntryKind.MEMBERSHIP and place not in self._placed:
                self._placed.add(place)
                self.memberships.append(decode_membership(entry.data))

    def appending(self, node_id: int, entries: Sequence[Entry], term_before: int | None) -> None:
        """A node is about to write entries behind an entry of `term_before` (None = not known)."""
        self.proposed(entries)
        for entry in entries:
            digest = hashlib.sha256(bytes([entry.kind]) + entry.data).digest()
            seen = self.entries.get((entry.index, entry.term))
            if seen is None:
                self.entries[entry.index, entry.term] = (digest, -1 if term_before is None else term_before)
            elif seen[0] != digest:
                self.fail("log-matching", f"node {node_id}: another entry {entry.index} of term {entry.term}")
            elif term_before is not None and seen[1] not in (-1, term_before):
                self.fail("log-matching", f"node {node_id}: entry {entry.index}/{entry.term} behind term {term_before}")
            term_before = entry.term
        durable = self.durable.setdefault(node_id, DurableLog())
        if entries:  # a conflicting tail goes before anything is written over it
            durable.drop_conflicting(entries)

    def synced(self, node_id: int, entries: Sequence[Entry]) -> None:
        """The entries are durable."""
        durable = self.durable.setdefault(node_id, DurableLog())
        for entry in entries:
            durable.keep(entry.index, entry.term)

    def let_go(self, node_id: int) -> None:
        """A node has given up log and state, having held what a failover cut off."""
        self.durable[node_id] = DurableLog()
        self.note(f"rejoins {node_id};")

    def log_reset(self, node_id: int, index: int, term: int) -> None:
        """The log begins anew behind `index`; nothing committed may have stood beyond it."""
        durable = self.durable.setdefault(node_id, DurableLog())
        for at, held in durable.terms.items():
            if at > index and at in self.committed and self.committed[at].term == held:
                self.fail(
                    "durability", f"node {node_id} begins its log anew behind {index} and loses entry {at}/{held}"
                )
        self.durable[node_id] = DurableLog(index, term)

    # States.

    def applied(self, node_id: int, entries: Sequence[Entry], digest: int) -> None:
        """A node applied a run of entries and has come to `digest`."""
        durable = self.durable.setdefault(node_id, DurableLog())
        for entry in entries:
            if not durable.holds(entry.index, entry.term):
                self.fail("apply-order", f"node {node_id} applied entry {entry.index} before its log held it durably")
            known = self.committed.get(entry.index)
            if known is None:
                self._commit(node_id, entry)
            elif known != entry:
                self.fail("state-machine", f"node {node_id} applied another entry {entry.index} (term {entry.term})")
        self.reached(node_id, entries[-1].index, digest)

    def reached(self, node_id: int, index: int, digest: int) -> None:
        """A node's state is at `index`."""
        if self.digests.setdefault(index, digest) != digest:
            self.fail("digest", f"node {node_id} has another digest than the others at index {index}")

    def _may_count(self, term: int) -> Sequence[Membership]:
        """The memberships by one of which an entry of that term may have been committed."""
        return self.memberships[-3:]

    def _commit(self, node_id: int, entry: Entry) -> None:
        if entry.index - 1 not in self.committed and entry.index > 1:
            self.fail("state-machine", f"node {node_id} applied entry {entry.index}, and nobody the one before")
        self.committed[entry.index] = entry
        self.note(f"{entry.index}/{entry.term}/{entry.kind.value}/{len(entry.data)};")
        memberships = self._may_count(entry.term)
        if not any(self._is_durable(entry.index, entry.term, membership) for membership in memberships):
            holders = [node for node, log in sorted(self.durable.items()) if log.holds(entry.index, entry.term)]
            self.fail("commit-durable", f"entry {entry.index}/{entry.term} was applied, durable only on {holders}")
        elif all(self._usurper(entry, membership) for membership in memberships):
            usurper = self._usurper(entry, memberships[-1])
            self.fail("commit-safe", f"entry {entry.index}/{entry.term} was applied; node {usurper} could win without")
        if entry.kind is EntryKind.DATA:
            self._account(entry)

    def _is_durable(self, index: int, term: int, membership: Membership) -> bool:
        voters = membership.voters
        holders = [
            member
            for member in voters
            if member.node_id in self.durable and self.durable[member.node_id].holds(index, term)
        ]
        needed_dcs = min(membership.min_commit_dcs, len({member.dc for member in voters}))
        return 2 * len(holders) > len(voters) and len({member.dc for member in holders}) >= needed_dcs

    def _usurper(self, entry: Entry, membership: Membership) -> int:
        """A voter that lacks the entry on its disk and could be elected by logs as they stand on theirs; 0 = none."""
        logs = {voter.node_id: self.durable.get(voter.node_id, DurableLog()) for voter in membership.voters}
        ends = {node_id: log.end for node_id, log in logs.items()}
        for node_id, log in logs.items():
            if not log.holds(entry.index, entry.term):
                grants = sum(end <= ends[node_id] for end in ends.values())
                if 2 * grants > len(logs):
                    return node_id
        return 0

    def _account(self, entry: Entry) -> None:
        payload = log_pb2.EntryPayload.FromString(entry.data)
        for order, transaction in enumerate(payload.transactions):
            if not transaction.client_id or transaction.opens_session:
                continue
            request = (transaction.client_id, transaction.sequence)
            if request in self.outcomes:
                self.fail("exactly-once", f"request {request[0].hex()}/{request[1]} stands twice in the log")
            stamp = versionstamp(payload.epoch, entry.index, order)
            self.outcomes[request] = Outcome(stamp, transaction.outcome, tuple(transaction.failed_checks))
