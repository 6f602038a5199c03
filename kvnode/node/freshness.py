"""How old what this node would read may be.

The leader notes for each heartbeat round when it was sent and what was committed then. Once a quorum has
acknowledged the round, nobody else was leader at the sending, so a state that holds that commit index is no
older than the sending. Followers are told and wait until they have applied that index. A deposed leader's
rounds are no longer acknowledged, so what it says grows old, as it should.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import NamedTuple

from kvnode.base.clock import Clock
from kvnode.node.marks import Marks
from kvnode.node.ports import Freshness

_KEPT_COUNT = 64  # rounds or notices waiting


class Confirmed(NamedTuple):
    """A moment at which the leader, confirmed by a quorum, was at a state."""

    at_ms: float  # on our monotonic clock, the clock bound counted against it
    bound_ms: float  # as it was counted


def is_within(age_ms: int, max_staleness_ms: int) -> bool:
    """Whether a state of that age, -1 = not known, may be shown; a bound of 0 allows any."""
    return not max_staleness_ms or 0 <= age_ms <= max_staleness_ms


def in_words(age_ms: int) -> str:
    """What this node's state is, for an error: "may be 7 ms old"."""
    return f"may be {age_ms} ms old" if age_ms >= 0 else "is of unknown age, no leader having been heard of yet"


class FreshnessTracker:
    """Both sides: the leader's rounds, and what a node has been told and has applied.

    A peer's time of sending is put on our own monotonic clock when it arrives, so that no later step of a wall
    clock makes an old state look fresh.
    """

    def __init__(self, clock: Clock, max_clock_offset_ms: int) -> None:
        self._clock = clock
        self._max_clock_offset_ms = max_clock_offset_ms
        self._rounds: deque[tuple[int, Freshness, float]] = deque(maxlen=_KEPT_COUNT)
        self._waiting: Marks[Confirmed] = Marks(_KEPT_COUNT)  # at their commit indexes
        self._latest: Freshness | None = None
        self._latest_confirmed: Confirmed | None = None
        self._leads = False  # it has sent a round of its own since it was elected
        self._before_leading: Freshness | None = None
        self._reached: Confirmed | None = None

    @property
    def latest(self) -> Freshness | None:
        """The newest confirmed round known here, for passing on."""
        return self._latest

    @property
    def before_leading(self) -> Freshness | None:
        """The newest confirmed round known here that is none of this node's present leadership."""
        return self._before_leading if self._leads else self._latest

    def round_sent(self, round_number: int, commit_index: int, log_time_ms: int) -> None:
        """The leader is about to send this heartbeat round."""
        self._begin_leading()
        if not self._rounds or self._rounds[-1][0] < round_number:
            freshness = Freshness(commit_index, log_time_ms, self._clock.now_ms())
            self._rounds.append((round_number, freshness, self._clock.monotonic_ms()))

    def round_acknowledged(self, round_number: int, applied_index: int) -> None:
        """A quorum acknowledged all rounds up to this number."""
        newest = None
        while self._rounds and self._rounds[0][0] <= round_number:
            newest = self._rounds.popleft()
        if newest is not None:
            self._learn(newest[1], Confirmed(newest[2], 0.0), applied_index)

    def alone(self, commit_index: int, log_time_ms: int, applied_index: int) -> None:
        """A leader that is its own quorum needs nobody's acknowledgement."""
        self._begin_leading()
        freshness = Freshness(commit_index, log_time_ms, self._clock.now_ms())
        self._learn(freshness, Confirmed(self._clock.monotonic_ms(), 0.0), applied_index)

    def forget_rounds(self) -> None:
        """Leadership is lost."""
        self._rounds.clear()
        self._leads = False

    def _begin_leading(self) -> None:
        if not self._leads:
            self._leads, self._before_leading = True, self._latest

    def heard(self, freshness: Freshness, applied_index: int, stamper_now_ms: float | None = None) -> None:
        """A confirmed round became known from a peer.

        One from the future was stamped by a clock that is wrong, its sender's or ours: it says nothing. One that was on
        its way for as long as our clock is behind looks new by it: the stamping clock is asked as well, if it can be.

        Args:
            freshness: the round.
            applied_index: of the state.
            stamper_now_ms: what the clock that stamped it says now, as far as that was measured.
        """
        ago_ms = self._clock.now_ms() - freshness.sent_at_ms
        if ago_ms >= -self._max_clock_offset_ms:
            if stamper_now_ms is not None:
                ago_ms = max(ago_ms, ceil(stamper_now_ms - freshness.sent_at_ms))
            bound_ms = self._max_clock_offset_ms
            confirmed = Confirmed(self._clock.monotonic_ms() - ago_ms - bound_ms, bound_ms)
            self._learn(freshness, confirmed, applied_index)

    def _learn(self, freshness: Freshness, confirmed: Confirmed, applied_index: int) -> None:
        if self._latest_confirmed is None or confirmed.at_ms > self._latest_confirmed.at_ms:
            self._latest = freshness
            self._latest_confirmed = confirmed
            self._waiting.add(freshness.commit_index, confirmed)
            self.applied(applied_index)

    def applied(self, index: int) -> None:
        """The node has applied up to `index`."""
        self._reached = self._waiting.reached(index) or self._reached

    def reached_sent_at_ms(self) -> int:
        """When the round that the state has reached was sent, as a time of the own wall clock; 0 = unknown."""
        if self._reached is None:
            return 0
        return int(self._clock.now_ms() - (self._clock.monotonic_ms() - self._reached.at_ms))

    @property
    def reached(self) -> Confirmed | None:
        """The newest moment that the applied state is no older than; None while nothing is known.

        Whoever reads the state and answers later takes it before the read, and passes it to age_ms then.
        """
        return self._reached

    def age_ms(self, reached: Confirmed | None = None) -> int:
        """An upper bound on the age of an eventual read now; -1 while nothing is known.

        The sender's clock may differ from ours by the allowed offset, which counts against us.

        Args:
            reached: as of when the state was read; None = now.
        """
        reached = reached or self._reached
        if reached is None:
            return -1
        return max(0, ceil(self._clock.monotonic_ms() - reached.at_ms))

    def lag_ms(self) -> int:
        """The age as the clocks have it, without the allowed offset: for people to see; -1 while nothing is known."""
        if self._reached is None:
            return -1
        return max(0, ceil(self._clock.monotonic_ms() - self._reached.at_ms - self._reached.bound_ms))
