"""The leader lease (Ongaro's thesis, 6.4.1): strong reads without a round of heartbeats.

The voters hold their votes as raft/holds.py says; here the time is kept. The lease of a round begins when the round is
*sent*, not when it is answered, on a clock that runs on while the process is frozen, and lasts as long as the shortest
hold of a majority, less a twentieth: clocks may run apart by so much. A read is confirmed by it before the rows are
read, and once more when the answer is given: whatever held the process up in between, the lease was good when the rows
had been read, so nobody else had committed anything that they lack. If it was not, the read goes back and asks.

Cost: two comparisons of a clock for each read or batch of reads; no message that is not sent anyway, a few bytes in
each heartbeat. What it saves: a round of heartbeats (on a leader of three two messages out and two in, and two
wake-ups of other processes) for each batch of reads, and its round trip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from kvnode.base import limits
from kvnode.raft.raft import Raft

_KEPT_COUNT = 64  # rounds on their way


class _Round(NamedTuple):
    number: int
    sent_at_ms: float
    term: int
    membership_index: int


def usable_ms(hold_ms: int) -> int:
    """For how long after the sending a hold is believed."""
    return hold_ms - hold_ms // limits.LEADER_LEASE_MARGIN_PARTS


class LeaderLease:
    """The lease of one node; it has none while another leads.

    Args:
        raft: the core.
        now_ms: a monotonic clock that runs on while the process is frozen.
    """

    def __init__(self, raft: Raft, now_ms: Callable[[], float]) -> None:
        self._raft = raft
        self._now_ms = now_ms
        self._sent: deque[_Round] = deque(maxlen=_KEPT_COUNT)
        self._acknowledged = 0
        self._until_ms = 0.0
        self._round = _Round(0, 0.0, 0, 0)  # the one that the lease is of

    def round_sent(self, number: int, term: int) -> None:
        """This heartbeat round is about to be sent, to the first of its receivers."""
        if not self._sent or self._sent[-1].number < number:
            self._sent.append(_Round(number, self._now_ms(), term, self._raft.history.latest_index))

    def _learn(self) -> None:
        """Take note of the newest round that a majority has answered."""
        self._acknowledged = self._raft.quorum_round_acknowledged
        newest = None
        while self._sent and self._sent[0].number <= self._acknowledged:
            newest = self._sent.popleft()
        if newest is None:
            return
        hold_ms = self._raft.quorum_hold_ms
        if hold_ms:
            self._round = newest
            self._until_ms = newest.sent_at_ms + usable_ms(hold_ms)

    def remaining_ms(self) -> float:
        """For how long it is held; 0 or less = it is not."""
        raft = self._raft
        if not raft.may_lease:
            return 0.0
        if raft.quorum_round_acknowledged != self._acknowledged:
            self._learn()
        if self._round.term != raft.term or self._round.membership_index != raft.history.latest_index:
            return 0.0
        return self._until_ms - self._now_ms()

    def holds(self) -> bool:
        """Whether nobody else can have been elected up to now."""
        return self.remaining_ms() > 0
