"""From committed entries to the state and everything that hangs on it.

A run of committed entries is applied in one piece, on the loop's own thread: resolve reads the same
connection, so that what it sees is exactly the applied index (design.md, sections 2 and 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvnode.base.clock import Clock
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import membership_of
from kvnode.codec.membership import encode_membership
from kvnode.machine.apply import apply_entries
from kvnode.node.barriers import Barriers
from kvnode.node.directory import Directory
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.proposals import Proposals
from kvnode.node.queue.dispatcher import Dispatcher
from kvnode.node.reads import Reads
from kvnode.node.stats import Stats
from kvnode.node.watch import WatchHub
from kvnode.storage.state import State

_OF_EPOCHS = frozenset((EntryKind.EPOCH, EntryKind.SEAL))
_WITH_FACTS = _OF_EPOCHS | {EntryKind.DATA}


@dataclass(slots=True)
class Applier:
    """Applies, then wakes everyone who waits for it.

    Attributes:
        epochs_applied: told when an epoch has begun or been sealed in the state, or may have.
    """

    state: State
    proposals: Proposals
    barriers: Barriers
    reads: Reads
    watches: WatchHub
    directory: Directory
    freshness: FreshnessTracker
    stats: Stats
    clock: Clock
    membership_applied: Callable[[bytes], None]
    dispatcher: Dispatcher
    epochs_applied: Callable[[], None]

    def apply(self, entries: Sequence[Entry]) -> int:
        """Apply a run of committed, locally durable entries; returns its last index."""
        begun = self.clock.monotonic_ms()
        state = self.state
        meta = state.meta
        facts = [entry for entry in entries if entry.kind in _WITH_FACTS]
        membership = _last_membership(entries)
        last = entries[-1]
        log_time_ms, epoch = meta.log_time_ms, meta.epoch
        writes = {}
        if facts:
            run = apply_entries(facts, state, log_time_ms=log_time_ms)
            writes, log_time_ms, epoch = run.writes, run.log_time_ms or log_time_ms, run.epoch or epoch
        state.apply(
            writes,
            applied_index=last.index,
            applied_term=last.term,
            log_time_ms=log_time_ms,
            epoch=epoch,
            membership=membership,
        )
        is_of_epochs = any(entry.kind in _OF_EPOCHS for entry in facts)
        if self.directory.applied(writes) or is_of_epochs or membership is not None:
            # Who is refused by these is so after a kill -9 too, before this node hears of a leader again.
            state.commit()
        now = self.clock.monotonic_ms()
        self.stats.apply_ms.observe(now - begun)
        self._publish(entries, writes, now)
        if is_of_epochs:
            self.watches.resync()
            self.epochs_applied()
        if membership is not None:
            self.membership_applied(membership)
        return last.index

    @property
    def awaited(self) -> bool:
        """Whether a read waits for the state to move on."""
        return self.reads.is_awaiting

    def installed(self) -> None:
        """A snapshot has replaced the state."""
        meta = self.state.meta
        self.directory.replaced()
        self.proposals.skipped_to(meta.applied_index)
        self.freshness.applied(meta.applied_index)
        self.reads.applied()
        self.watches.resync()
        self.dispatcher.replaced(meta.applied_index)
        self.epochs_applied()
        self.membership_applied(meta.membership)

    def _publish(self, entries: Sequence[Entry], writes: dict, now: float) -> None:  # type: ignore[type-arg]
        meta = self.state.meta
        self.proposals.applied_to(meta.applied_index)
        for entry in entries:
            self.proposals.applied(entry, now)
        self.barriers.applied(meta.applied_index)
        self.freshness.applied(meta.applied_index)
        self.reads.applied()
        self.watches.publish(writes, meta.log_time_ms)
        self.dispatcher.applied(meta.applied_index, writes)


def _last_membership(entries: Sequence[Entry]) -> bytes | None:
    """The encoded membership that is in force behind a run; None when the run leaves it as it is."""
    for entry in reversed(entries):
        if entry.kind is EntryKind.MEMBERSHIP:
            return entry.data
        if entry.kind is EntryKind.EPOCH:
            membership = membership_of(entry)
            return None if membership is None else encode_membership(membership)
    return None
