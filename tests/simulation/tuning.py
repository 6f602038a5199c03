"""How a seed's nodes and links are set: the bounds that decide which moments exist at all.

With the product's own bounds a new leader's no-op always travels in the append that brings the old entries, and all
that waits becomes one entry: the states between are never seen. So some seeds have tiny ones: an append an entry,
one append at a time, a batch of few writes, slow and uneven links, fast elections. Drawn from a random source of
their own, so that what else a seed does stays the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

from kvnode.base import limits
from kvnode.machine import apply_sessions, sessions
from kvnode.raft.types import RaftConfig
from tests.simulation.pinned import pinned_seeds


class Tuning(NamedTuple):
    """Drawn once a seed."""

    tick_ms: int
    max_append_bytes: int
    max_inflight_count: int
    max_batch_transactions_count: int
    latency_ms: tuple[float, float]
    far_factor: float  # of one initial voter's links; 1 = none is far
    session_life_ms: int  # short: resends meet sessions that have expired
    hunts_leaders: bool  # whether new leaders are hit in their first moments
    leader_lease: bool = False  # strong reads under a lease, and clocks that run wrong

    def config(self, config: RaftConfig) -> RaftConfig:
        """A node's configuration under these bounds."""
        return replace(config, max_append_bytes=self.max_append_bytes, max_inflight_count=self.max_inflight_count)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The bounds that the nodes read from the catalogue of limits."""
        life_ms = self.session_life_ms
        with (
            patch.object(limits, "MAX_BATCH_TRANSACTIONS_COUNT", self.max_batch_transactions_count),
            patch.object(limits, "SESSION_TTL_MS", min(limits.SESSION_TTL_MS, life_ms - 500)),
            patch.object(sessions, "SESSION_LIFE_MS", life_ms),
            patch.object(apply_sessions, "SESSION_LIFE_MS", life_ms),
        ):
            yield


_FIRST_LEASED_PIN = 76_000

STANDARD = Tuning(
    tick_ms=100,
    max_append_bytes=limits.MAX_APPEND_BYTES,
    max_inflight_count=limits.MAX_INFLIGHT_APPENDS_COUNT,
    max_batch_transactions_count=limits.MAX_BATCH_TRANSACTIONS_COUNT,
    latency_ms=(0.2, 1.5),
    far_factor=1.0,
    session_life_ms=sessions.SESSION_LIFE_MS,
    hunts_leaders=False,
)


def draw_tuning(seed: int) -> Tuning:
    """The tuning of a seed; about a third have the product's own bounds, a quarter hunt new leaders.

    Half have leader leases, of a random source of their own. Seeds that were pinned before there were leases have none:
    they would no longer show what they found.
    """
    is_older = seed < _FIRST_LEASED_PIN and seed in pinned_seeds()
    leases = not is_older and random.Random(f"leader lease {seed}").random() < 0.5
    return _draw_bounds(seed)._replace(leader_lease=leases)


def _draw_bounds(seed: int) -> Tuning:
    draw = random.Random(f"tuning {seed}")
    hunts_leaders = draw.random() < 0.25
    if not hunts_leaders and draw.random() < 0.4:
        return STANDARD
    return Tuning(
        tick_ms=draw.choice((20, 50)) if hunts_leaders else draw.choice((50, 100, 100)),
        max_append_bytes=draw.choice((1, 1, 1_000, limits.MAX_APPEND_BYTES)),
        max_inflight_count=draw.choice((1, 2, 8, limits.MAX_INFLIGHT_APPENDS_COUNT)),
        max_batch_transactions_count=draw.choice((1, 2, 16, limits.MAX_BATCH_TRANSACTIONS_COUNT)),
        latency_ms=draw.choice(((0.2, 1.5), (0.2, 1.5), (1.0, 8.0), (4.0, 20.0))),
        far_factor=draw.choice((1.0, 1.0, 4.0, 10.0)),
        session_life_ms=draw.choice((sessions.SESSION_LIFE_MS, sessions.SESSION_LIFE_MS, 6_000, 2_500)),
        hunts_leaders=hunts_leaders,
    )
