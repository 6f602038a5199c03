"""Raw HTTP/1.1 and HTTP/2 over real sockets: what no well-behaved client would send can be sent too."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.exceptions


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Http1:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(
        cls, port: int, context: ssl.SSLContext | None = None, *, receive_buffer_bytes: int | None = None
    ) -> Http1:
        """With a buffer of that size; by itself the kernel's grows to many megabytes when nobody reads."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        except BaseException:
            connection.close()
            raise
        name = None if context is None else "127.0.0.1"
        streams = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=name, limit=1 << 21)
        return cls(*streams)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def request(self, path: str, headers: dict[str, str] | None = None, body: bytes = b"", method="POST"):
        lines = [f"{method} {path} HTTP/1.1", "host: test"]
        lines += [f"{name}: {value}" for name, value in {"content-length": len(body), **(headers or {})}.items()]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)
        return await self.answer(method == "HEAD")

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = raw.decode().split("\r\n")[:-2]
        return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def answer(self, no_body: bool = False) -> Answer:
        status, headers = await self.head()
        if no_body:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while chunk := await self.chunk():
                body += chunk
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(status, headers, body)

    async def chunk(self) -> bytes:
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size)
        assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def closed(self) -> bool:
        """Whether the server ends the connection, with nothing more to read."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True


class Http2:
    """One connection with prior knowledge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.events: dict[int, list[h2.events.Event]] = {}
        self.others: list[h2.events.Event] = []
        self._unread = b""
        self.h2.initiate_connection()
        self.flush()

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext | None = None) -> Http2:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def pump(self) -> bool:
        """Take in what has come; False at the end."""
        try:
            data = await self.reader.read(65_536)
        except ConnectionResetError:
            return False
        self._unread += data
        while len(self._unread) >= 9 and len(self._unread) >= (size := 9 + int.from_bytes(self._unread[:3], "big")):
            one, self._unread = self._unread[:size], self._unread[size:]
            for event in self.h2.receive_data(one):
                self._take(event)
        self.flush()
        return bool(data)

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):  # a GOAWAY ends nothing that is under way
            self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
        if isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        stream = getattr(event, "stream_id", None)
        (self.events.setdefault(stream, []) if stream else self.others).append(event)

    def begin(self, path: str, headers: dict[str, str] | None = None, *, end: bool = False, method="POST") -> int:
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "test")]
        self.h2.send_headers(stream, pseudo + list((headers or {}).items()), end_stream=end)
        self.flush()
        return stream

    async def send(self, stream: int, body: bytes, *, end: bool = True) -> None:
        while body:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(body))
            if room <= 0:
                assert await self.pump()
                continue
            self.h2.send_data(stream, body[:room])
            body = body[room:]
            self.flush()
            await self.writer.drain()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    async def request(self, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        stream = self.begin(path, headers)
        await self.send(stream, body)
        return await self.answer(stream)

    async def answer(self, stream: int) -> Answer:
        while not self.ended(stream):
            assert await self.pump(), "the connection ended"
        events = self.events[stream]
        head = next(e for e in events if isinstance(e, h2.events.ResponseReceived))
        headers = dict(head.headers)
        return Answer(int(headers[":status"]), headers, self.data(stream))

    def ended(self, stream: int) -> bool:
        kinds = (h2.events.StreamEnded, h2.events.StreamReset)
        return any(isinstance(event, kinds) for event in self.events.get(stream, ()))

    def data(self, stream: int) -> bytes:
        return b"".join(e.data for e in self.events.get(stream, ()) if isinstance(e, h2.events.DataReceived))

    async def data_of(self, stream: int, size: int) -> bytes:
        """The first `size` bytes of an answer that goes on."""
        while len(self.data(stream)) < size:
            assert await self.pump(), "the connection ended"
        return self.data(stream)


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
