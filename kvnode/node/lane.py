"""A lane: Raft messages on a plain TCP connection beside the Messages stream that guards it.

Theory of operation. A message on a grpc.aio stream costs about 120 us on each end: a completion queue's thread, a
socket pair to wake the loop, a future and a task step each for write and read. Consensus needs four of them for each
lone write, so they were more than half of its price. On a connection of the loop's own the same bytes cost about a
tenth, and they arrive in a callback, without a task.

The Messages stream remains what says whether the peer is there: it opens first, carries the Hello, is refused or
welcomed, is watched by gRPC's keepalive and carries the clock samples. Its welcome may offer a lane: a port on the same
host, and a token that is good as long as that stream lives. Then batches leave by the lane; the stream carries them
only until the lane is open, or for good if it cannot be opened (a firewall, TLS between nodes: then none is offered).
A lane that breaks takes its stream along, so that there is one state of a peer and not two; a stream that ends closes
its lane.

On the wire: where there is an egress proxy, its CONNECT; the token, which the receiver sends back, so that nothing is
entrusted to whoever else may listen at that address; then frames, each a length of four bytes, big endian, and a
PeerBatch. Nothing more comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

from kvnode.base import egress, limits
from kvnode.base.config import split_address

TOKEN_BYTES = 16
_LENGTH_BYTES = 4


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
    """

    def __init__(
        self, token: bytes, lost: Callable[[], None], writable: Callable[[], None], tunnel: bytes = b""
    ) -> None:
        self._token = token
        self._tunnel = tunnel
        self._heard = b""
        self._welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lost = lost
        self._writable = writable
        self._transport: asyncio.Transport | None = None
        self._is_closed = False
        self.is_full = False

    @classmethod
    async def open(
        cls, host: str, port: int, token: bytes, lost: Callable[[], None], writable: Callable[[], None]
    ) -> Lane:
        """Connect, and wait for the welcome. Raises OSError."""
        loop = asyncio.get_running_loop()
        tunnel = b""
        if proxy := egress.proxy():
            tunnel = egress.connect_request(host, port)
            host, port = split_address(proxy, "egress_proxy")
        _, lane = await loop.create_connection(lambda: cls(token, lost, writable, tunnel), host, port)
        try:
            lane._write(tunnel or token)
            await lane._welcomed
        except BaseException:
            lane.close()
            raise
        return lane

    def send(self, batch: bytes) -> None:
        """Hand over one encoded PeerBatch; it leaves at the end of this pass of the loop."""
        self._write(len(batch).to_bytes(_LENGTH_BYTES, "big") + batch)

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
        self._heard += data
        if self._tunnel and not self._passes_proxy():
            return
        if self._welcomed.done() or len(self._heard) < TOKEN_BYTES:
            return
        if self._heard == self._token:
            self._welcomed.set_result(None)
        else:
            self._welcomed.set_exception(ConnectionRefusedError("another service listens there"))

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
