"""The log as the core sees it: the persisted part through a LogView, and the tail in memory.

Theory of operation. Three marks move along the log, none ahead of the one that bounds it:

    applied <= delivered <= min(commit, stable);   commit, stable <= last index

`stable` is the last index known to be on this node's disk, `delivered` the last one handed out to be applied.
The tail holds every entry above min(stable, delivered), so the hot path (send, persist, deliver) never reads
storage back; only when the state falls far behind is what is persisted released, and read back later. Entries
from `_tail_first` on are read from the tail, those below from the view; after a conflict the view may hold an
obsolete tail until the next persist, and it is never looked at.

A conflict truncates (Raft, section 5.3) only from the first entry whose term differs: a late duplicate append
matches what is there and changes nothing. While a Ready is outstanding the tail may change under it, so
persisted() moves `stable` to the last entry of that Ready which the log still has. Index and term identify an
entry (log matching); whatever else that Ready wrote is an obsolete tail, to be truncated by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.base.invariant import invariant
from kvnode.codec.entry import Entry
from kvnode.raft.types import LogView, SnapshotMeta


class RaftLog:
    """The log and its marks.

    Args:
        view: the persisted log.
        commit: the commit index that survived; it is forgotten safely, so beyond the log's end it is lowered.
        applied: the state's applied index; must be held by the log, or be just before it.
    """

    __slots__ = ("_tail", "_tail_first", "_view", "applied", "ceiling", "commit", "delivered", "snapshot", "stable")

    def __init__(self, view: LogView, commit: int, applied: int) -> None:
        last = view.last_index()
        invariant(
            view.first_index() - 1 <= applied <= last,
            f"the log holds {view.first_index()} to {last}, which does not join the state's applied index {applied}",
        )
        self._view = view
        self._tail: list[Entry] = []
        self._tail_first = last + 1
        self.stable = last
        self.applied = applied
        self.delivered = applied
        self.commit = max(applied, min(commit, last))
        self.snapshot: SnapshotMeta | None = None  # accepted, not yet persisted
        self.ceiling = 0  # a seal stands here: nothing behind it is committed; 0 = there is none

    def first_index(self) -> int:
        """The first index that is still held."""
        return self._view.first_index() if self.snapshot is None else self.snapshot.index + 1

    @property
    def last_index(self) -> int:
        """The index of the last entry, persisted or not."""
        return self._tail_first + len(self._tail) - 1

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        if self._tail:
            return self._tail[-1].term
        term = self.term(self._tail_first - 1)
        invariant(term is not None, "the log does not know the term of its last entry")
        return term or 0

    def term(self, index: int) -> int | None:
        """The term at `index`; None when compacted or beyond the end."""
        at = index - self._tail_first
        if at >= 0:
            return self._tail[at].term if at < len(self._tail) else None
        if self.snapshot is not None:
            return self.snapshot.term if index == self.snapshot.index else None
        return self._view.term(index)

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log with that end is at least as up to date as this one (Raft, section 5.4.1)."""
        own_term = self.last_term
        return last_term > own_term or (last_term == own_term and last_index >= self.last_index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low <= index < high, cut at max_bytes of data but at least one; [] if low is compacted."""
        if low < self._tail_first:
            if self.snapshot is not None:
                return []
            return self._view.entries(low, min(high, self._tail_first), max_bytes)
        found = self._tail[low - self._tail_first : high - self._tail_first]
        total = 0
        for count, entry in enumerate(found):
            total += len(entry.data)
            if total > max_bytes and count > 0:
                return found[:count]
        return found

    def append(self, entry: Entry) -> None:
        """Append a leader's own entry."""
        self._tail.append(entry)

    def try_append(self, previous_index: int, previous_term: int, entries: Sequence[Entry]) -> int | None:
        """Append a leader's entries after (previous_index, previous_term).

        Returns:
            None if the log has no such entry; else the index from which it changed, or last_index + 1 if it did not.
        """
        if self.term(previous_index) != previous_term:
            return None
        if previous_index == self.last_index:  # in order: there is nothing to compare
            self._tail.extend(entries)
            return previous_index + 1
        for position, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                self.truncate(entry.index)
                self._tail.extend(entries[position:])
                return entry.index
        return self.last_index + 1

    def truncate(self, index: int) -> None:
        """Drop the entries from `index` on."""
        invariant(index > self.commit, f"truncation from {index} would drop entries committed up to {self.commit}")
        if index >= self._tail_first:
            del self._tail[index - self._tail_first :]
        else:
            self._tail.clear()
            self._tail_first = index
        self.stable = min(self.stable, index - 1)

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """The highest (index, term) at or below `index` whose term is at most `term`; etcd-io/raft's back-off.

        An entry above it cannot be in a log that has `term` at `index`, so one round trip skips a whole run of
        terms. (index, 0) when it is compacted or beyond the end.
        """
        index = min(index, self.last_index)
        while True:
            own = self.term(index)
            if own is None:
                return index, 0
            if own <= term:
                return index, own
            index -= 1

    def commit_to(self, index: int) -> bool:
        """Raise the commit index, never beyond the last entry. Returns whether it moved."""
        index = min(index, self.last_index, self.ceiling or index)
        if index <= self.commit:
            return False
        self.commit = index
        return True

    def unstable(self) -> list[Entry]:
        """The entries to persist."""
        return self._tail[self.stable + 1 - self._tail_first :]

    def has_unstable(self) -> bool:
        """Whether there are entries to persist."""
        return self.stable < self.last_index

    def persisted(self, entries: Sequence[Entry], snapshot: SnapshotMeta | None) -> None:
        """Take note that a Ready's snapshot and entries are on disk."""
        if snapshot is not None:
            self.applied = max(self.applied, snapshot.index)
            if self.snapshot is snapshot:
                self.snapshot = None
        for entry in reversed(entries):
            at = entry.index - self._tail_first
            if entry.index <= self.stable or at < 0:
                return
            if at < len(self._tail) and self._tail[at].term == entry.term:
                self.stable = entry.index
                return

    def has_undelivered(self) -> bool:
        """Whether committed entries wait to be handed out."""
        return self.delivered < self.commit and self.delivered < self.stable

    def deliver(self, max_bytes: int) -> list[Entry]:
        """Hand out the next committed and persisted entries."""
        if not self.has_undelivered():
            return []
        entries = self.entries(self.delivered + 1, min(self.commit, self.stable) + 1, max_bytes)
        invariant(bool(entries), f"the log has lost the committed entry {self.delivered + 1}")
        self.delivered = entries[-1].index
        drop = self.delivered + 1 - self._tail_first
        if drop > 0:
            del self._tail[:drop]
            self._tail_first += drop
        return entries

    def release(self) -> None:
        """Drop the persisted entries from memory, delivered or not: the state is slow, and storage has them."""
        drop = self.stable + 1 - self._tail_first
        if drop > 0:
            del self._tail[:drop]
            self._tail_first += drop

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Replace everything by a snapshot, which becomes real when its Ready is persisted."""
        invariant(snapshot.index > self.commit, f"snapshot {snapshot.index} is behind the commit index {self.commit}")
        self.snapshot = snapshot
        self._tail.clear()
        self._tail_first = snapshot.index + 1
        self.stable = self.commit = self.delivered = snapshot.index
