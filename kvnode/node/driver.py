"""The loop that turns Readys into work: persist, send, apply, answer.

One cycle, and what it costs on a leader of three with a batch waiting:

1. flush: all waiting writes become one entry; all waiting reads join one ReadIndex round.
2. send `messages`: one append a peer leaves before our own fsync, which runs while it travels.
3. answer the writers of what was committed before, and apply it if that is due.
4. persist: one write, one fsync, whatever the number of transactions.
5. send `messages_after_persist` (a follower's acknowledgement: one message), tell the core.

Nobody waits for an apply but who reads: a follower's acknowledgement says that it has persisted, and a leader's
writers are answered when their entry is committed. So while entries come, what is committed gathers and is applied at
most APPLY_DELAY_MS later, in one piece: a piece costs as much as four rows. What comes alone, the
last of a burst, is applied at once, behind the answers; so is everything while a read waits at the leader's barrier,
or anywhere for a versionstamp. Entries in which messages only pass through queues gather for PASSING_APPLY_DELAY_MS,
alone or not: most of the messages that they bring are gone by then, and no row is written for them.

While the fsync runs on its own thread, the loop takes in new requests and messages, which make the next batch: the
slower the disk, the larger the batches.

However much waits, a pass of the loop makes one full entry at most, and applies one run of entries: heartbeats, and the
answers to them, are not to wait behind thousands of writes. On a machine that gives the node a tenth of a processor,
0.1 s of work in one piece is 1 s of silence, and so the next election.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from kvnode.base import limits
from kvnode.codec.entry import Entry, EntryKind
from kvnode.machine.passing import is_passing
from kvnode.node.applier import Applier
from kvnode.node.barriers import Barriers
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.leader_lease import LeaderLease
from kvnode.node.ports import Transport
from kvnode.node.proposals import Proposals
from kvnode.node.snapshots import Snapshots
from kvnode.node.stats import Stats
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.raft import Raft
from kvnode.raft.types import Ready, SnapshotMeta
from kvnode.storage.log import Log
from kvnode.storage.state import State

# Entries applied in one piece, after which the loop has its turn: enough to share its cost, few enough to
# hold the loop only briefly. One entry may exceed it.
MAX_APPLY_RUN_BYTES = 65_536
MAX_PASSING_RUN_BYTES = 131_072  # the same for entries in which messages only pass: most of it is no row in the end
MAX_GATHERED_BYTES = 262_144  # committed, and not yet applied because more is coming

APPLY_DELAY_S = limits.APPLY_DELAY_MS / 1_000
PASSING_APPLY_DELAY_S = limits.PASSING_APPLY_DELAY_MS / 1_000
MAINTENANCE_INTERVAL_S = 0.005  # a look costs 5 us, and the WAL grows by 250 KB at most in this time
BATCH_HOLD_S = limits.BATCH_HOLD_MS / 1_000
NOTICE_DELAY_S = limits.COMMIT_NOTICE_DELAY_MS / 1_000


class Driver:
    """Owns the order of things between core, disk, state and network.

    Args:
        leadership_changed: called after a cycle in which role, term or leader changed.
        committed: called when the core has handed out committed entries.
        vouches: whether the leader may say how fresh it is: another epoch may have begun without it.
    """

    def __init__(
        self,
        raft: Raft,
        log: Log,
        state: State,
        transport: Transport,
        applier: Applier,
        proposals: Proposals,
        barriers: Barriers,
        snapshots: Snapshots,
        freshness: FreshnessTracker,
        lease: LeaderLease,
        stats: Stats,
        leadership_changed: Callable[[], None],
        committed: Callable[[], None],
        vouches: Callable[[], bool] = lambda: True,
    ) -> None:
        self._vouches = vouches
        self._raft = raft
        self._log = log
        self._state = state
        self._transport = transport
        self._applier = applier
        self._proposals = proposals
        self._barriers = barriers
        self._snapshots = snapshots
        self._freshness = freshness
        self._lease = lease
        self._stats = stats
        self._leadership_changed = leadership_changed
        self._handed_out = committed
        self._wake = asyncio.Event()
        self._seen: tuple[bool, int, int] = (False, 0, 0)
        self._stopping = False
        self._waiting = False  # a cycle waits for the disk, or for the loop's turn: what needs no disk goes meanwhile
        self._notice_timer: asyncio.TimerHandle | None = None
        self._apply_timer: asyncio.TimerHandle | None = None
        self._apply_at = 0.0
        self._gathered = False  # the timer has run out
        self._hold_timer: asyncio.TimerHandle | None = None
        self._held = False  # likewise
        self._maintain_at = 0.0  # not looked at before
        self._committed: list[Entry] = []  # delivered by the core, not yet applied
        self._is_passing = True  # in all of these messages only pass through queues
        self._applying = False

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()
        if self._waiting:
            self._send_urgent()

    def nudge(self) -> None:
        """A client's operation was queued: it joins the next cycle.

        The core has not changed, so nothing urgent can have come of it, and looking for that with each operation was
        a tenth of the leader's loop.
        """
        self._wake.set()

    def stop(self) -> None:
        """Return from run() after the present cycle."""
        self._stopping = True
        for timer in (self._notice_timer, self._apply_timer, self._hold_timer):
            if timer is not None:
                timer.cancel()
        self._wake.set()

    async def run(self) -> None:
        """Run until stop(). Any exception is fatal to the node."""
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            while await self._cycle() and not self._stopping:
                # Let arrivals in: they join the next batch, and a long backlog must not starve the loop.
                await asyncio.sleep(0)
                await self._maintain()
            await self._maintain()

    async def _maintain(self) -> None:
        """Between two cycles, and under a load that never rests too: or the state's WAL would grow without bound."""
        now = asyncio.get_running_loop().time()
        if now >= self._maintain_at:
            self._maintain_at = now + MAINTENANCE_INTERVAL_S
            if self._state.maintenance_due:
                await self._state.maintain()

    async def _cycle(self) -> bool:
        raft = self._raft
        self._notice_leadership()
        if applied := self._apply_due:
            self._take_urgent()  # no heartbeat waits for it
            self._apply()
        if raft.own_term_committed and not self._proposals.resolving and not raft.sealed and self._all_data_applied():
            self._proposals.begin_leadership()
        more_waits = self._flush()
        self._barriers.applied(self._state.meta.applied_index)  # what the lease has confirmed needs no round
        if not raft.has_ready():
            return more_waits or self._apply_due
        ready = raft.ready()
        self._send(ready.messages)
        if ready.snapshot is not None:
            await self._install(ready.snapshot)
        leads = raft.is_leader
        self._take_committed(ready.committed)
        if leads and self._committed and not self._may_gather(ready):
            await self._turn(True)  # the answers leave first
            applied = True
            self._apply()
        await self._persist(ready)
        raft.persisted(ready)
        self._send(ready.messages_after_persist)
        if self._committed and not self._may_gather(ready):
            await self._turn(applied or bool(ready.messages_after_persist))
            self._apply()
        for read_state in ready.read_states:
            self._barriers.confirmed(read_state.context, read_state.index)
        if raft.is_leader:
            self._freshness.round_acknowledged(raft.quorum_round_acknowledged, self._state.meta.applied_index)
        self._barriers.applied(self._state.meta.applied_index)
        self._notice_leadership()
        if self._notice_timer is None and raft.holds_notice:
            self._notice_timer = asyncio.get_running_loop().call_later(NOTICE_DELAY_S, self._release_notices)
        return True

    def _flush(self) -> bool:
        """Begin an entry and a round for what waits, unless that is few (holding.py); returns whether more waits."""
        proposals, barriers, holds = self._proposals, self._barriers, not self._held
        more_waits = proposals.flush(holds=holds)
        barriers.flush(holds=holds)
        self._held = False
        if proposals.is_holding or barriers.is_holding:
            if self._hold_timer is None:
                self._hold_timer = asyncio.get_running_loop().call_later(BATCH_HOLD_S, self._hold_over)
        elif self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        return more_waits

    def _hold_over(self) -> None:
        self._hold_timer = None
        self._held = True
        self._wake.set()

    async def _turn(self, is_due: bool) -> None:
        """Before the loop is held by an apply: it was by another one, or an acknowledgement is to leave first."""
        if is_due:
            self._waiting = True
            try:
                await asyncio.sleep(0)
            finally:
                self._waiting = False

    def _release_notices(self) -> None:
        """Nothing came to carry the commit index to the followers: it goes by itself."""
        self._notice_timer = None
        self._raft.release_notices()
        self.wake()

    def _may_gather(self, ready: Ready | None = None) -> bool:
        """Whether what is committed may wait for more: more entries are coming, and nobody waits for these.

        Args:
            ready: what this cycle works on; None between two, on a leader.
        """
        committed = self._committed
        is_more_coming = self._proposals.pending_count if self._raft.is_leader else ready and ready.entries
        if not (is_more_coming or self._is_passing) or not self._gathers:
            return False
        if sum([len(entry.data) for entry in committed]) >= MAX_GATHERED_BYTES:
            return False
        if any(entry.kind is not EntryKind.DATA for entry in committed):
            return False
        self._apply_within(PASSING_APPLY_DELAY_S if self._is_passing else APPLY_DELAY_S)
        return True

    def _apply_within(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + delay_s
        if self._apply_timer is not None:
            if self._apply_at <= at:
                return
            self._apply_timer.cancel()
        # Kept here: what uvloop returns for a timer that is due does not know when that is.
        self._apply_at = at
        self._apply_timer = loop.call_at(at, self._apply_gathered)

    @property
    def _gathers(self) -> bool:
        """Whether nobody waits for the state."""
        proposals = self._proposals
        if self._applier.awaited or proposals.awaits_apply:
            return False
        return not self._raft.is_leader or (proposals.resolving and not self._barriers)

    def _apply_gathered(self) -> None:
        self._apply_timer = None
        self._gathered = True
        self.wake()

    async def _install(self, snapshot: SnapshotMeta) -> None:
        self._committed, self._is_passing = [], True  # whatever was delivered before lies below the snapshot
        await self._snapshots.install(snapshot)
        self._applier.installed()

    def _all_data_applied(self) -> bool:
        """Whether the state shows all data of the log: this leader has proposed none yet, its no-op is committed."""
        return self._state.meta.applied_index >= self._raft.commit

    async def _persist(self, ready: Ready) -> None:
        if not ready.entries and ready.hard_state is None:
            return
        if ready.messages:
            await asyncio.sleep(0)  # the appends leave before an inline fsync holds the loop
        self._waiting = True
        try:
            await self._log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
        finally:
            self._waiting = False

    @property
    def _apply_due(self) -> bool:
        """Whether something is to be applied without waiting for more."""
        if not self._committed:
            return False
        is_alone = self._raft.is_leader and not self._proposals.pending_count and not self._is_passing
        return self._gathered or is_alone or not self._gathers

    def _apply(self) -> None:
        """Apply one run; what is left has its turn in the next cycle, or when this node is woken during its fsync."""
        if self._applying:
            return  # whom the run has answered woke this node: what is left is noticed below
        if self._apply_timer is not None:
            self._apply_timer.cancel()
            self._apply_timer = None
        self._gathered = False
        committed = self._committed
        if not committed:
            return
        size = count = 0
        bound = MAX_PASSING_RUN_BYTES if self._is_passing else MAX_APPLY_RUN_BYTES
        while count < len(committed) and size < bound:
            size += len(committed[count].data)
            count += 1
        self._committed = committed[count:]
        self._is_passing = all(map(is_passing, self._committed))
        self._applying = True
        try:
            self._raft.applied_to(self._applier.apply(committed[:count]))
        finally:
            self._applying = False
        if self._committed:
            self._gathered = True
            self._wake.set()

    def _take_committed(self, entries: Sequence[Entry]) -> None:
        if entries:
            self._committed.extend(entries)
            self._is_passing = self._is_passing and all(map(is_passing, entries))
            self._proposals.committed(entries, self._applier.clock.monotonic_ms())
            self._handed_out()

    def _send_urgent(self) -> None:
        confirmed = self._take_urgent()
        if self._raft.is_leader and self._committed:
            # The others' acknowledgements committed it while our disk is busy with the next batch.
            if self._gathered or not self._gathers:
                self._apply()
            elif not self._may_gather():
                self._gathered = True
                asyncio.get_running_loop().call_soon(self.wake)  # the answers leave first
        if confirmed:
            self._barriers.applied(self._state.meta.applied_index)

    def _take_urgent(self) -> bool:
        """Hand out what needs no disk; returns whether there were reads among it."""
        if not self._raft.has_urgent():
            return False
        urgent = self._raft.urgent()
        self._send(urgent.messages)
        self._take_committed(urgent.committed)
        for read_state in urgent.read_states:
            self._barriers.confirmed(read_state.context, read_state.index)
        return bool(urgent.read_states)

    def _send(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        by_peer: dict[int, list[Message]] = {}
        for message in messages:
            if message.kind is MessageKind.SNAPSHOT:
                self._snapshots.send(message)
                continue
            # Before an entry of its own term is committed, a leader may know of less than what was acknowledged.
            is_round = message.kind is MessageKind.HEARTBEAT and message.round
            if is_round:
                self._lease.round_sent(message.round, message.term)
            if is_round and self._raft.own_term_committed and self._vouches():
                self._freshness.round_sent(message.round, self._raft.commit, self._state.meta.log_time_ms)
            by_peer.setdefault(message.to, []).append(message)
        freshness = self._freshness.latest if self._raft.is_leader else None
        for peer, batch in by_peer.items():
            self._transport.send(peer, batch, freshness)
        self._stats.messages_sent += len(messages)

    def _notice_leadership(self) -> None:
        raft = self._raft
        seen = (raft.is_leader, raft.term if raft.is_leader else 0, raft.leader_id)
        if seen == self._seen:
            return
        before, self._seen = self._seen, seen
        if before[0] and before[:2] != seen[:2]:
            self._freshness.forget_rounds()
            self._proposals.lose_leadership()
            self._barriers.drop_rounds()
        self._leadership_changed()
