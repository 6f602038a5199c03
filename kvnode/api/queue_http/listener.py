"""One listener over HTTP. Its credit is kept here, because its client cannot speak once its request is sent.

The client says at the beginning how many messages it may hold. Each that is sent to it takes a place; the place is free
again when the message is settled, by whichever request to this node, or its lease is lost. A client that settles at
another node, or not at all, gets its places back a while after the leases would have ended: a message that is neither
settled nor extended for that long is its no more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable

from kvnode.api.queue_http import lines
from kvnode.api.queue_http.ports import ListenStream
from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.machine.queue.errors import lease_lost
from kvnode.proto.kv.v1 import queue_pb2

_LATE_MS = limits.LISTEN_PING_INTERVAL_MS  # beyond the lease, for an extension that is on its way


class Leases:
    """Which listener of this node holds which lease."""

    def __init__(self) -> None:
        self._listeners: dict[tuple[int, bytes], Listener] = {}

    def take(self, listener: Listener, lease: bytes) -> None:
        """The listener holds it from now on, and no other one: that is where its client was before."""
        before = self._listeners.pop((listener.database, lease), None)
        if before is not None and before is not listener:
            before.forget([lease], 0)
        self._listeners[listener.database, lease] = listener

    def drop(self, listener: Listener, lease: bytes) -> None:
        """The listener holds it no more."""
        if self._listeners.get((listener.database, lease)) is listener:
            del self._listeners[listener.database, lease]

    def settle(self, database: int, leases: Iterable[bytes], *, leaving: bool) -> None:
        """A request settles these; with `leaving`, their places stay empty."""
        found: dict[Listener, list[bytes]] = {}
        for lease in leases:
            listener = self._listeners.get((database, lease))
            if listener is not None and lease not in found.setdefault(listener, []):
                found[listener].append(lease)
        for listener, of_listener in found.items():
            listener.forget(of_listener, 0 if leaving else len(of_listener))

    def extend(self, database: int, leases: Iterable[bytes]) -> None:
        """A request extends these."""
        for lease in leases:
            listener = self._listeners.get((database, lease))
            if listener is not None:
                listener.extend(lease)

    def lease_ms(self, database: int, lease: bytes) -> int:
        """What the listener that holds it has asked for; 0 = none holds it."""
        listener = self._listeners.get((database, lease))
        return 0 if listener is None else listener.lease_ms


class Listener:
    """See above.

    Args:
        database: its number.
        stream: brings the messages.
        leases: of this node's listeners.
        held: leases that the client holds from before.
        credit: messages that it may hold, those in `held` among them.
        monotonic_ms: for what is held too long.
    """

    def __init__(
        self,
        database: int,
        stream: ListenStream,
        leases: Leases,
        held: Iterable[bytes],
        credit: int,
        monotonic_ms: Callable[[], float],
    ) -> None:
        self.database = database
        self._stream = stream
        self._leases = leases
        self._credit = credit
        self._claimed = list(held)
        self._monotonic_ms = monotonic_ms
        self.lease_ms = limits.DEFAULT_QUEUE_LEASE_MS
        self._held: dict[bytes, float] = {}  # until when, the earliest first
        self._responses: AsyncGenerator[queue_pb2.ListenResponse, None] = stream.responses()

    async def open(self) -> bytes:
        """Begin; the first line. Raises KvError, after which it is to be closed."""
        opened = await anext(self._responses)
        self.lease_ms = opened.opened.lease_ms
        self._hold(self._claimed)
        # Of what it says to hold, it is told which it does not.
        free = self._credit - len(self._claimed)
        self._stream.take(queue_pb2.ListenRequest(credit=free, extend=self._claimed))
        return b"".join(lines.of_response(opened))

    async def chunks(self, first: bytes) -> AsyncGenerator[bytes, None]:
        """Lines, to the one that says why it ends."""
        try:
            yield first
            async for response in self._responses:
                self._hold(message.lease for message in response.messages)
                told = [*lines.of_response(response), *self._expire()]
                self.forget([lease for lease in {each.lease for each in response.failed} if lease in self._held])
                yield b"".join(told)
        except KvError as error:
            yield lines.end(error)
        finally:
            await self.close()

    async def close(self) -> None:
        """Over."""
        for lease in self._held:
            self._leases.drop(self, lease)
        self._held.clear()
        await self._responses.aclose()
        self._stream.close()

    def forget(self, leases: list[bytes], places: int | None = None) -> None:
        """The client holds these no more, and that many places are free; None = all of theirs."""
        for lease in leases:
            del self._held[lease]
            self._leases.drop(self, lease)
        if leases:
            free = len(leases) if places is None else places
            self._stream.take(queue_pb2.ListenRequest(settled=leases, credit=free))

    def extend(self, lease: bytes) -> None:
        """The client says that it still works on it."""
        del self._held[lease]
        self._hold([lease])

    def _hold(self, leases: Iterable[bytes]) -> None:
        until = self._monotonic_ms() + self.lease_ms + _LATE_MS
        for lease in leases:
            self._held[lease] = until
            self._leases.take(self, lease)

    def _expire(self) -> list[bytes]:
        """What it tells of leases that were neither settled nor extended for too long."""
        now = self._monotonic_ms()
        late: list[bytes] = []
        for lease, until in self._held.items():
            if until > now:
                break
            late.append(lease)
        self.forget(late)
        return [lines.failed(lease, lease_lost(lease)) for lease in late]
