"""How many sessions there are, and which of them may make room for a new one.

Theory of operation. Whoever opens sessions without end must not fill the state: MAX_SESSIONS_COUNT is the bound. Above
it the session that has been idle longest is closed early, by the same fact in the log by which they expire. That
never breaks exactly-once: a request of a closed session is refused, and if it may have been sent before, as "outcome
unknown"; it is not executed. A session that wrote within MIN_EVICTED_SESSION_IDLE_MS is never closed so; if there is no
other, the new one is refused.

The leader counts in memory, from one scan of the sessions' rows when the first one of its term is opened (2 ms for each
1,000 sessions). The expiries that it remembers may be old, because writes move them; whoever evicts looks again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from kvnode.base import limits
from kvnode.base.errors import KvError, Unavailable
from kvnode.machine.keyspace import SESSION_PREFIX
from kvnode.machine.overlay import Overlay
from kvnode.machine.state_reader import StateReader

_END = SESSION_PREFIX + b"\xff" * 16


class SessionCensus:
    """The sessions of state and overlay together, by an expiry of each that is no later than the true one.

    A heap, whose entries of closed sessions are left in it until they come up or are too many.
    """

    __slots__ = ("_by_expiry", "_open")

    def __init__(self, state: StateReader, overlay: Overlay) -> None:
        self._open: set[bytes] = set()
        self._by_expiry: list[tuple[int, bytes]] = []
        start = SESSION_PREFIX
        while True:
            page = state.scan(start, _END, limits.SCAN_PAGE_COUNT)
            for row in page:
                if overlay.get(row.key) is not None:  # else a tick in flight has closed it
                    self.opened(row.key[len(SESSION_PREFIX) :], row.expire_at_ms)
            if len(page) < limits.SCAN_PAGE_COUNT:
                return
            start = page[-1].key + b"\x00"

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, client_id: bytes, expire_at_ms: int) -> None:
        """It is open, and expires then."""
        self._open.add(client_id)
        heapq.heappush(self._by_expiry, (expire_at_ms, client_id))
        if len(self._by_expiry) > 2 * len(self._open) + limits.SCAN_PAGE_COUNT:
            self._by_expiry = [entry for entry in self._by_expiry if entry[1] in self._open]
            heapq.heapify(self._by_expiry)

    def closed(self, client_id: bytes) -> None:
        """It is open no more."""
        self._open.discard(client_id)

    def idle_longest(self, expiry: Callable[[bytes], int]) -> bytes:
        """The session that expires first, b"" when there is none. `expiry` says when one truly does; 0 = it is closed.

        Cost: the logarithm of their number, for each whose expiry has moved since it was last looked at.
        """
        while self._by_expiry:
            remembered, client_id = self._by_expiry[0]
            true = expiry(client_id) if client_id in self._open else 0
            if true == remembered:
                return client_id
            if true:
                heapq.heapreplace(self._by_expiry, (true, client_id))
            else:
                self.closed(client_id)
                heapq.heappop(self._by_expiry)
        return b""


def is_evictable(expire_at_ms: int, log_time_ms: int) -> bool:
    """Whether a session is certain to have written nothing for MIN_EVICTED_SESSION_IDLE_MS.

    A write moves the expiry whenever less than SESSION_TTL_MS is left of it (sessions.py), so that none came later than
    SESSION_TTL_MS before it.
    """
    return log_time_ms - (expire_at_ms - limits.SESSION_TTL_MS) >= limits.MIN_EVICTED_SESSION_IDLE_MS


def too_many_sessions() -> KvError:
    """The error for an opening that finds no room."""
    return Unavailable(
        f"{limits.MAX_SESSIONS_COUNT} sessions are open, and each wrote within the last minutes: use one client for "
        "many operations, or try again later",
        code="TOO_MANY_SESSIONS",
        phase="leader",
    )
