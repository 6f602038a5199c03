"""A lane: what a stream between nodes would carry, on a plain TCP connection beside the stream that guards it.

Theory of operation. A message on a grpc.aio stream costs about 120 us on each end: a completion queue's thread, a
socket pair to wake the loop, a future and a task step each for write and read. Consensus needs four of them for each
lone write, so they were more than half of its price. On a connection of the loop's own the same bytes cost about a
tenth, and they arrive in a callback, without a task.

The stream (Messages, Forward) remains what says whether the peer is there: it opens first, carries the Hello, is
refused or welcomed and is watched by gRPC's keepalive. Its welcome may offer a lane: a port on the same host, and a
token that is good as long as that stream lives. Then batches leave by the lane; the stream carries them only until the
lane is open, or for good if it cannot be opened (a firewall, TLS between nodes: then none is offered). A lane that
breaks takes its stream along, so that there is one state of a peer and not two; a stream that ends closes its lane.

On the wire: where there is an egress proxy, its CONNECT; the token, which the receiver sends back, so that nothing is
entrusted to whoever else may listen at that address; then frames both ways, each a length of four bytes, big endian,
and a message of the stream that guards it. On a lane of Messages nothing comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import cast

from kvnode.base import egress, limits
from kvnode.base.config import split_address

_log = logging.getLogger(__name__)

TOKEN_BYTES = 16
_LENGTH_BYTES = 4


def frame(message: bytes) -> bytes:
    """A message as a lane carries it."""
    return len(message).to_bytes(_LENGTH_BYTES, "big") + message


class FrameReader:
    """Cuts what a lane carries into batches; bytes come in pieces of any size."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The batches that are complete now. Raises ValueError for one that is larger than any node sends."""
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= _LENGTH_BYTES:
            begin = at + _LENGTH_BYTES
            length = int.from_bytes(rest[at:begin], "big")
            if length > limits.MAX_GRPC_MESSAGE_BYTES:
                raise ValueError(f"a frame of {length} bytes; {limits.MAX_GRPC_MESSAGE_BYTES} at most")
            if len(rest) - begin < length:
                break
            at = begin + length
            yield bytes(rest[begin:at])
        del rest[:at]

    def take(self, count: int) -> bytes | None:
        """The first `count` bytes, which stand before the frames; None while they are not all there."""
        if len(self._rest) < count:
            return None
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken

    def add(self, data: bytes) -> None:
        """Keep bytes for take()."""
        self._rest += data


class Lane(asyncio.Protocol):
    """The sending end. Use `open`.

    Args:
        token: what the offer named.
        tunnel: what is said to the egress proxy first; empty = there is none.
        lost: called once when the connection ends without close().
        writable: called when it takes batches again after is_full.
        received: takes each message that comes back; None = none is expected, and what comes is passed over.
    """

    def __init__(
        self,
        token: bytes,
        lost: Callable[[], None],
        writable: Callable[[], None],
        tunnel: bytes = b"",
        received: Callable[[bytes], None] | None = None,
    ) -> None:
        self._token = token
        self._tunnel = tunnel
        self._heard = b""
        self._welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_welcome = False
        self._lost = lost
        self._writable = writable
        self._received = received
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._emptied = asyncio.Event()
        self._is_closed = False
        self.is_full = False

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        token: bytes,
        lost: Callable[[], None],
        writable: Callable[[], None],
        received: Callable[[bytes], None] | None = None,
    ) -> Lane:
        """Connect, and wait for the welcome. Raises OSError."""
        loop = asyncio.get_running_loop()
        tunnel = b""
        if proxy := egress.proxy():
            tunnel = egress.connect_request(host, port)
            host, port = split_address(proxy, "egress_proxy")
        _, lane = await loop.create_connection(lambda: cls(token, lost, writable, tunnel, received), host, port)
        try:
            lane._write(tunnel or token)
            await lane._welcomed
        except BaseException:
            lane.close()
            raise
        return lane

    def send(self, batch: bytes) -> None:
        """Hand over one encoded message; it leaves at the end of this pass of the loop."""
        self._write(frame(batch))

    async def drained(self, timeout_s: float) -> None:
        """Wait until the peer has closed it, behind all that it had to say; no longer than that."""
        if self._transport is not None:
            self._lost = self._emptied.set
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._emptied.wait()

    def close(self) -> None:
        """Cut the connection; what was not sent is lost."""
        self._is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        stream = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        stream.set_write_buffer_limits(high=limits.MAX_PEER_BATCH_BYTES)
        self._transport = stream

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if not self._welcomed.done():
            self._welcomed.set_exception(exc or ConnectionResetError("the peer did not take it"))
        elif not self._is_closed:
            self._lost()
        self._is_closed = True

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._is_welcome:
            self._take(data)
            return
        self._heard += data
        if (self._tunnel and not self._passes_proxy()) or self._welcomed.done() or len(self._heard) < TOKEN_BYTES:
            return
        token, rest = self._heard[:TOKEN_BYTES], self._heard[TOKEN_BYTES:]
        if token == self._token:
            self._is_welcome, self._heard = True, b""
            self._welcomed.set_result(None)
            self._take(rest)
        else:
            self._welcomed.set_exception(ConnectionRefusedError("another service listens there"))

    def _take(self, data: bytes) -> None:
        """What comes behind the welcome."""
        if self._received is None or self._is_closed:
            return
        try:
            for message in self._reader.feed(data):
                if self._is_closed:
                    return
                self._received(message)
        except Exception:
            _log.exception("a lane is cut: what came back by it could not be taken")
            if self._transport is not None:
                self._transport.abort()

    def _passes_proxy(self) -> bool:
        """Whether the proxy has answered, and well; then the peer is spoken to."""
        head, end, rest = self._heard.partition(b"\r\n\r\n")
        if not end or self._welcomed.done():
            return False
        if not egress.is_connected(head):
            status = head.split(b"\r\n", 1)[0].decode(errors="replace")
            self._welcomed.set_exception(ConnectionRefusedError(f"the egress proxy answered {status}"))
            return False
        self._tunnel, self._heard = b"", rest
        self._write(self._token)
        return True

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.is_full = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.is_full = False
        self._writable()
