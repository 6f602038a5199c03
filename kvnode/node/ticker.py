"""A node's time: moves the core's, and looks, once a tick, for what has fallen due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.base import limits
from kvnode.node.context import NodeContext
from kvnode.node.introductions import Introductions
from kvnode.node.operations import Operations
from kvnode.node.promotion.promotion import Promotion
from kvnode.node.regions import Regions
from kvnode.node.retention import Retention
from kvnode.node.timekeeper import Timekeeper

RETENTION_CHECK_TICKS = 20


class Ticker:
    """Ticks for ever, every `tick_ms`.

    Args:
        context: the node.
        timekeeper: judges the clock.
        introductions: forgets who has fallen silent.
        operations: answers what is past its deadline.
        promotion: asks for the primary lease.
        regions: tells the leader how far the replicas are.
        retention: keeps the log within its bounds.
        end_if_removed: ends what a node that was removed must not go on with.
    """

    def __init__(
        self,
        context: NodeContext,
        timekeeper: Timekeeper,
        introductions: Introductions,
        operations: Operations,
        promotion: Promotion,
        regions: Regions,
        retention: Retention,
        end_if_removed: Callable[[], None],
    ) -> None:
        self._context = context
        self._timekeeper = timekeeper
        self._introductions = introductions
        self._operations = operations
        self._promotion = promotion
        self._regions = regions
        self._retention = retention
        self._end_if_removed = end_if_removed
        self._count = 0  # ticks of a node that takes part

    async def run(self) -> None:
        """Tick. Any exception is fatal to the node."""
        context = self._context
        tick_ms = context.settings.tick_ms
        election_ms = tick_ms * context.settings.election_ticks
        last = context.clock.monotonic_ms()
        while True:
            await asyncio.sleep(tick_ms / 1000)
            now = context.clock.monotonic_ms()
            context.stats.loop_lag_ms.observe(max(0.0, now - last - tick_ms))
            if context.log.damage is None:
                if now - last > election_ms:
                    context.raft.clock_gap()
                await self._take_part()
            self._end_if_removed()
            self._operations.sweep(now)
            last = now
            context.wake()

    async def _take_part(self) -> None:
        self._introductions.sweep()
        self._timekeeper.judge()
        self._context.raft.tick()
        self._operations.proposals.tick()
        self._confirm_alone()
        self._promotion.tick()
        self._count += 1
        if self._count % limits.HELD_INTERVAL_TICKS == 0:
            self._regions.tell_held()
        if self._count % RETENTION_CHECK_TICKS == 0:
            await self._retention.apply()

    def _confirm_alone(self) -> None:
        """A single voter is its own quorum: it sends no heartbeat whose acknowledgement could say how fresh it is."""
        raft = self._context.raft
        if raft.own_term_committed and len(raft.membership.voters) == 1 and self._promotion.vouches:
            meta = self._context.meta()
            self._context.freshness.alone(raft.commit, meta.log_time_ms, meta.applied_index)
