"""What clients of HTTP/2 have asked for and do not read: bounded, because granian keeps whatever it is given.

Answers past granian (http2_direct.py) are counted with the others, for as long as they wait for the client's window.
An account is kept of each stream that is given more than a little: what its handler has handed to granian, less what
the pipe has seen go out. A response of many chunks (a watch, a listener) waits with its next chunk until its client has
read nearly all of those before, so that a watch leaves states out instead of gathering them. Whole responses are there
already; beyond a bound for each connection and one for all, what would be one more is refused instead (where it
tells of a change, a small answer says that its outcome is not known: Response.instead), and a connection that takes
nothing of one for HTTP_SEND_TIMEOUT_MS is ended, as over HTTP/1.1.

Smaller responses are not counted: a connection has MAX_HTTP2_STREAMS_COUNT at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.api.http.known_heads import KnownHead
from kvnode.api.http.messages import Response
from kvnode.base import limits

_SWEEP_S = 1.0
_REFUSAL = Response(503, b"The server is temporarily unavailable, try again later: much that it sent is not read.\n")


class Account:
    """Of one stream.

    Args:
        connection: what it is one of.
        whole: its response is one body, and not chunks that wait for each other.
    """

    __slots__ = (
        "_connection",
        "_room",
        "_withheld_bytes",
        "ended",
        "moved_at_s",
        "owed_bytes",
        "unread_bytes",
        "whole",
    )

    def __init__(self, connection: ConnectionAccounts, *, whole: bool) -> None:
        self._connection = connection
        self.whole = whole
        self.owed_bytes = 0
        self.unread_bytes = 0  # gone out, and not said to be read
        self.ended = False
        self.moved_at_s = asyncio.get_running_loop().time()
        self._room: asyncio.Event | None = None
        self._withheld_bytes = 0

    def hand(self, size_bytes: int) -> None:
        """Bytes are given to granian."""
        if not self.ended:
            if not self.owed_bytes:
                self.moved_at_s = asyncio.get_running_loop().time()
            self._change(size_bytes)

    def sent(self, size_bytes: int) -> None:
        """Bytes have gone out."""
        self.moved_at_s = asyncio.get_running_loop().time()
        self.unread_bytes += size_bytes
        self._change(-size_bytes)
        self._wake()

    def reads(self, by_bytes: int) -> None:
        """The client has read so much."""
        self.unread_bytes = max(0, self.unread_bytes - by_bytes)
        self._wake()

    def end(self) -> None:
        """Nothing more goes out."""
        self._change(-self.owed_bytes)
        self.ended = True
        self._wake()

    async def room(self, withheld_bytes: int = 0) -> None:
        """Return once nearly all is out that was given to granian and the client may be sent more, or is gone.

        Args:
            withheld_bytes: of what is owed, that granian was not given yet.
        """
        self._withheld_bytes = withheld_bytes
        while not self._has_room():
            self._room = asyncio.Event()
            await self._room.wait()

    def _change(self, by_bytes: int) -> None:
        self.owed_bytes += by_bytes
        self._connection.change(by_bytes)

    def _wake(self) -> None:
        if self._room is not None and self._has_room():
            self._room.set()
            self._room = None

    def _has_room(self) -> bool:
        is_out = self.owed_bytes - self._withheld_bytes <= limits.MAX_HTTP2_UNREAD_CHUNKS_BYTES
        return self.ended or (is_out and (self.whole or self._connection.may_go_on(self.unread_bytes)))

    def eased(self) -> None:
        """The client takes more on the connection."""
        self._wake()


class ConnectionAccounts:
    """Of one connection's streams.

    Args:
        unread: of all connections.
        cut: ends the connection.
    """

    def __init__(self, unread: Unread, cut: Callable[[], None]) -> None:
        self._unread = unread
        self._cut = cut
        self.learn: Callable[[int, KnownHead], None] = lambda stream, head: None  # what a stream's head says
        self.may_go_on: Callable[[int], bool] = lambda unread_bytes: True  # a stream of chunks that are not read
        self._accounts: dict[int, Account] = {}
        self._ended: dict[int, None] = {}  # before their handlers have answered, the oldest first
        self.owed_bytes = 0

    def change(self, by_bytes: int) -> None:
        """Of what is owed."""
        self.owed_bytes += by_bytes
        self._unread.owed_bytes += by_bytes

    def eased(self) -> None:
        """The client takes more on the connection."""
        for account in self._accounts.values():
            account.eased()

    def open(self, stream: int, *, whole: bool) -> Account:
        """The account of a stream, which is kept until it ends."""
        account = Account(self, whole=whole)
        if stream in self._ended:
            account.end()
        else:
            self._accounts[stream] = account
        return account

    def reserve(self, stream: int, response: Response) -> tuple[Response, Account | None]:
        """What is to be sent for a whole response: itself, or a small one when too much waits to be read already.

        And its account, if it has one.
        """
        size_bytes = len(response.body)
        if size_bytes <= limits.HTTP2_UNCOUNTED_BYTES:
            return response, None
        if (
            self.owed_bytes + size_bytes > max(size_bytes, limits.MAX_HTTP2_UNREAD_CONNECTION_BYTES)
            or self._unread.owed_bytes + size_bytes > limits.MAX_HTTP2_UNREAD_BYTES
        ):
            return response.instead or _REFUSAL, None
        account = self.open(stream, whole=True)
        account.hand(size_bytes)
        return response, account

    def sent(self, stream: int, size_bytes: int) -> None:
        """Bytes of a body have gone out."""
        account = self._accounts.get(stream)
        if account is not None:
            account.sent(size_bytes)

    def reads(self, stream: int, by_bytes: int) -> None:
        """The client takes more of a stream."""
        account = self._accounts.get(stream)
        if account is not None:
            account.reads(by_bytes)

    def end(self, stream: int) -> None:
        """A stream has come to its end, or was reset."""
        account = self._accounts.pop(stream, None)
        if account is not None:
            account.end()

    def reset(self, stream: int) -> None:
        """The client wants no more of a stream, whose handler may not have answered yet."""
        if stream not in self._accounts:
            self._ended[stream] = None
            if len(self._ended) > limits.MAX_HTTP2_STREAMS_COUNT:
                del self._ended[next(iter(self._ended))]
        self.end(stream)

    def end_all(self) -> None:
        """The connection is gone."""
        for stream in list(self._accounts):
            self.end(stream)

    def cut_if_stuck(self, now_s: float) -> None:
        """End the connection if it takes nothing of a whole response."""
        since_s = now_s - limits.HTTP_SEND_TIMEOUT_MS / 1_000
        if any(a.whole and a.owed_bytes and a.moved_at_s < since_s for a in self._accounts.values()):
            self._cut()


class Unread:
    """Of all connections."""

    def __init__(self) -> None:
        self.owed_bytes = 0
        self._connections: dict[int, ConnectionAccounts] = {}
        self._next = 1
        self._sweep: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look for connections that are stuck."""
        self._sweep = asyncio.get_running_loop().call_later(_SWEEP_S, self._find_stuck)

    def stop(self) -> None:
        """Stop looking."""
        if self._sweep is not None:
            self._sweep.cancel()

    def connect(self, cut: Callable[[], None]) -> tuple[int, ConnectionAccounts]:
        """A new connection's number and accounts."""
        number, self._next = self._next, self._next + 1
        connection = self._connections[number] = ConnectionAccounts(self, cut)
        return number, connection

    def disconnect(self, number: int) -> None:
        """A connection is gone."""
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.end_all()

    def find(self, mark: str) -> tuple[ConnectionAccounts, int] | None:
        """The connection and stream of a request, by its mark; None = they are gone."""
        number, _, stream = mark.partition("-")
        if not stream:
            return None
        connection = self._connections.get(int(number))
        return None if connection is None else (connection, int(stream))

    def _find_stuck(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in list(self._connections.values()):
            if connection.owed_bytes:
                connection.cut_if_stuck(now_s)
        self._sweep = loop.call_later(_SWEEP_S, self._find_stuck)
