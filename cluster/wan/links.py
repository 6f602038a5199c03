"""The links between sites: what enters one leaves it in order, its delay later, or once it is healed.

A link is one direction between two sites. A cut link keeps what it holds, as TCP would send it again after an outage;
those who send into it are paused before long (connections.py), so what it holds is bounded.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.wan.timer import ExactTimer

Arrival = Callable[[], None]
_EARLY_S = 0.00005  # what is due so soon is not worth another wake-up


@dataclass(slots=True)
class Link:
    """One direction.

    Args:
        source, target: names of sites.
        delay_s: one way.
        is_cut: whether what it holds stays.
        carried_bytes: since the start.
        is_scheduled: whether its next arrival is among those that the timer waits for.
    """

    source: str
    target: str
    delay_s: float = 0.0
    is_cut: bool = False
    carried_bytes: int = 0
    is_scheduled: bool = False
    under_way: deque[tuple[float, Arrival]] = field(default_factory=deque)


class Links:
    """All links, and the one timer that they share. A link has no delay until it is given one."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], Link] = {}
        self._due: list[tuple[float, int, Link]] = []  # links by the time of their next arrival
        self._serials = itertools.count()
        self._timer = ExactTimer(self._deliver)

    def link(self, source: str, target: str) -> Link:
        """The link from one site to another."""
        found = self._links.get((source, target))
        if found is None:
            found = self._links[source, target] = Link(source, target)
        return found

    def all(self) -> list[Link]:
        """Those that were ever named."""
        return list(self._links.values())

    def send(self, link: Link, arrival: Arrival) -> None:
        """Call `arrival` when the link's delay is over, after all that was sent before."""
        due = time.monotonic() + link.delay_s
        if link.under_way:
            due = max(due, link.under_way[-1][0])  # a delay that was shortened does not reorder
        link.under_way.append((due, arrival))
        self._schedule(link)

    def cut(self, source: str, target: str) -> None:
        """From now on nothing arrives over this link."""
        self.link(source, target).is_cut = True

    def heal(self, source: str, target: str) -> None:
        """What was held arrives, and what is sent from now on."""
        link = self.link(source, target)
        link.is_cut = False
        self._schedule(link)

    def set_delay(self, source: str, target: str, delay_s: float) -> None:
        """The delay of what is sent from now on."""
        self.link(source, target).delay_s = delay_s

    def close(self) -> None:
        """Nothing arrives any more."""
        self._timer.close()

    def _schedule(self, link: Link) -> None:
        if link.under_way and not link.is_cut and not link.is_scheduled:
            due = link.under_way[0][0]
            link.is_scheduled = True
            heapq.heappush(self._due, (due, next(self._serials), link))
            self._timer.arm(due)

    def _deliver(self) -> None:
        now = time.monotonic() + _EARLY_S
        while self._due and self._due[0][0] <= now:
            link = heapq.heappop(self._due)[2]
            link.is_scheduled = False
            under_way = link.under_way
            while under_way and under_way[0][0] <= now and not link.is_cut:
                under_way.popleft()[1]()
            self._schedule(link)
        if self._due:
            self._timer.arm(self._due[0][0])
