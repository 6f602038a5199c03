"""The receiving end of lanes (kvnode/node/lane.py says what they are)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

from kvnode.node.lane import TOKEN_BYTES, FrameReader

_log = logging.getLogger(__name__)

Take = Callable[[bytes], object]
"""Takes in one encoded PeerBatch. What it raises ends the lane."""


class Offer(NamedTuple):
    """What a welcome says of a lane; port 0 = none."""

    port: int
    token: bytes


class PeerLanes:
    """Listens for lanes; each belongs to a Messages stream that is open."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._port = 0
        self._takers: dict[bytes, Take] = {}
        self._lanes: dict[bytes, _Incoming] = {}

    async def start(self, host: str) -> None:
        """Listen on a free port of `host`; without one no lane is offered."""
        try:
            listener = _listener(host)
        except OSError as error:
            _log.warning("no lanes for peers, their messages take the slower stream: %s", error)
            return
        self._port = listener.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(lambda: _Incoming(self), sock=listener)

    def stop(self) -> None:
        """Listen no more and cut what is open."""
        if self._server is not None:
            self._server.close()
        self._port = 0
        for lane in list(self._lanes.values()):
            lane.close()

    @contextlib.contextmanager
    def offered(self, take: Take) -> Iterator[Offer]:
        """A lane whose batches go to `take`, for as long as the context lasts."""
        if not self._port:
            yield Offer(0, b"")
            return
        token = secrets.token_bytes(TOKEN_BYTES)
        self._takers[token] = take
        try:
            yield Offer(self._port, token)
        finally:
            del self._takers[token]
            lane = self._lanes.pop(token, None)
            if lane is not None:
                lane.close()

    def claim(self, token: bytes, lane: _Incoming) -> Take | None:
        """Where the batches of the lane with that token go; None for a stranger and for a second one."""
        if token in self._lanes or token not in self._takers:
            return None
        self._lanes[token] = lane
        return self._takers[token]

    def left(self, token: bytes, lane: _Incoming) -> None:
        """A lane has ended."""
        if self._lanes.get(token) is lane:
            del self._lanes[token]


class _Incoming(asyncio.Protocol):
    """One connection: a token, then frames."""

    def __init__(self, lanes: PeerLanes) -> None:
        self._lanes = lanes
        self._reader = FrameReader()
        self._token = b""
        self._take: Take | None = None
        self._transport: asyncio.Transport | None = None

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._lanes.left(self._token, self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._take is None:
            self._reader.add(data)
            token = self._reader.take(TOKEN_BYTES)
            if token is None:
                return
            self._take = self._lanes.claim(token, self)
            if self._take is None:
                self.close()
                return
            self._token = token
            if self._transport is not None:
                self._transport.write(token)
            data = b""
        try:
            for batch in self._reader.feed(data):
                if self._transport is None:
                    return
                self._take(batch)
        except Exception as error:
            _log.error("a peer's lane is cut: %s: %s", type(error).__name__, error)
            self.close()


def _listener(host: str) -> socket.socket:
    """A listening socket on a free port of the first address that `host` has. Raises OSError."""
    name = host.strip("[]") or None
    family, _, _, _, target = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    dual = family == socket.AF_INET6 and target[0] == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((str(target[0]), 0), family=family, dualstack_ipv6=dual)
    listener.setblocking(False)
    return listener
