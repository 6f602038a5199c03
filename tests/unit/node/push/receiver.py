"""A receiver of pushes on a real socket, which answers as it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

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
            self._tasks.discard(task)
            writer.close()

    def break_off(self) -> None:
        for task in list(self._tasks):
            task.cancel()


@asynccontextmanager
async def receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.take, "0.0.0.0" if tls else "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.break_off()
        await asyncio.sleep(0)
        await server.wait_closed()
