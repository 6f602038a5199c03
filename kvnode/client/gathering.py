"""When a session's next message may leave: operations gather while earlier messages are unanswered.

Theory of operation. What a stream costs is paid per message, on both ends, whatever the number of operations in it:
some 150 us against 5 us for one operation of many. A client with many callers that sends each operation as it comes
gets each answer as it comes, and so goes on for ever with one operation a message. So what is submitted while
MAX_CLIENT_FLIGHTS_COUNT messages are wholly unanswered waits for an answer (Nagle's algorithm, RFC 896), and leaves as
one message. One is enough: against two it made the puts of 16 callers 1.2 to 1.4 times as many, and those of 64 and of
256 no fewer. A lone caller never waits. Unlike Nagle's, the wait ends CLIENT_GATHER_MS after the last message
left: over a long way, or behind an operation that a node holds until there is a leader, messages leave at that pace;
what comes more seldom than that never waits.

Only the pace depends on this: that a message counts as answered too early or too late does no harm.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from kvnode.base import limits


class Gathering:
    """The messages of one stream that are wholly unanswered, by an id in each, in the order of their leaving."""

    def __init__(self) -> None:
        self._flights: deque[int] = deque()
        self._left_s = -math.inf  # the last message, by the loop's clock
        self._waiter: asyncio.Future[None] | None = None

    def restart(self) -> None:
        """A new stream: nothing is on its way."""
        self._flights.clear()
        self._release()

    def sent(self, first_id: int) -> None:
        """A message whose first operation has this id has left."""
        self._flights.append(first_id)
        self._left_s = asyncio.get_running_loop().time()

    def answered(self, operation_id: int) -> None:
        """An operation was answered: the message that carried it, and those before it, are no longer waited for."""
        flights = self._flights
        if flights and flights[0] <= operation_id:
            while flights and flights[0] <= operation_id:
                flights.popleft()
            self._release()

    async def turn(self) -> None:
        """Wait until the next message may leave."""
        if len(self._flights) < limits.MAX_CLIENT_FLIGHTS_COUNT:
            return
        loop = asyncio.get_running_loop()
        until_s = self._left_s + limits.CLIENT_GATHER_MS / 1_000
        if until_s <= loop.time():
            return
        self._waiter = loop.create_future()
        timer = loop.call_at(until_s, self._release)
        try:
            await self._waiter
        finally:
            timer.cancel()

    def _release(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
