"""Heads of requests that have come before, byte for byte.

A client of an API writes the same request line and headers again and again; only the body differs. Parsing them costs
more than answering a small request: a callback for each header. So the head of a request that was parsed, and answered
with 200, is remembered with what it said. When the same bytes begin a message anew, and the body behind them is as
long as they say, they mean the same, and nothing is parsed.

Only a POST with a content-length is remembered, over HTTP/1.1 on a connection that stays open; of HTTP/2, which its
library has parsed, the fields, so that what was worked out from them is kept. A head takes part in no decision: whoever
knows its bytes gets what they say, and tokens in them are judged at every request.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvnode.base import limits

END = b"\r\n\r\n"
_UNFIT = frozenset((b"transfer-encoding", b"expect", b"upgrade"))


class KnownHead:
    """A head and what it says.

    Attributes:
        note: for the handler: what it has worked out from this head; None at first.
    """

    __slots__ = ("body_bytes", "headers", "note", "url")

    def __init__(self, url: bytes, headers: dict[bytes, bytes], body_bytes: int) -> None:
        self.url = url
        self.headers = headers
        self.body_bytes = body_bytes
        self.note: object = None

    def with_body_of(self, body_bytes: int) -> KnownHead:
        """The same in front of a body of another length."""
        headers = self.headers | {b"content-length": b"%d" % body_bytes}
        head = KnownHead(self.url, headers, body_bytes)
        head.note = self.note  # what is to be done does not hang on the length
        return head


class KnownHeads:
    """The heads that one server remembers; of too many, the one that came first is forgotten."""

    def __init__(self) -> None:
        self._heads: dict[Hashable, KnownHead] = {}
        self.get = self._heads.get

    def __len__(self) -> int:
        return len(self._heads)

    def remember(self, head: Hashable, url: bytes, headers: dict[bytes, bytes]) -> KnownHead:
        """A request with that head was parsed and answered well; returns what is known of it.

        Args:
            head: its bytes, or what HTTP/2 has in their place.
            url: what it asks for.
            headers: by lower-case name; content-length is among them.
        """
        known = self._heads.get(head)
        if known is not None:
            return known
        if len(self._heads) >= limits.MAX_KNOWN_HEADS_COUNT:
            del self._heads[next(iter(self._heads))]
        known = self._heads[head] = KnownHead(url, headers, int(headers[b"content-length"]))
        return known


def head_to_remember(message: bytes, headers: dict[bytes, bytes]) -> bytes:
    """The head of a message that was parsed as one whole request; empty when it is not fit to be remembered."""
    end = message.find(END) + len(END)
    declared = headers.get(b"content-length", b"")
    if not len(END) <= end <= limits.MAX_KNOWN_HEAD_BYTES or not declared.isdigit():
        return b""
    if int(declared) != len(message) - end or not _UNFIT.isdisjoint(headers):
        return b""
    return message[:end]
