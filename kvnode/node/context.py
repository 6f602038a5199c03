"""What nearly every part of a node is built from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kvnode.base.clock import Clock
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.guard import Guard
from kvnode.node.settings import NodeSettings
from kvnode.node.stats import Stats
from kvnode.raft.raft import Raft
from kvnode.storage.log import Log
from kvnode.storage.state import State
from kvnode.storage.state_tables import StateMeta


@dataclass(frozen=True, slots=True)
class NodeContext:
    """A node's core, log and state; its seams for time and chance; how it is woken, and how it ends.

    Attributes:
        freshness: how old the state is.
        failed: done once the node has ended, with why.
        guard: around every entry into the core that is not the driver's or the ticker's.
        fail: ends the node; may be called more than once.
        wake: tells the driver that the core has news.
    """

    settings: NodeSettings
    raft: Raft
    log: Log
    state: State
    clock: Clock
    random_source: Random
    stats: Stats
    freshness: FreshnessTracker
    failed: asyncio.Future[BaseException]
    guard: Guard
    fail: Callable[[BaseException], None]
    wake: Callable[[], None]

    def meta(self) -> StateMeta:
        """Of the applied state, as of now."""
        return self.state.meta

    def epoch(self) -> int:
        """The epoch of the state."""
        return self.state.meta.epoch

    def applied_index(self) -> int:
        """The last index in the state."""
        return self.state.meta.applied_index
