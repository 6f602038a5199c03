"""What a new leader does for the leases that it finds: their time stood still while nobody led.

Lease expiry is judged by log time, and log time moves on by the leader's clock even over the time in which there was no
leader and no consumer could have extended anything. So a new leader's first entries move the expiry of every lease that
was live when somebody led last by the gap between that and its own first log time: each then has as much time left as
it had. Until that is done nothing else is resolved.

When somebody led last, the newest heartbeat round says that a quorum is known to have acknowledged, by that leader's
clock, or the last entry, if that is later; the new leader's own rounds do not count. The last entry alone would not do:
on a quiet log a lease whose holder is dead would get back all the time of each leader that had nothing to write, and
not end while leaders change often.
"""

from __future__ import annotations

from kvnode.codec.row import Row
from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES
from kvnode.machine.queue.keys import SPACES_END, SPACES_START, lease_bounds
from kvnode.machine.state_reader import StateReader


class LeaseGrace:
    """Walks the leases of the state, over all databases, once.

    Args:
        state: as the leader found it.
        last_led_ms: when somebody led last.
        gap_ms: between that and its own first log time.
    """

    __slots__ = ("_at", "_last_led_ms", "_state", "gap_ms")

    def __init__(self, state: StateReader, last_led_ms: int, gap_ms: int) -> None:
        self._state = state
        self._last_led_ms = last_led_ms
        self._at = SPACES_START
        self.gap_ms = gap_ms

    @property
    def done(self) -> bool:
        """Whether no lease is left to look at."""
        return self._at >= SPACES_END

    @property
    def place(self) -> bytes:
        """How far it has come; `rewind` goes back there."""
        return self._at

    def rewind(self, place: bytes) -> None:
        """What was done since did not enter the log."""
        self._at = place

    def next(self, limit: int) -> list[Row]:
        """The next leases that were live, with their new expiry; looks at `limit` of them at most."""
        if not self.gap_ms:
            self._at = SPACES_END
        extended: list[Row] = []
        looked_at = 0
        while looked_at < limit and not self.done:
            first = self._state.scan_keys(self._at, SPACES_END, 1)
            if not first:
                self._at = SPACES_END
                break
            start, end = lease_bounds(first[0][:DATABASE_PREFIX_BYTES])
            if first[0] >= end:
                self._at = _after_space(first[0])
                continue
            page = self._state.scan(max(start, self._at), end, limit - looked_at)
            looked_at += len(page)
            extended.extend(
                row._replace(expire_at_ms=row.expire_at_ms + self.gap_ms)
                for row in page
                if row.expire_at_ms > self._last_led_ms
            )
            self._at = page[-1].key + b"\x00" if looked_at >= limit else _after_space(first[0])
        return extended


def _after_space(key: bytes) -> bytes:
    number = int.from_bytes(key[:DATABASE_PREFIX_BYTES], "big") + 1
    return number.to_bytes(DATABASE_PREFIX_BYTES, "big") if number >> 32 == 0 else SPACES_END
