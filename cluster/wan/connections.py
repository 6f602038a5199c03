"""One proxied connection: two byte streams, each over its link.

Back-pressure: of a stream at most MAX_UNDER_WAY_BYTES are on its link, and a receiver's buffer that is full counts as a
full link; then the sender is read no more, and its own kernel buffer fills, as on a slow network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

from cluster.wan.links import Link, Links

MAX_UNDER_WAY_BYTES = 4 * 1_048_576  # 40 MB/s at 100 ms
MAX_HEAD_BYTES = 8_192
_ACCEPTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

Resolve = Callable[[str], str]
"""The site that an address host:port belongs to. Raises KeyError."""


class Stream:
    """The bytes from one end of a connection to the other."""

    def __init__(self, links: Links, link: Link) -> None:
        self._links = links
        self._link = link
        self._under_way_bytes = 0
        self._is_sink_full = False
        self._is_paused = False
        self.source: End | None = None
        self.sink: End | None = None

    def send(self, data: bytes) -> None:
        """Bytes from the source."""
        self._under_way_bytes += len(data)
        self._link.carried_bytes += len(data)
        self._links.send(self._link, partial(self._arrive, data))
        self._pace()

    def end(self) -> None:
        """The source sends no more."""
        self._links.send(self._link, self._finish)

    def close(self) -> None:
        """The source is gone, after it had said all."""
        self._links.send(self._link, self._close)

    def abort(self) -> None:
        """The source is gone."""
        self._links.send(self._link, self._abort)

    def sink_full(self, is_full: bool) -> None:
        """Whether the sink's buffer has no room."""
        self._is_sink_full = is_full
        self._pace()

    def _arrive(self, data: bytes) -> None:
        self._under_way_bytes -= len(data)
        if self.sink is not None:
            self.sink.write(data)
        self._pace()

    def _finish(self) -> None:
        if self.sink is not None:
            self.sink.finish()

    def _close(self) -> None:
        if self.sink is not None:
            self.sink.close()

    def _abort(self) -> None:
        if self.sink is not None:
            self.sink.abort()

    def _pace(self) -> None:
        should_pause = self._is_sink_full or self._under_way_bytes > MAX_UNDER_WAY_BYTES
        if should_pause != self._is_paused and self.source is not None:
            self._is_paused = should_pause
            self.source.pause(should_pause)


class End(asyncio.Protocol):
    """One socket: what it says goes into `outgoing`, what `incoming` brings is written to it."""

    def __init__(self) -> None:
        self.outgoing: Stream | None = None
        self.incoming: Stream | None = None
        self._transport: asyncio.Transport | None = None
        self._has_ended = False  # the socket says no more
        self._is_finished = False  # nor do we

    def join(self, outgoing: Stream, incoming: Stream) -> None:
        """From now on it is an end of these."""
        self.outgoing, self.incoming = outgoing, incoming
        outgoing.source = incoming.sink = self

    @property
    def is_open(self) -> bool:
        """Whether the socket may still be written to."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Bytes to the socket; dropped when it is gone."""
        if self._transport is not None and self.is_open:
            self._transport.write(data)

    def finish(self) -> None:
        """Nothing more is written."""
        self._is_finished = True
        if self._transport is None or not self.is_open:
            return
        if self._has_ended:
            self._transport.close()
        else:
            self._transport.write_eof()

    def close(self) -> None:
        """Leave it when what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut it."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self, should_pause: bool) -> None:
        """Read no more for now, or again."""
        if self._transport is not None and self.is_open:
            if should_pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.outgoing is not None:
            self.outgoing.send(data)

    def eof_received(self) -> bool:
        """See asyncio.Protocol; True = the other direction stays open."""
        self._has_ended = True
        if self.outgoing is not None:
            self.outgoing.end()
        return self.outgoing is not None and not self._is_finished

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if self.outgoing is None:
            return
        if exc is None and self._has_ended:
            self.outgoing.close()
        else:
            self.outgoing.abort()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        if self.incoming is not None:
            self.incoming.sink_full(True)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        if self.incoming is not None:
            self.incoming.sink_full(False)


class Target(End):
    """The end that was dialled for a site.

    Args:
        connected: called as soon as it is, before anything comes from it.
    """

    def __init__(self, connected: Callable[[], None]) -> None:
        super().__init__()
        self._connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._connected()


class Dialler(End):
    """The end that a site opened.

    Args:
        links: all of them.
        site: whose port it came to.
        resolve: knows the sites of addresses.
        target: host:port to go to; empty = a CONNECT says it.
    """

    def __init__(self, links: Links, site: str, resolve: Resolve, target: str = "") -> None:
        super().__init__()
        self._links = links
        self._site = site
        self._resolve = resolve
        self._target = target
        self._with_connect = not target
        self._said = b""  # before the connection stands
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if self._target:
            asyncio.get_running_loop().call_soon(self._open)  # uvloop begins to read when this returns

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol: a CONNECT first, then what is passed on."""
        if self.outgoing is not None:
            self.outgoing.send(data)
            return
        self._said += data
        if self._target:
            return
        head, end, rest = self._said.partition(b"\r\n\r\n")
        if end:
            words = head.split(b"\r\n", 1)[0].decode(errors="replace").split(" ")
            if len(words) != 3 or words[0] != "CONNECT":
                self._refuse(400, "CONNECT host:port is what is spoken here")
                return
            self._target, self._said = words[1], rest
            self._open()
        elif len(head) > MAX_HEAD_BYTES:
            self._refuse(431, "Request header fields too large")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        if self._connecting is not None:
            self._connecting.cancel()

    def _open(self) -> None:
        """Let the wish to connect travel to the other site."""
        self.pause(True)
        try:
            site = self._resolve(self._target)
        except KeyError:
            self._refuse(502, f"nobody is known at {self._target}")
            return
        there, back = self._links.link(self._site, site), self._links.link(site, self._site)
        self._links.send(there, partial(self._dial, there, back))

    def _dial(self, there: Link, back: Link) -> None:
        if self.is_open:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(there, back))

    async def _connect(self, there: Link, back: Link) -> None:
        outgoing, incoming = Stream(self._links, there), Stream(self._links, back)

        def connected() -> None:
            target.join(incoming, outgoing)
            self._links.send(back, partial(self._opened, outgoing, incoming))

        target = Target(connected)
        host, _, port = self._target.rpartition(":")
        try:
            await asyncio.get_running_loop().create_connection(lambda: target, host.strip("[]"), int(port))
        except (OSError, ValueError) as error:
            self._links.send(back, partial(self._refuse, 502, f"{self._target}: {error}"))

    def _opened(self, outgoing: Stream, incoming: Stream) -> None:
        """The answer has come back: from now on bytes pass."""
        if not self.is_open:
            outgoing.abort()
            return
        self.join(outgoing, incoming)
        if self._with_connect:
            self.write(_ACCEPTED)
        if self._said:
            outgoing.send(self._said)
        self.pause(False)

    def _refuse(self, status: int, reason: str) -> None:
        if self._with_connect and self._transport is not None and self.is_open:
            self.write(f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode())
            self._transport.close()
        else:
            self.abort()
