"""Reads that wait for the loop's next turn: what comes at one moment may be far more than may hold the loop.

One message can bring thousands of reads, and one round confirm as many; each may be of a megabyte. What is answered in
one pass of the loop is counted as bytes of values that are read in the same time (machine/read.py), and above
MAX_READ_TURN_BYTES the rest waits here for the passes that follow. What comes later does not queue up behind it: each
pass first lets those that waited have as much, and then begins to count anew for those that come. Those that wait have
their turn by whose they are (read_batch.py, Lane): client by client, of each the small and the others in turn, each of
these in the order in which they came. So a flood of large reads is slow, and everybody else's reads go on beside it,
also what came at the same moment. (All that comes without a session, over KV Connect say, is one client's.)

Counting costs an addition and a comparison a read. Only a quarter of the bound asks for the next pass, in which the
count begins anew: small reads, a few of them in each pass, share that among many.

What waits is not forgotten: `sweep` answers what is past its deadline, and its owner takes it back with the leadership
or at the end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.node.calls import Call
from kvnode.node.read_batch import Lane, ReadBatch, lane_of

_LOOK_AHEAD_BYTES = limits.MAX_READ_TURN_BYTES // 4
_MAX_SWEPT_COUNT = 512  # answered at a time: one message's reads all have one deadline


class WaitingRead(NamedTuple):
    """A read, or a batch of them in one lane; it has passed its barrier if it is strong."""

    call: Call
    strong: bool
    lane: Lane


class ReadTurns:
    """Counts what reads take, and keeps what does not fit.

    Args:
        go_on: answers what waits, from its beginning (`next`), for as long as `is_over` is false.
    """

    def __init__(self, go_on: Callable[[], None]) -> None:
        self._go_on = go_on
        self._took_bytes = 0
        self._waiting: dict[Lane, deque[WaitingRead]] = {}  # in the order of their turns
        self._is_scheduled = False
        self._earliest_deadline_ms = float("inf")

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def is_over(self) -> bool:
        """Whether what is read from now on has to wait."""
        return self._took_bytes >= limits.MAX_READ_TURN_BYTES

    @property
    def room_bytes(self) -> int:
        """What may be read before that."""
        return limits.MAX_READ_TURN_BYTES - self._took_bytes

    def took(self, size_bytes: int) -> None:
        """So much was read."""
        self._took_bytes += size_bytes
        if self._took_bytes >= _LOOK_AHEAD_BYTES and not self._is_scheduled:
            self._schedule()

    def wait(self, call: Call, *, strong: bool) -> None:
        """Keep a read for a later pass, behind the others of its lane."""
        if isinstance(call, ReadBatch):
            for lane, batch in call.by_lane():
                self._add(WaitingRead(batch, strong, lane))
        else:
            assert call.operation is not None
            self._add(WaitingRead(call, strong, lane_of(call.operation, call.origin)))
        self._earliest_deadline_ms = min(self._earliest_deadline_ms, call.deadline_ms)
        if not self._is_scheduled:
            self._schedule()

    def wait_first(self, waiting: WaitingRead) -> None:
        """Keep what `next` returned before the others of its lane: a part of it was answered."""
        self._waiting.setdefault(waiting.lane, deque()).appendleft(waiting)

    def next(self) -> WaitingRead | None:
        """Whose turn it is, and who waits no longer; None if that is nobody, or this pass is over."""
        while self._waiting and not self.is_over:
            lane = next(iter(self._waiting))
            queue = self._waiting.pop(lane)
            found = queue.popleft()
            if queue:
                self._waiting[lane] = queue  # behind the other lanes
            if not found.call.done:
                return found
        return None

    def take_strong(self) -> list[Call]:
        """Those that only a leader may answer; they wait here no longer."""
        taken = [waiting.call for waiting in self._all() if waiting.strong]
        if taken:
            self._keep([waiting for waiting in self._all() if not waiting.strong])
        return taken

    def take_all(self) -> list[Call]:
        """All; nobody waits here then."""
        taken = [waiting.call for waiting in self._all()]
        self._waiting.clear()
        return taken

    def sweep(self, now_ms: float, error: Callable[[Call], KvError]) -> None:
        """Answer what is past its deadline with `error(call)`; if that is a lot, some of it with each sweep."""
        if now_ms < self._earliest_deadline_ms:
            return
        kept: list[WaitingRead] = []
        swept: list[Call] = []
        swept_count = 0
        for waiting in self._all():
            call = waiting.call
            if call.done:
                continue
            if now_ms >= call.deadline_ms and swept_count < _MAX_SWEPT_COUNT:
                swept_count += call.reads_count
                swept.append(call)
            else:
                kept.append(waiting)
        self._keep(kept)
        self._earliest_deadline_ms = min((waiting.call.deadline_ms for waiting in kept), default=float("inf"))
        for call in swept:  # at the end: whoever is told may ask again
            call.fail(error(call))

    def _all(self) -> list[WaitingRead]:
        return list(chain.from_iterable(self._waiting.values()))

    def _keep(self, kept: list[WaitingRead]) -> None:
        self._waiting = {}
        for waiting in kept:
            self._add(waiting)

    def _add(self, waiting: WaitingRead) -> None:
        self._waiting.setdefault(waiting.lane, deque()).append(waiting)

    def _schedule(self) -> None:
        self._is_scheduled = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        self._took_bytes = 0
        if self._waiting:
            self._schedule()  # first: whatever one of them raises, the others have their turn
            self._go_on()
            self._took_bytes = 0
