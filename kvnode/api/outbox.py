"""The answering half of a stream of operations.

Results come one by one, in any order, through `deliver`. They are serialized at once (so that their size is
known and the operation's memory is freed), and all that came in one pass of the loop leave in one message: the
writer is woken in the next pass. While a write is under way more gather, so that a slow reader gets larger
messages, not more of them.

What is owed is bounded: a stream is not read on while MAX_SESSION_UNANSWERED_COUNT operations are unanswered or
MAX_SESSION_RESULT_BYTES of results are unsent. One message may ask for more than that many bytes: then the results of
reads that do not fit give way to an error, SESSION_RESULTS_FULL, and the client reads again. The results of writes,
which are small and final, are never dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvnode.api.grpc_handlers import response_too_large, results_full
from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.node.framing import frame_repeated

MAX_RESULT_BYTES = limits.MAX_GRPC_MESSAGE_BYTES - limits.RESULT_HEADROOM_BYTES
_MESSAGE_BYTES = limits.MAX_PEER_BATCH_BYTES  # a message closes above this; one large result may exceed it


class Outbox:
    """Serialized results on their way out.

    Args:
        write: sends one message; returns when the transport has taken it.
        field_number: of the repeated field in the response message that holds results.
    """

    def __init__(self, write: Callable[[bytes], Awaitable[None]], field_number: int) -> None:
        self._write = write
        self._field_number = field_number
        self._announcements: list[tuple[bytes, asyncio.Future[None]]] = []
        self._results: list[bytes] = []
        self._bytes = 0
        self._owed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._progress: asyncio.Future[None] | None = None

    @property
    def owed(self) -> int:
        """Operations taken in whose results have not been sent."""
        return self._owed

    def expect(self, count: int) -> None:
        """That many operations were taken in."""
        self._owed += count

    def put(self, result: bytes) -> None:
        """One result, to be sent with the others of this loop pass."""
        self._results.append(result)
        self._bytes += len(result)
        self._wake()

    async def announce(self, message: bytes) -> None:
        """Send a message of its own, before the results that are put from now on; returns when it is written.

        Whoever waits for that cannot end the stream meanwhile: gRPC never ends a call whose write was cancelled.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._announcements.append((message, written))
        self._wake()
        await written

    def cannot_take(self, size_bytes: int) -> KvError | None:
        """See Receiver: why a read's result of that size could not be put."""
        if size_bytes > MAX_RESULT_BYTES:
            return response_too_large(size_bytes)
        return None if self.fits(size_bytes) else results_full()

    def fits(self, size_bytes: int) -> bool:
        """Whether a result of that size may still be put; the only one there is always may."""
        return not self._bytes or self._bytes + size_bytes <= limits.MAX_SESSION_RESULT_BYTES

    @property
    def full(self) -> bool:
        """Whether the stream must not be read on."""
        return self._owed >= limits.MAX_SESSION_UNANSWERED_COUNT or self._bytes >= limits.MAX_SESSION_RESULT_BYTES

    async def room(self) -> None:
        """Wait until the stream may be read on."""
        while self.full:
            await self._next_progress()

    async def drained(self) -> None:
        """Wait until everything owed was sent."""
        while self._owed:
            await self._next_progress()

    async def run(self) -> None:
        """Send results for ever; cancel to end. Raises what `write` raises."""
        loop = asyncio.get_running_loop()
        while True:
            announcements, self._announcements = self._announcements, []
            for message, written in announcements:
                await self._write(message)
                if not written.done():
                    written.set_result(None)
            results, self._results = self._results, []
            if not results and self._announcements:
                continue
            if not results:
                self._waiter = loop.create_future()
                await self._waiter
                continue
            size = self._bytes
            for message in frame_repeated(self._field_number, results, _MESSAGE_BYTES):
                await self._write(message)
            self._bytes -= size
            self._owed -= len(results)
            if self._progress is not None:
                self._progress.set_result(None)
                self._progress = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def _next_progress(self) -> None:
        if self._progress is None:
            self._progress = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._progress)
