"""How old what this node would read may be.

The leader notes for each heartbeat round when it was sent and what was committed then. Once a quorum has
acknowledged the round, nobody else was leader at the sending, so a state that holds that commit index is no
older than the sending. Followers are told and wait until they have applied that index. A deposed leader's
rounds are no longer acknowledged, so what it says grows old, as it should.
"""

from __future__ import annotations

from collections import deque

from kvnode.base.clock import Clock
from kvnode.node.ports import Freshness

_KEPT_COUNT = 64  # rounds or notices waiting; older ones only say less


class FreshnessTracker:
    """Both sides: the leader's rounds, and what a node has been told and has applied."""

    def __init__(self, clock: Clock, max_clock_offset_ms: int) -> None:
        self._clock = clock
        self._max_clock_offset_ms = max_clock_offset_ms
        self._rounds: deque[tuple[int, Freshness]] = deque(maxlen=_KEPT_COUNT)
        self._waiting: deque[Freshness] = deque(maxlen=_KEPT_COUNT)
        self._latest: Freshness | None = None
        self._reached_sent_at_ms: int | None = None
        self._local = False

    @property
    def latest(self) -> Freshness | None:
        """The newest confirmed round known here, for passing on."""
        return self._latest

    def round_sent(self, round_number: int, commit_index: int, log_time_ms: int) -> None:
        """The leader is about to send this heartbeat round."""
        if not self._rounds or self._rounds[-1][0] < round_number:
            self._rounds.append((round_number, Freshness(commit_index, log_time_ms, self._clock.now_ms())))

    def round_acknowledged(self, round_number: int, applied_index: int) -> None:
        """A quorum acknowledged all rounds up to this number."""
        newest = None
        while self._rounds and self._rounds[0][0] <= round_number:
            newest = self._rounds.popleft()[1]
        if newest is not None:
            self.heard(newest, applied_index, local=True)

    def forget_rounds(self) -> None:
        """Leadership is lost."""
        self._rounds.clear()

    def heard(self, freshness: Freshness, applied_index: int, *, local: bool = False) -> None:
        """A confirmed round became known, from our own rounds or from a peer.

        One from the future was stamped by a clock that is wrong, its sender's or ours: it would look fresh for long.
        """
        if not self._is_plausible(freshness.sent_at_ms):
            return
        latest = self._latest
        if latest is None or freshness.sent_at_ms > latest.sent_at_ms or not self._is_plausible(latest.sent_at_ms):
            self._latest = freshness
            self._local = local
            self._waiting.append(freshness)
            self.applied(applied_index)

    def _is_plausible(self, sent_at_ms: int) -> bool:
        return sent_at_ms <= self._clock.now_ms() + self._max_clock_offset_ms

    def applied(self, index: int) -> None:
        """The node has applied up to `index`."""
        while self._waiting and self._waiting[0].commit_index <= index:
            self._reached_sent_at_ms = self._waiting.popleft().sent_at_ms

    def age_ms(self) -> int:
        """An upper bound on the age of an eventual read now; -1 while nothing is known.

        The sender's clock may differ from ours by the allowed offset, which counts against us.
        """
        if self._reached_sent_at_ms is None or not self._is_plausible(self._reached_sent_at_ms):
            return -1
        bound = 0 if self._local else self._max_clock_offset_ms
        return max(0, self._clock.now_ms() - self._reached_sent_at_ms + bound)
