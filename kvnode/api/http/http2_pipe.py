"""One connection of HTTP/2 on its way to granian and back, and what is seen of it in between.

Requests are marked on the way there, so that the handler of each finds the account of its stream (unread.py); on the
way back what goes out is counted. Those whose head has come before are taken out, and their answers put in
(http2_direct.py). Cost: a few microseconds for each frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, cast

from kvnode.api.http.http2_direct import Direct, DirectServer
from kvnode.api.http.http2_frames import Requests, Responses
from kvnode.api.http.unread import Unread

_log = logging.getLogger(__name__)

_MAX_GATHERED_BYTES = 65_536


class Pipe:
    """Carries one connection's bytes to granian and back, no faster than each side reads.

    Args:
        client: the connection as accepted.
        first: what was read of it.
        socket: granian's.
        unread: the accounts of all connections.
        direct: answers what need not go to granian.
        ended: called once at the end.
    """

    def __init__(
        self, client: asyncio.Transport, first: bytes, socket: str, unread: Unread, direct: DirectServer, ended: Any
    ) -> None:
        self._unread = unread
        self._number, accounts = unread.connect(self.close)
        self._direct = Direct(direct, accounts, self._to_client, self._to_server, self._end_of_client, self._idle)
        self._requests = Requests(self._number, accounts.reset, self._direct)

        def sent(stream: int, size_bytes: int) -> None:
            accounts.sent(stream, size_bytes)
            self._direct.window.used_by_granian(size_bytes)

        def over(stream: int) -> None:
            accounts.end(stream)
            self._direct.forget(stream)

        self._responses = Responses(sent, over, self._direct.going, self._direct.acknowledged)
        self._loop = asyncio.get_running_loop()
        self._for_client: list[bytes] = []  # frames of this pass of the loop: one write for all
        self._for_client_bytes = 0
        self._for_server: list[bytes] = []  # frames that wait until those of the client let them in
        self._client = _End(self, self._there)
        self._server = _End(self, self._back)
        self._ended = ended
        self._client.other, self._server.other = self._server, self._client
        self._client.transport = client
        self._client.hold(self)
        client.set_protocol(self._client)
        self._opening = self._loop.create_task(self._open(first, socket))

    def close(self) -> None:
        """End both sides at once."""
        self._opening.cancel()
        for end in (self._client, self._server):
            if end.transport is not None:
                end.transport.abort()

    def lost(self, end: _End) -> None:
        """One side is gone: what was read of it is still sent to the other, which then ends too."""
        if end is self._client:
            self._direct.lost()
            self._server.close()
        elif not self._direct.is_busy:
            self._end_of_client()
        if self._ended is not None and self._client.transport is None:
            self._unread.disconnect(self._number)
            self._ended(self)
            self._ended = None

    def side_reads(self, end: _End, *, reads: bool) -> None:
        """A side reads what it is sent, or does not: then no more is read of the other.

        A client that does not read is not heard either if it is answered directly: it could ask for more and more.
        """
        if end is self._client:
            self._direct.client_reads(reads=reads)
        if reads:
            end.other.release(end)
            end.release(end)
        else:
            end.other.hold(end)
            if end is self._client and self._direct.shares:
                end.hold(end)

    async def _open(self, first: bytes, socket: str) -> None:
        try:
            await self._loop.create_unix_connection(lambda: self._server, socket)
        except OSError as error:
            _log.warning("HTTP/2 is not served: %s", error)
            if self._client.transport is not None:
                self._client.transport.abort()
            return
        if self._client.transport is None:
            self._server.close()
            return
        self._client.data_received(first)
        self._client.release(self)

    def _there(self, data: bytes) -> bytes:
        passed = self._requests.pass_on(data)
        if self._for_server and self._requests.between:
            waiting, self._for_server = self._for_server, []
            return b"".join((passed, *waiting))
        return passed

    def _back(self, data: bytes) -> bytes:
        self._send_to_client()  # first what is older
        return self._responses.pass_on(data)

    def _to_client(self, frames: bytes) -> None:
        if not self._for_client:
            self._loop.call_soon(self._send_to_client)
        self._for_client.append(frames)
        self._for_client_bytes += len(frames)
        if self._for_client_bytes > _MAX_GATHERED_BYTES:
            self._send_to_client()  # and hear whether the client reads

    def _send_to_client(self) -> None:
        if not self._for_client:
            return
        frames, self._for_client, self._for_client_bytes = b"".join(self._for_client), [], 0
        if (now := self._responses.put_in(frames)) and self._client.transport is not None:
            self._client.transport.write(now)

    def _to_server(self, frames: bytes) -> None:
        if self._server.transport is None:
            return
        if self._requests.between:
            self._server.transport.write(frames)
        else:
            self._for_server.append(frames)

    def _end_of_client(self) -> None:
        self._send_to_client()
        self._client.close()

    def _idle(self) -> None:
        """Nothing is answered directly any more: if granian has ended, so does the client's side."""
        if self._server.is_lost:
            self._end_of_client()


class _End(asyncio.Protocol):
    """One side of a pipe."""

    def __init__(self, pipe: Pipe, pass_on: Callable[[bytes], bytes]) -> None:
        self._pipe = pipe
        self._pass_on = pass_on
        self._holds: set[object] = set()
        self.transport: asyncio.Transport | None = None
        self.is_lost = False
        self.other: _End

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Granian's side is there."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        passed = self._pass_on(data)
        if self.other.transport is not None and passed:
            self.other.transport.write(passed)

    def hold(self, reason: object) -> None:
        """Read nothing until `release` with every reason."""
        if not self._holds and self.transport is not None:
            with contextlib.suppress(RuntimeError):
                self.transport.pause_reading()
        self._holds.add(reason)

    def release(self, reason: object) -> None:
        """See hold."""
        self._holds.discard(reason)
        if not self._holds and self.transport is not None:
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """It does not read."""
        self._pipe.side_reads(self, reads=False)

    def resume_writing(self) -> None:
        """It reads again."""
        self._pipe.side_reads(self, reads=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Over: the other side ends once what it is owed is sent."""
        del exc
        self.transport = None
        self.is_lost = True
        self._pipe.lost(self)

    def close(self) -> None:
        """End once everything written is sent."""
        if self.transport is not None:
            self.transport.close()
