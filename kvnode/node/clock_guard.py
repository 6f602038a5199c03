"""Whose clock may set log time.

A node whose clock is far from the voters' median would, as leader, let keys expire early or hold them for
ever; so it does not campaign and steps down. One or two voters, as a failover may leave them, are no jury: there
the members of all regions are asked too, and those that died lately have their say. The offsets come from round
trips to the peers, and the sample with the shortest recent round trip is kept (Cristian's algorithm: its error is
at most half of that trip). A sample is kept against our monotonic clock, so that a step of our own wall clock shows
at once, also while no peer can be asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from kvnode.base.clock import Clock

_log = logging.getLogger(__name__)

# A peer that has died still bears witness: at 100 ppm the two clocks drift apart by 60 ms in this time.
SAMPLE_LIFETIME_MS = 600_000
HOLD_MS = 60_000  # so long a lone voter that hears nobody goes by the log's time and not by its clock
JURY_COUNT = 3  # clocks of voters, ours among them, that can tell which of them is wrong


class ClockGuard:
    """Keeps the peers' offsets (their clock minus ours, milliseconds) and judges our own clock by them."""

    def __init__(self, clock: Clock, max_offset_ms: int) -> None:
        self._clock = clock
        self._max_offset_ms = max_offset_ms
        # peer: its wall clock minus our monotonic one, round trip, taken at
        self._samples: dict[int, tuple[float, float, float]] = {}

    def sample(self, peer: int, theirs_ms: float, round_trip_ms: float) -> None:
        """Take in one measurement of a peer's wall clock minus our monotonic one."""
        now = self._clock.monotonic_ms()
        old = self._samples.get(peer)
        fresh_ms = 5_000
        moved = old is not None and abs(old[0] - theirs_ms) > old[1] / 2 + round_trip_ms / 2
        if old is None or moved or round_trip_ms <= old[1] or now - old[2] > fresh_ms:
            self._samples[peer] = (theirs_ms, round_trip_ms, now)

    def now_of(self, peer: int) -> float | None:
        """What a peer's wall clock says now, as it was measured last, whatever ours says; None = it was not."""
        taken, now_ms = self._samples.get(peer), self._clock.monotonic_ms()
        return taken[0] + now_ms if taken is not None and now_ms - taken[2] <= SAMPLE_LIFETIME_MS else None

    def offset_ms(self, voters: Sequence[int], members: Iterable[int] = ()) -> float:
        """Our clock minus the median of the others' and it; 0 while it lies between the two middle ones.

        Args:
            voters: the other ones.
            members: all others, who count where the voters are too few.
        """
        known = sorted([0.0, *self._known(voters if len(voters) + 1 >= JURY_COUNT else members)])
        low, high = known[(len(known) - 1) // 2], known[len(known) // 2]
        if low <= 0.0 <= high:
            return 0.0
        return -low if low > 0 else -high

    def trusted(self, voters: Sequence[int], members: Sequence[int] = ()) -> bool:
        """Whether this node's clock may set log time: the clocks of a majority of the voters agree with it.

        Which is more than to be near the median of those that were heard: of two clocks that differ, either would
        be. Those who could elect us can also be asked, so a majority of sound clocks always finds its leader. Of two
        voters that differ there is none; then a majority of all the members says who is right.

        Args:
            voters: the other ones.
            members: all others, who count where the voters are too few.
        """
        if self._is_majority(voters):
            return True
        return len(voters) + 1 < JURY_COUNT and bool(members) and self._is_majority(members)

    def _is_majority(self, others: Sequence[int]) -> bool:
        return 2 * (self._agreeing_count(others) + 1) > len(others) + 1

    def outvoted(self, voters: Sequence[int], members: Iterable[int]) -> bool:
        """Whether the voters are too few to judge, and most of all the members that were heard disagree with us.

        Enough to keep a node from standing for election, not to depose a leader: what it goes by is its clock as of
        its election (LogTime), and replicas are not to stop those whom they follow.

        Args:
            voters: the other ones.
            members: all others.
        """
        if len(voters) + 1 >= JURY_COUNT:
            return False
        heard = [member for member in members if self._known([member])]
        return 2 * (self._agreeing_count(heard) + 1) < len(heard) + 1

    def is_witnessed(self, voters: Sequence[int], members: Iterable[int]) -> bool:
        """Whether somebody agrees with our clock, or there is nobody in the cluster who could.

        Other voters have, or we would not be elected; a lone one may have heard nobody since its start.

        Args:
            voters: the other ones.
            members: all others.
        """
        members = list(members)
        return bool(voters) or not members or self._agreeing_count(members) > 0

    def _agreeing_count(self, others: Iterable[int]) -> int:
        return sum(abs(offset) <= self._max_offset_ms for offset in self._known(others))

    def _known(self, others: Iterable[int]) -> list[float]:
        now = self._clock.monotonic_ms()
        ours = self._clock.now_ms() - now
        samples = (self._samples.get(other) for other in others)
        return [taken[0] - ours for taken in samples if taken is not None and now - taken[2] <= SAMPLE_LIFETIME_MS]


class LogTime:
    """The leader's source of log time: its wall clock, but never backwards and never far ahead.

    A wall clock that steps forward may not carry log time with it: it is held to what the monotonic clock
    has counted since the anchor, plus the allowed offset. The anchor is the wall clock at the election.

    A lone voter whom nobody has told the time since its start may have come up with a wrong clock, and nothing would
    show it. It goes on from where the log's own time stands, which is late by as long as it was down and never early,
    until somebody agrees with its clock; or for HOLD_MS, if nobody can be heard at all.
    """

    def __init__(self, clock: Clock, max_offset_ms: int) -> None:
        self._clock = clock
        self._max_offset_ms = max_offset_ms
        self._anchor_wall_ms = clock.now_ms()
        self._anchor_monotonic_ms = clock.monotonic_ms()
        self.is_held = False

    def begin(self, log_time_ms: int, *, is_witnessed: bool) -> None:
        """An election was won with a trusted clock.

        Args:
            log_time_ms: where the log's time stands; 0 = it has none yet.
            is_witnessed: whether others agree with the wall clock, or there are none.
        """
        self._anchor(self._clock.now_ms())
        self.is_held = not is_witnessed and log_time_ms > 0
        if self.is_held:
            self._anchor_wall_ms = min(self._anchor_wall_ms, log_time_ms)
            _log.warning(
                "nobody has told this node the time since its start: until another member does, for %d s at most, keys "
                "expire and messages fall due by the log's own time, which has stood still while the node was down",
                HOLD_MS // 1_000,
            )

    def look(self, *, is_witnessed: bool, outvoted: bool) -> None:
        """Go by the wall clock again once somebody agrees with it, or nobody has been heard for long."""
        waited_ms = self._clock.monotonic_ms() - self._anchor_monotonic_ms
        if is_witnessed or (waited_ms >= HOLD_MS and not outvoted):
            self._anchor(self._clock.now_ms())
            self.is_held = False

    def _anchor(self, wall_ms: int) -> None:
        self._anchor_wall_ms = wall_ms
        self._anchor_monotonic_ms = self._clock.monotonic_ms()

    def next_ms(self, previous_ms: int) -> int:
        """Log time of the next entry, given that of the one before."""
        elapsed = self._clock.monotonic_ms() - self._anchor_monotonic_ms
        ceiling = int(self._anchor_wall_ms + elapsed) + self._max_offset_ms
        return max(previous_ms, min(self._clock.now_ms(), ceiling))
