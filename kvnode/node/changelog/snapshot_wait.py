"""When a replica that needs a snapshot leaves it to a neighbour to fetch it.

A region that returns after long needs one snapshot for each of its replicas, and the WAN is to carry one of them. Who
has no neighbour to follow (choice.py) asks a voter at once. The others wait for the neighbour to have the snapshot:

- NEIGHBOUR_SNAPSHOT_WAIT_MS for a neighbour that is heard to await one itself. So long as well after it was heard
  last: it may have died.
- As long as it gets further. What came before a relapse does not count twice, so that a transfer that begins again and
  again is not waited for for ever. Between two steps NEIGHBOUR_SNAPSHOT_STALL_MS may pass, and MAX_SNAPSHOT_INSTALL_MS
  after the last byte.

Who has waited in vain once asks a voter, waits no more until it has caught up, and stays with that voter as long as its
own snapshot gets further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.codec.membership import Member
from kvnode.node.ports import Awaited


class _Progress:
    """How far a node said last that it is, and for how long that is good (monotonic milliseconds)."""

    __slots__ = ("awaited", "best_bytes", "heard_until_ms", "stalls_at_ms")

    def __init__(self) -> None:
        self.awaited = Awaited(0, 0)
        self.best_bytes = -1
        self.heard_until_ms = 0.0
        self.stalls_at_ms = 0.0

    def says(self, awaited: Awaited, now_ms: float) -> None:
        self.awaited = awaited
        self.heard_until_ms = now_ms + limits.NEIGHBOUR_SNAPSHOT_WAIT_MS
        if awaited.held_bytes > self.best_bytes:
            self.best_bytes = awaited.held_bytes
            is_complete = awaited.is_complete
            patience_ms = limits.MAX_SNAPSHOT_INSTALL_MS if is_complete else limits.NEIGHBOUR_SNAPSHOT_STALL_MS
            self.stalls_at_ms = now_ms + patience_ms

    def is_promising(self, now_ms: float) -> bool:
        return now_ms < self.heard_until_ms and now_ms < self.stalls_at_ms


class SnapshotWait:
    """Whether one replica needs a snapshot, and whether it waits for a neighbour.

    Args:
        clock: of which the monotonic time is read.
        neighbours: those that it prefers to the voters, as of now.
        coming: how much this node has of the snapshot that comes to it.
    """

    def __init__(self, clock: Clock, neighbours: Callable[[], Sequence[Member]], coming: Callable[[], Awaited]) -> None:
        self._clock = clock
        self._neighbours = neighbours
        self._coming = coming
        self._own = _Progress()
        self._since_ms = 0.0
        self._is_over = False
        self._heard: dict[int, _Progress] = {}
        self.is_needed = False

    @property
    def waited_ms(self) -> int:
        """Since a snapshot was first found to be needed."""
        return int(self._clock.monotonic_ms() - self._since_ms) if self.is_needed else 0

    @property
    def neighbour(self) -> tuple[Member, Awaited] | None:
        """The neighbour that is furthest, of those that are waited for, and how far it is."""
        now_ms = self._clock.monotonic_ms()
        heard = [
            (member, self._heard[member.node_id]) for member in self._neighbours() if member.node_id in self._heard
        ]
        found = [(member, progress.awaited) for member, progress in heard if progress.is_promising(now_ms)]
        return max(found, key=lambda one: one[1].held_bytes, default=None)

    def is_neighbour(self, member: Member) -> bool:
        """Whether it is one of those that this replica prefers to the voters."""
        return any(neighbour.node_id == member.node_id for neighbour in self._neighbours())

    def need(self) -> None:
        """A source has said that what comes next is in its log no more."""
        if not self.is_needed:
            self.is_needed = True
            self._since_ms = self._clock.monotonic_ms()

    def settle(self) -> None:
        """A source can go on where this node's log ends."""
        self.is_needed = self._is_over = False
        self._heard.clear()
        self._own = _Progress()

    def hear(self, member: Member, awaited: Awaited) -> None:
        """A source says that it awaits a snapshot itself."""
        if self.is_needed:
            self._heard.setdefault(member.node_id, _Progress()).says(awaited, self._clock.monotonic_ms())

    def is_on(self) -> bool:
        """Whether it waits; once this has been false, it stays so until the need is over."""
        if not self.is_needed or self._is_over or not self._neighbours():
            return False
        now_ms = self._clock.monotonic_ms()
        is_new = now_ms < self._since_ms + limits.NEIGHBOUR_SNAPSHOT_WAIT_MS
        self._is_over = not is_new and self.neighbour is None
        return not self._is_over

    def is_coming(self) -> bool:
        """Whether a snapshot comes to this node and gets further; to be asked now and then."""
        now_ms = self._clock.monotonic_ms()
        self._own.says(self._coming(), now_ms)
        return self._own.is_promising(now_ms)

    def holds_back(self, member: Member) -> bool:
        """Whether that source is to send none; also before it is known that one is needed."""
        if not self._neighbours() or self.is_neighbour(member):
            return False
        return not self.is_needed or self.is_on()
