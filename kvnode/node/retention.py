"""How much of the log is kept: of the changelog, that is, from which replicas, followers and backups read.

Two bounds, by size and by age; what exceeds either is dropped, in whole segments, from the oldest on. Nothing is
dropped that the state does not hold durably. Whoever then finds that it is too far behind gets a snapshot.
"""

from __future__ import annotations

from typing import Protocol

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.codec.entry import EntryKind
from kvnode.node.settings import NodeSettings
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.storage.log import Log

_SCANNED_ENTRIES_COUNT = 64  # for one that says when it was written


class Durable(Protocol):
    """What is looked at of the state."""

    @property
    def durable_applied(self) -> int:
        """The last index whose effect is durable without the log."""


class Retention:
    """Keeps one node's log within its bounds.

    Args:
        settings: the bounds.
        log: to be shortened.
        state: says how far it may be.
        clock: its wall clock is compared with the log time of entries.
    """

    def __init__(self, settings: NodeSettings, log: Log, state: Durable, clock: Clock) -> None:
        self._max_bytes = settings.log_retention_bytes
        self._max_age_ms = settings.log_retention_age_ms
        self._log = log
        self._state = state
        self._clock = clock
        self._look_at_ms = 0.0  # for what is too old, next, on the monotonic clock

    async def apply(self) -> None:
        """Drop what may be dropped."""
        keep_from = 0
        if self._log.size_bytes > self._max_bytes:
            keep_from = self._log.index_at_tail_bytes(self._max_bytes)
        now = self._clock.monotonic_ms()
        if self._max_age_ms and now >= self._look_at_ms:
            interval_ms = self._max_age_ms / limits.RETENTION_AGE_CHECKS_COUNT
            self._look_at_ms = now + min(interval_ms, limits.MAX_RETENTION_AGE_CHECK_INTERVAL_MS)
            keep_from = max(keep_from, self._first_young())
        if keep_from:
            await self._log.compact(min(self._state.durable_applied, keep_from - 1))

    def _first_young(self) -> int:
        """Where the first segment begins that is not old throughout; 0 = the first of all."""
        oldest_ms = self._clock.now_ms() - self._max_age_ms
        keep_from = 0
        for start in self._log.segment_starts()[1:]:
            time_ms = self._time_of(start)
            if time_ms is None or time_ms >= oldest_ms:
                break
            keep_from = start
        return keep_from

    def _time_of(self, index: int) -> int | None:
        """When the entry, or the next one that says so, was written; None when none does."""
        for entry in self._log.entries(index, index + _SCANNED_ENTRIES_COUNT, limits.MAX_BATCH_BYTES):
            if entry.kind is EntryKind.DATA:
                return log_pb2.EntryPayload.FromString(entry.data).log_time_ms
        return None
