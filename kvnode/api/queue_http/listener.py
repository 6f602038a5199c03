"""One listener over HTTP. Its credit is kept here, because its client cannot speak once its request is sent.

The client says at the beginning how many messages it may hold. Each that is sent to it takes a place; the place is free
again when the message is settled, by whichever request to this node, or its lease is lost. A client that settles at
another node, or not at all, gets its places back a while after the leases would have ended, once the leader has said
that they have: the client may have extended them at another node. To ask is to extend by the listener's own time, which
shortens no lease that lasts longer.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterable

from kvnode.api.queue_http import lines
from kvnode.api.queue_http.ports import ListenStream
from kvnode.base import limits
from kvnode.base.errors import KvError
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
        """A request settles these; with `leaving`, their places stay empty, since their listeners take no more."""
        found: dict[Listener, list[bytes]] = {}
        for lease in leases:
            listener = self._listeners.get((database, lease))
            if listener is not None and lease not in found.setdefault(listener, []):
                found[listener].append(lease)
        for listener, of_listener in found.items():
            listener.forget(of_listener, 0 if leaving else len(of_listener))

    def leave(self, database: int, leases: Iterable[bytes]) -> None:
        """The listeners that hold these take no more."""
        found = {self._listeners.get((database, lease)) for lease in leases}
        for listener in found - {None}:
            assert listener is not None
            listener.take_no_more()

    def extend(self, database: int, lease: bytes, lease_ms: int) -> int:
        """A request extends this one.

        Args:
            database: its number.
            lease: its id.
            lease_ms: how long it is to last from now on; 0 = as long as its listener has asked for.

        Returns:
            How long that is; 0 = that is not known, because no listener of this node holds it.
        """
        listener = self._listeners.get((database, lease))
        return lease_ms if listener is None else listener.extend(lease, lease_ms)


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
        self._held: dict[bytes, float] = {}  # when it is asked about, if nothing is heard of it until then
        self._ask_at_ms = math.inf  # no lease is to be asked about before
        self._responses: AsyncGenerator[queue_pb2.ListenResponse, None] = stream.responses()

    async def open(self) -> bytes:
        """Begin; the first line. Raises KvError, after which it is to be closed."""
        opened = await anext(self._responses)
        self.lease_ms = opened.opened.lease_ms
        self._hold(self._claimed, self.lease_ms)
        # Of what it says to hold, it is told which it does not.
        free = self._credit - len(self._claimed)
        self._stream.take(queue_pb2.ListenRequest(credit=free, extend=self._claimed))
        return b"".join(lines.of_response(opened))

    async def chunks(self, first: bytes) -> AsyncGenerator[bytes, None]:
        """Lines, to the one that says why it ends."""
        try:
            yield first
            async for response in self._responses:
                self._hold((message.lease for message in response.messages), self.lease_ms)
                self._lose(response)
                self._ask_about_silent()
                told = b"".join(lines.of_response(response))
                if told:  # an empty chunk would be the end
                    yield told
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

    def take_no_more(self) -> None:
        """The client is about to leave: it is sent nothing more, and goes on to hold what it holds."""
        self._stream.take(queue_pb2.ListenRequest(leaving=True))

    def extend(self, lease: bytes, lease_ms: int) -> int:
        """The client still works on it; how long it lasts from now on (`lease_ms` 0 = what the listener asked for)."""
        lease_ms = lease_ms or self.lease_ms
        self._hold([lease], lease_ms)
        return lease_ms

    def _hold(self, leases: Iterable[bytes], lease_ms: int) -> None:
        until_ms = self._monotonic_ms() + lease_ms + _LATE_MS
        self._ask_at_ms = min(self._ask_at_ms, until_ms)
        for lease in leases:
            self._held[lease] = until_ms
            self._leases.take(self, lease)

    def _lose(self, response: queue_pb2.ListenResponse) -> None:
        """Forget what is lost, and leave in the response what is news to the client.

        A lease that is not held any more the client has settled since it was asked about. A failure of another kind
        says nothing of the lease: the question has not reached the leader, and is asked again.
        """
        if not response.failed:
            return
        lost = {each.lease: each for each in response.failed if each.error.code == "LEASE_LOST"}
        news = [each for lease, each in lost.items() if lease in self._held]
        del response.failed[:]
        response.failed.extend(news)
        self.forget([each.lease for each in news])

    def _ask_about_silent(self) -> None:
        """Ask the leader about leases that were neither settled nor extended for too long; `_lose` has its answer."""
        now_ms = self._monotonic_ms()
        if now_ms < self._ask_at_ms:
            return
        silent = [lease for lease, until_ms in self._held.items() if until_ms <= now_ms]
        self._hold(silent, self.lease_ms)
        self._ask_at_ms = min(self._held.values(), default=math.inf)
        if silent:
            self._stream.take(queue_pb2.ListenRequest(extend=silent))
