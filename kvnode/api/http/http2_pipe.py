"""One connection of HTTP/2 on its way to granian and back, and what is seen of it in between.

Requests are marked on the way there, so that the handler of each finds the account of its stream (unread.py); on the
way back what goes out is counted. Cost: a few microseconds for each frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, cast

from kvnode.api.http.http2_frames import Requests, Responses
from kvnode.api.http.unread import Unread

_log = logging.getLogger(__name__)


class Pipe:
    """Carries one connection's bytes to granian and back, no faster than each side reads.

    Args:
        client: the connection as accepted.
        first: what was read of it.
        socket: granian's.
        unread: the accounts of all connections.
        ended: called once at the end.
    """

    def __init__(self, client: asyncio.Transport, first: bytes, socket: str, unread: Unread, ended: Any) -> None:
        self._unread = unread
        self._number, accounts = unread.connect(self.close)
        requests, responses = Requests(self._number, accounts.reset), Responses(accounts.sent, accounts.end)

        def back(data: bytes) -> bytes:
            responses.look(data)
            return data

        self._client = _End(self, requests.pass_on)
        self._server = _End(self, back)
        self._ended = ended
        first = requests.pass_on(first)
        self._client.other, self._server.other = self._server, self._client
        self._client.transport = client
        client.pause_reading()
        client.set_protocol(self._client)
        self._opening = asyncio.get_running_loop().create_task(self._open(first, socket))

    def close(self) -> None:
        """End both sides at once."""
        self._opening.cancel()
        for end in (self._client, self._server):
            if end.transport is not None:
                end.transport.abort()

    def lost(self) -> None:
        """One side is gone: what was read of it is still sent to the other, which then ends too."""
        if self._ended is not None:
            self._unread.disconnect(self._number)
            self._ended(self)
            self._ended = None

    async def _open(self, first: bytes, socket: str) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self._server, socket)
        except OSError as error:
            _log.warning("HTTP/2 is not served: %s", error)
            if self._client.transport is not None:
                self._client.transport.abort()
            return
        if self._server.transport is not None:
            self._server.transport.write(first)
        if self._client.transport is None:
            self._server.close()
        else:
            self._client.transport.resume_reading()


class _End(asyncio.Protocol):
    """One side of a pipe."""

    def __init__(self, pipe: Pipe, pass_on: Callable[[bytes], bytes]) -> None:
        self._pipe = pipe
        self._pass_on = pass_on
        self.transport: asyncio.Transport | None = None
        self.other: _End

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Granian's side is there."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other.transport is not None:
            self.other.transport.write(self._pass_on(data))

    def pause_writing(self) -> None:
        """This side does not read: read no more of the other."""
        if self.other.transport is not None:
            with contextlib.suppress(RuntimeError):
                self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Over: the other side ends once what it is owed is sent."""
        del exc
        self.transport = None
        self.other.close()
        self._pipe.lost()

    def close(self) -> None:
        """End once everything written is sent."""
        if self.transport is not None:
            self.transport.close()
