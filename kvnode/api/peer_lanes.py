"""The receiving end of lanes (kvnode/node/lane.py says what they are)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, cast

from kvnode.base import limits
from kvnode.node.lane import TOKEN_BYTES, FrameReader, frame

_log = logging.getLogger(__name__)

_FINISH_S = 1.0

Take = Callable[[bytes], object]
"""Takes in one message. What it raises ends the lane."""


class LaneEnd(Protocol):
    """A lane that is open, for who answers by it."""

    async def answer(self, message: bytes) -> None:
        """Send a message back; returns when there is room for more. Raises ConnectionResetError: the lane is gone."""

    def pause(self, should_pause: bool) -> None:
        """Take in no more for now, or again."""


class Offer(NamedTuple):
    """What a welcome says of a lane; port 0 = none."""

    port: int
    token: bytes


class _Taker(NamedTuple):
    """Whose lane a token opens."""

    take: Take
    opened: Callable[[LaneEnd], object]


class PeerLanes:
    """Listens for lanes; each belongs to a stream that is open."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._port = 0
        self._takers: dict[bytes, _Taker] = {}
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
    def offered(self, take: Take, opened: Callable[[LaneEnd], object] = lambda _lane: None) -> Iterator[Offer]:
        """A lane whose messages go to `take`, for as long as the context lasts; `opened` is given it before the first.

        It ends with the context, when what was answered by it has left.
        """
        if not self._port:
            yield Offer(0, b"")
            return
        token = secrets.token_bytes(TOKEN_BYTES)
        self._takers[token] = _Taker(take, opened)
        try:
            yield Offer(self._port, token)
        finally:
            del self._takers[token]
            lane = self._lanes.pop(token, None)
            if lane is not None:
                lane.finish()

    def claim(self, token: bytes, lane: _Incoming) -> _Taker | None:
        """Where the messages of the lane with that token go; None for a stranger and for a second one."""
        if token in self._lanes or token not in self._takers:
            return None
        self._lanes[token] = lane
        return self._takers[token]

    def left(self, token: bytes, lane: _Incoming) -> None:
        """A lane has ended."""
        if self._lanes.get(token) is lane:
            del self._lanes[token]


class _Incoming(asyncio.Protocol):
    """One connection: a token, then frames. See LaneEnd."""

    def __init__(self, lanes: PeerLanes) -> None:
        self._lanes = lanes
        self._reader = FrameReader()
        self._token = b""
        self._take: Take | None = None
        self._transport: asyncio.Transport | None = None
        self._is_finished = False
        self._room: asyncio.Future[None] | None = None  # the sender's buffers are full

    async def answer(self, message: bytes) -> None:
        """See LaneEnd."""
        if self._transport is None:
            raise ConnectionResetError("the lane is gone")
        self._transport.write(frame(message))
        if self._room is not None:
            await asyncio.shield(self._room)

    def pause(self, should_pause: bool) -> None:
        """See LaneEnd."""
        if self._transport is None or self._transport.is_closing():
            return
        if should_pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """End it when what was answered has left; nothing more is taken in."""
        self._is_finished = True
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(_FINISH_S, self.close)  # whoever reads nothing keeps it no longer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        stream = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        stream.set_write_buffer_limits(high=limits.MAX_PEER_BATCH_BYTES)
        self._transport = stream

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self.resume_writing()
        self._lanes.left(self._token, self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._take is None:
            self._reader.add(data)
            token = self._reader.take(TOKEN_BYTES)
            if token is None:
                return
            taker = self._lanes.claim(token, self)
            if taker is None:
                self.close()
                return
            self._token, self._take = token, taker.take
            if self._transport is not None:
                self._transport.write(token)
            taker.opened(self)
            data = b""
        try:
            for message in self._reader.feed(data):
                if self._transport is None or self._is_finished:
                    return
                self._take(message)
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
