"""A connection without a socket: pieces come as they are cut, and what is written is seen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from kvnode.api.http.http1 import Connection, Connections


class Wire(asyncio.Transport):
    """The server's end of a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reads = True
        self.is_closed = False

    def write(self, data) -> None:
        if not self.is_closed:
            self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.written += b"<eof>"

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def get_write_buffer_size(self) -> int:
        return 0


async def passes(count: int = 12) -> None:
    """Let the loop do what it has to."""
    for _ in range(count):
        await asyncio.sleep(0)


async def converse(shared: Connections, pieces: Sequence[bytes], *, calm: bool, half_closes: bool) -> bytes:
    """What a server writes to one client, without dates. `calm`: it answers what has come before more comes."""
    wire, connection = Wire(), Connection(shared)
    connection.connection_made(wire)
    for piece in pieces:
        if calm:
            await passes()
        for _ in range(100):
            if wire.reads or wire.is_closed:
                break
            await passes(1)
        assert wire.reads or wire.is_closed
        if wire.is_closed:
            break
        connection.data_received(piece)
    if half_closes:
        await passes()
        if not wire.is_closed and not connection.eof_received():
            wire.close()
    await passes(100)
    ended = b"<closed>" if wire.is_closed else b"<open>"
    connection.connection_lost(None)
    await passes()
    assert not shared.open and not shared.idle
    return re.sub(rb"date: [^\r]*\r\n", b"", wire.written) + ended
