"""What a queue's listener is to be told, gathered until it is asked for, and the end of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from kvnode.api.auth.gate import Permit
from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.proto.kv.v1 import queue_pb2


class ListenerOutbox:
    """The way down to one client.

    Args:
        permit: what the client may do; judged before each response, since a token's time runs out without a word.
        end: told why the client may listen no longer; calls `end` of this.

    Attributes:
        unsent: what has come since the last response; `push` when something was added.
        unsent_bytes: of its messages and of those that are being sent.
        ended: fails with the KvError by which it ends, unless the client ends it.
    """

    def __init__(self, permit: Permit, end: Callable[[KvError], None]) -> None:
        self._permit = permit
        self._end = end
        self._something = asyncio.Event()
        self._finishing = False
        self.unsent = queue_pb2.ListenResponse()
        self.unsent_bytes = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_room(self) -> bool:
        """Whether more may be fetched for the client: one that does not read costs no memory."""
        return self.unsent_bytes < limits.MAX_LISTENER_UNSENT_BYTES

    def push(self) -> None:
        """Something was added, or what is waited for has come to its end."""
        self._something.set()

    def take_unsent(self) -> list[bytes]:
        """The leases of the messages that wait to be sent: the client will not get them."""
        leases = [message.lease for message in self.unsent.messages]
        self.unsent_bytes -= sum(len(message.payload.data) for message in self.unsent.messages)
        del self.unsent.messages[:]
        return leases

    def judge(self) -> None:
        """Look whether the client may still listen."""
        refusal = self._permit.refusal(write=True)
        if refusal is not None:
            self._end(refusal)

    async def responses(
        self, opened: queue_pb2.ListenOpened, is_settled: Callable[[], bool], sent: Callable[[], None]
    ) -> AsyncGenerator[queue_pb2.ListenResponse, None]:
        """What the client is to be told; the next one is asked for when one is sent.

        Ends when the client has said its last (`finish`) and all that it asked for has come to its end.

        Args:
            opened: the first.
            is_settled: whether nothing that the client asked for is under way.
            sent: told when a response has left, and there may be room for more.

        Raises:
            KvError: why it ends otherwise.
        """
        yield queue_pb2.ListenResponse(opened=opened)
        while not (self._finishing and is_settled() and not self.unsent.ByteSize()):
            ping = False
            try:
                async with asyncio.timeout(limits.LISTEN_PING_INTERVAL_MS / 1_000):
                    await self._something.wait()
            except TimeoutError:
                ping = True
            self.judge()  # messages or none
            self._something.clear()
            if self.ended.done():
                self.ended.result()
            response, self.unsent = self.unsent, queue_pb2.ListenResponse()
            response.ping = ping
            size_bytes = self.unsent_bytes
            if response.ByteSize():
                yield response
            self.unsent_bytes -= size_bytes
            sent()

    def finish(self) -> None:
        """The client has said its last: let what it asked for come to its end, and tell it so."""
        self._finishing = True
        self._something.set()

    def end(self, error: KvError) -> bool:
        """No message will come any more, and this is why. Returns whether it is the first reason."""
        is_first = not self.ended.done()
        if is_first:
            self.ended.set_exception(error)
        self._something.set()
        return is_first

    def close(self) -> None:
        """Over, in any case."""
        if not self.ended.cancel() and not self.ended.cancelled():
            self.ended.exception()  # seen, if it ended for another reason first
