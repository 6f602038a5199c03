"""A receiver of pushes on a real socket, which answers as it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

_ACCEPT_PASSES_COUNT = 5  # of the loop, until a connection that was just accepted has its task
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Received(NamedTuple):
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int  # the first has 1


class Receiver:
    """Answers each request with what `answer` gives; an answer that is empty closes, None leaves it open."""

    def __init__(self) -> None:
        self.answer: Callable[[Received], bytes | None] = lambda _request: OK
        self.requests: list[Received] = []
        self.port = 0
        self._connections_count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=b"

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections_count += 1
        number = self._connections_count
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.strip().split("\r\n")
                headers = dict(part.split(": ", 1) for part in rest)
                body = await reader.readexactly(int(headers["content-length"]))
                request = Received(line, headers, body, number)
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    await asyncio.sleep(3_600)
                writer.write(answer or b"")
                await writer.drain()
                if not answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            try:
                await _close(writer)
            finally:
                self._tasks.discard(task)

    def break_off(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def ended(self) -> None:
        """Every connection is closed, and nothing of it is left to the garbage collector."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(1):
            await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.CancelledError):  # TLS waits for the other side to say goodbye
        writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.take, "0.0.0.0" if tls else "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for _ in range(_ACCEPT_PASSES_COUNT):
            await asyncio.sleep(0)
        made.break_off()
        await made.ended()
        await server.wait_closed()
