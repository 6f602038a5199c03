"""How old what this node would read may be.

The leader notes for each heartbeat round when it was sent and what was committed then. Once a quorum has
acknowledged the round, nobody else was leader at the sending, so a state that holds that commit index is no
older than the sending. Followers are told and wait until they have applied that index. A deposed leader's
rounds are no longer acknowledged, so what it says grows old, as it should.
"""

from __future__ import annotations

from collections import deque
from math import ceil

from kvnode.base.clock import Clock
from kvnode.node.ports import Freshness

_KEPT_COUNT = 64  # rounds or notices waiting; older ones only say less


class FreshnessTracker:
    """Both sides: the leader's rounds, and what a node has been told and has applied.

    A peer's time of sending is put on our own monotonic clock when it arrives, so that no later step of a wall
    clock makes an old state look fresh.
    """

    def __init__(self, clock: Clock, max_clock_offset_ms: int) -> None:
        self._clock = clock
        self._max_clock_offset_ms = max_clock_offset_ms
        self._rounds: deque[tuple[int, Freshness, float]] = deque(maxlen=_KEPT_COUNT)
        self._waiting: deque[tuple[int, float]] = deque(maxlen=_KEPT_COUNT)  # (commit index, sent at, monotonic)
        self._latest: Freshness | None = None
        self._latest_sent_at: float | None = None  # monotonic, milliseconds; the clock bound is counted against it
        self._reached_sent_at: float | None = None

    @property
    def latest(self) -> Freshness | None:
        """The newest confirmed round known here, for passing on."""
        return self._latest

    def round_sent(self, round_number: int, commit_index: int, log_time_ms: int) -> None:
        """The leader is about to send this heartbeat round."""
        if not self._rounds or self._rounds[-1][0] < round_number:
            freshness = Freshness(commit_index, log_time_ms, self._clock.now_ms())
            self._rounds.append((round_number, freshness, self._clock.monotonic_ms()))

    def round_acknowledged(self, round_number: int, applied_index: int) -> None:
        """A quorum acknowledged all rounds up to this number."""
        newest = None
        while self._rounds and self._rounds[0][0] <= round_number:
            newest = self._rounds.popleft()
        if newest is not None:
            self._learn(newest[1], newest[2], applied_index)

    def alone(self, commit_index: int, log_time_ms: int, applied_index: int) -> None:
        """A leader that is its own quorum needs nobody's acknowledgement."""
        freshness = Freshness(commit_index, log_time_ms, self._clock.now_ms())
        self._learn(freshness, self._clock.monotonic_ms(), applied_index)

    def forget_rounds(self) -> None:
        """Leadership is lost."""
        self._rounds.clear()

    def heard(self, freshness: Freshness, applied_index: int) -> None:
        """A confirmed round became known from a peer.

        One from the future was stamped by a clock that is wrong, its sender's or ours: it says nothing.
        """
        ago_ms = self._clock.now_ms() - freshness.sent_at_ms
        if ago_ms >= -self._max_clock_offset_ms:
            sent_at = self._clock.monotonic_ms() - ago_ms - self._max_clock_offset_ms
            self._learn(freshness, sent_at, applied_index)

    def _learn(self, freshness: Freshness, sent_at: float, applied_index: int) -> None:
        if self._latest_sent_at is None or sent_at > self._latest_sent_at:
            self._latest = freshness
            self._latest_sent_at = sent_at
            self._waiting.append((freshness.commit_index, sent_at))
            self.applied(applied_index)

    def applied(self, index: int) -> None:
        """The node has applied up to `index`."""
        while self._waiting and self._waiting[0][0] <= index:
            self._reached_sent_at = self._waiting.popleft()[1]

    def reached_sent_at_ms(self) -> int:
        """When the round that the state has reached was sent, as a time of the own wall clock; 0 = unknown."""
        if self._reached_sent_at is None:
            return 0
        return int(self._clock.now_ms() - (self._clock.monotonic_ms() - self._reached_sent_at))

    def age_ms(self) -> int:
        """An upper bound on the age of an eventual read now; -1 while nothing is known.

        The sender's clock may differ from ours by the allowed offset, which counts against us.
        """
        if self._reached_sent_at is None:
            return -1
        return max(0, ceil(self._clock.monotonic_ms() - self._reached_sent_at))
