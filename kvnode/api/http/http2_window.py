"""The windows of one connection of HTTP/2 (RFC 9113, 5.2) that two servers answer: granian, and the direct way.

What the client takes is kept here as a whole. Granian is granted a part of it, and more as it uses that up; the rest is
for the direct way. A client gives windows back only once it has read much of them (half, as a rule), so what one of
the two does not use must not stay with it: the part is small beside MIN_SHARED_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.api.http.http2_frames import WINDOW_UPDATE, frame

GRANT_BYTES = 1_048_576  # what granian has at most
MIN_SHARED_BYTES = 4 * GRANT_BYTES
FIRST_WINDOW_BYTES = 65_535  # of a connection, and of a stream unless settings say otherwise
MAX_WINDOW_BYTES = 2**31 - 1
_GIVE_BACK_BYTES = 32_768


class SharedWindow:
    """The client's window, as long as it is large enough to be shared; else it is granian's alone.

    Args:
        to_server: sends frames to granian.
        to_client: sends frames to the client.
        may_share: whether anything is answered directly.
    """

    def __init__(self, to_server: Callable[[bytes], None], to_client: Callable[[bytes], None], may_share: bool) -> None:
        self._to_server = to_server
        self._to_client = to_client
        self._may_share = may_share
        self.is_shared = False
        self.pool_bytes = FIRST_WINDOW_BYTES
        self.granted_bytes = FIRST_WINDOW_BYTES  # of the pool
        self._most_bytes = FIRST_WINDOW_BYTES  # that the pool has had
        self._received_bytes = 0  # of the node's window, not given back yet
        self.on_given: Callable[[], None] = lambda: None  # called when the client has taken more

    @property
    def room_bytes(self) -> int:
        """What may be answered directly now."""
        return self.pool_bytes - self.granted_bytes

    def has_left(self, part: float, owed_bytes: int) -> bool:
        """Whether such a part of what the client takes is left for direct answers once it has what it is owed."""
        return not self.is_shared or self.pool_bytes - GRANT_BYTES - owed_bytes >= part * self._most_bytes

    @property
    def overflows(self) -> bool:
        """Whether the client has given more than a window may be."""
        return self.pool_bytes > MAX_WINDOW_BYTES

    def given(self, by_bytes: int) -> bytes | None:
        """The client takes more: what granian is told instead; None = just that."""
        if not by_bytes:
            return None  # granian says what is wrong
        if not self.is_shared:
            if not self._may_share or by_bytes < MIN_SHARED_BYTES:
                self._may_share = False  # and so it stays: what granian has left is not known from here on
                return None
            self.is_shared = True
        self.pool_bytes += by_bytes
        self._most_bytes = max(self._most_bytes, self.pool_bytes)
        self.on_given()
        return self._grant()

    def used_by_granian(self, size_bytes: int) -> None:
        """Of bodies."""
        self._may_share = self.is_shared
        if self.is_shared:
            self.pool_bytes -= size_bytes
            self.granted_bytes -= size_bytes
            if grant := self._grant():
                self._to_server(grant)

    def use(self, size_bytes: int) -> None:
        """Answered directly; at most room_bytes."""
        self.pool_bytes -= size_bytes

    def received(self, size_bytes: int) -> None:
        """The client has used so much of the node's own window for bodies that granian does not see: give it back."""
        self._received_bytes += size_bytes
        if self._received_bytes >= _GIVE_BACK_BYTES:
            received, self._received_bytes = self._received_bytes, 0
            self._to_client(frame(WINDOW_UPDATE, 0, 0, received.to_bytes(4, "big")))

    def _grant(self) -> bytes:
        """A frame that lets granian send more; empty when it has enough, or there is no more."""
        if self.granted_bytes > GRANT_BYTES // 2:
            return b""
        more = min(GRANT_BYTES - self.granted_bytes, self.room_bytes)
        if more <= 0:
            return b""
        self.granted_bytes += more
        return frame(WINDOW_UPDATE, 0, 0, more.to_bytes(4, "big"))
