"""What must hold across epochs, beside what observer.py watches in one.

The ledger is that of the history that goes on. When an EPOCH entry is first applied somewhere, what had been applied
from its index on belongs to a history that has ended:

- *failover-lost*: after a planned move, or a failover that fenced the old voters, there is nothing of that kind;
- *two-epochs*: once the next epoch has begun, nothing more is committed in the one before, unless an operator had
  vouched for voters that were not fenced;
- *two-epochs-answer*: once an epoch that a ballot decided has begun, no node answers anything strong in one before it
  (there the old side may commit on, and is not to say so);
- the other rules (one entry at an index, one digest, durable before applied) hold in either history by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import decode_epoch_start, epoch_of_term
from kvnode.codec.membership import Membership
from kvnode.codec.versionstamp import split
from tests.simulation.observer import DurableLog, Observer, Violation


@dataclass
class EpochObserver(Observer):
    """An observer that knows of failovers.

    Attributes:
        vouched: epochs whose failover went on although old voters were not fenced: an operator vouched for them, or a
            primary lease does.
        balloted: those among them that a ballot decided.
    """

    of_epochs: dict[int, Membership] = field(default_factory=dict)  # the membership with which each began
    balloted: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)  # epochs whose first entry somebody has appended
    answers_count: int = 0

    vouched: set[int] = field(default_factory=set)
    cuts: list[tuple[int, int]] = field(default_factory=list)  # (epoch, fork index), of the history that goes on
    ended: dict[tuple[int, int], Entry] = field(default_factory=dict)  # (index, term): applied, and then cut off
    digests_of: dict[tuple[int, int], int] = field(default_factory=dict)  # (index, term): of either history
    applied_terms: dict[int, tuple[int, int]] = field(default_factory=dict)  # node: (index, term) of its last entry
    lost_count: int = 0
    now_ms: Callable[[], float] = lambda: 0.0  # true time
    committed_at_ms: dict[int, float] = field(default_factory=dict)
    # When refusals may have been judged on what was lost: from the first lost commit to the cut, and for as long as a
    # node went on in a history that had ended.
    lost_between_ms: list[tuple[float, float]] = field(default_factory=list)
    in_the_past_since_ms: dict[int, float] = field(default_factory=dict)  # node: it is still in such a history

    def proposed(self, entries: Sequence[Entry]) -> None:
        """The membership of an epoch's first entry counts as one that was proposed."""
        super().proposed(entries)
        for entry in entries:
            place = (entry.index, entry.term)
            if entry.kind is EntryKind.EPOCH and place not in self._placed:
                self._placed.add(place)
                start = decode_epoch_start(entry.data)
                self.of_epochs[start.epoch] = start.membership
                self.memberships.append(start.membership)

    def _may_count(self, term: int) -> Sequence[Membership]:
        """The memberships of the entry's own epoch, and of those behind it, which may commit what they were given."""
        epoch = epoch_of_term(term)
        behind = [membership for later, membership in self.of_epochs.items() if later >= epoch]
        begun = list(self.of_epochs.values())
        plain = [membership for membership in self.memberships if membership not in begun][-3:]
        return [*plain, *behind]

    def appending(self, node_id: int, entries: Sequence[Entry], previous_term: int | None) -> None:
        """With its first entry an epoch begins."""
        super().appending(node_id, entries, previous_term)
        for entry in entries:
            if entry.kind is EntryKind.EPOCH:
                self.begun.add(decode_epoch_start(entry.data).epoch)

    def answered(self, node_id: int, epoch: int) -> None:
        """A node that is in that epoch has answered something strong, by itself."""
        self.answers_count += 1
        later = {begun for begun in self.balloted & self.begun if begun > epoch}
        if later:
            self.fail("two-epochs-answer", f"node {node_id} answers in epoch {epoch} after {min(later)} has begun")

    def is_committed(self, stamp: bytes) -> bool:
        """As an observer's; the entry may stand in a history that has ended."""
        epoch, index, _ = split(stamp)
        known = self.committed.get(index)
        if known is not None and _epoch_of(known) == epoch:
            return True
        if any(at == index and _epoch_of(entry) == epoch for (at, _), entry in self.ended.items()):
            return True
        return self._may_be_applied(index, lambda term: (epoch_of_term(term) or 1) == epoch)

    def histories(self) -> list[dict[int, Entry]]:
        """As an observer's.

        A history that has ended holds what nodes that had not heard of it made of it later, with epochs that began
        there. So each is followed back from its last entry, by the term that every entry was appended behind: what a
        log holds before an entry of that index and term is the same in all logs (Raft, section 5.3). Raises Violation.
        """
        applied = {(index, entry.term): entry for index, entry in self.committed.items()} | self.ended
        continued = {self._place_before(place) for place in applied}
        ends = [place for place in self.ended if place not in continued]
        return [*(self._history_to(end, applied) for end in ends), self.committed]

    def _place_before(self, place: tuple[int, int]) -> tuple[int, int]:
        index, term = place
        return index - 1, self.entries[index, term][1]

    def _history_to(self, end: tuple[int, int], applied: dict[tuple[int, int], Entry]) -> dict[int, Entry]:
        history: dict[int, Entry] = {}
        while (entry := applied.get(end)) is not None:
            history[entry.index] = entry
            end = self._place_before(end)
        first = min(history)
        if first > 1:
            raise Violation("histories", f"nobody has applied what entry {first} of an ended one was appended behind")
        return dict(sorted(history.items()))

    def is_lost(self, stamp: bytes) -> bool:
        """Whether a versionstamp is of a history that has ended."""
        epoch, index, _ = split(stamp)
        return any(epoch < later and index > fork_index for later, fork_index in self.cuts)

    def _of_the_past(self, entry: Entry) -> bool:
        epoch = _epoch_of(entry)
        return any(epoch < later and entry.index > fork_index for later, fork_index in self.cuts)

    def _elected(self, term: int, node_id: int) -> None:
        latest = self.cuts[-1][0] if self.cuts else 0
        epoch = epoch_of_term(term) or 1
        committed = self.committed
        if epoch < latest:
            self.committed = {}  # it leads a history that has ended
        elif epoch > latest:
            # The first leader after a loss: its log says where the history parts, perhaps with an epoch before its own
            # of which nothing was applied yet, and behind which its own one was fenced. Up to there it must hold all.
            held = self.durable.get(node_id, DurableLog()).terms
            apart = [
                index for index, of in held.items() if latest < epoch_of_term(of) and epoch_of_term(of) in self.vouched
            ]
            if apart or epoch in self.vouched:
                first = min(apart, default=0)
                self.committed = {index: entry for index, entry in committed.items() if index < first}
        super()._elected(term, node_id)
        self.committed = committed

    def applied(self, node_id: int, entries: Sequence[Entry], digest: int) -> None:
        """A run may lead from one epoch into the next."""
        past = [entry for entry in entries if self._of_the_past(entry)]
        if past:
            self._applied_in_the_past(node_id, past)
        else:
            self._is_back(node_id)
        durable = self.durable.setdefault(node_id, DurableLog())
        for entry in entries:
            if entry in past:
                continue
            if entry.kind is EntryKind.EPOCH and self.committed.get(entry.index) != entry:
                self._cut(node_id, entry)
            if not durable.holds(entry.index, entry.term):
                self.fail("apply-order", f"node {node_id} applied entry {entry.index} before its log held it durably")
            known = self.committed.get(entry.index)
            if known is None:
                self._commit(node_id, entry)
            elif known != entry:
                self.fail("state-machine", f"node {node_id} applied another entry {entry.index} (term {entry.term})")
        self.applied_terms[node_id] = (entries[-1].index, entries[-1].term)
        self._reached_at(node_id, (entries[-1].index, entries[-1].term), digest)

    def reached(self, node_id: int, index: int, digest: int) -> None:
        """After a restart or an install: the term is whatever the log or the snapshot says, and compared later."""

    def _reached_at(self, node_id: int, place: tuple[int, int], digest: int) -> None:
        if self.digests_of.setdefault(place, digest) != digest:
            self.fail("digest", f"node {node_id} has another digest than the others at {place}")

    def _cut(self, node_id: int, entry: Entry) -> None:
        start = decode_epoch_start(entry.data)
        lost = {index: held for index, held in self.committed.items() if index >= entry.index}
        self.note(f"epoch {start.epoch} at {entry.index}, {len(lost)} lost;")
        self.lost_count += len(lost)
        if lost:
            since_ms = min(self.committed_at_ms[index] for index in lost)
            self.lost_between_ms.append((since_ms, self.now_ms()))
            for node, (index, term) in self.applied_terms.items():
                if index in lost and lost[index].term == term:
                    self.in_the_past_since_ms.setdefault(node, since_ms)
        if lost and (start.planned or start.epoch not in self.vouched):
            how = "a planned move" if start.planned else "a fenced failover"
            self.fail("failover-lost", f"{how} to epoch {start.epoch} cut off {min(lost)} to {max(lost)}, committed")
        for index, held in lost.items():
            self.ended[index, held.term] = held
            del self.committed[index]
        self.cuts = [cut for cut in self.cuts if cut[1] < entry.index - 1]
        self.cuts.append((start.epoch, entry.index - 1))
        self.outcomes = {key: found for key, found in self.outcomes.items() if not self.is_lost(found.versionstamp)}

    def let_go(self, node_id: int) -> None:
        """As an observer's; the node is in no ended history any more."""
        super().let_go(node_id)
        self._is_back(node_id)

    def _is_back(self, node_id: int) -> None:
        since_ms = self.in_the_past_since_ms.pop(node_id, None)
        if since_ms is not None:
            self.lost_between_ms.append((since_ms, self.now_ms()))

    def _applied_in_the_past(self, node_id: int, entries: Sequence[Entry]) -> None:
        self.in_the_past_since_ms.setdefault(node_id, self.now_ms())
        for entry in entries:
            known = self.ended.setdefault((entry.index, entry.term), entry)
            if known != entry:
                self.fail("state-machine", f"node {node_id} applied another entry {entry.index} of an ended epoch")
            epoch = _epoch_of(entry)
            after = next(later for later, fork_index in self.cuts if epoch < later and entry.index > fork_index)
            if known is entry and after not in self.vouched:
                self.fail("two-epochs", f"node {node_id} commits {entry.index}/{entry.term} after epoch {after} began")

    def _commit(self, node_id: int, entry: Entry) -> None:
        super()._commit(node_id, entry)
        self.committed_at_ms[entry.index] = self.now_ms()


def _epoch_of(entry: Entry) -> int:
    return epoch_of_term(entry.term) or 1
