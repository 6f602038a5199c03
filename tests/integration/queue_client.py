"""Queues over HTTP, spoken by hand: one connection for each listener, one for the rest."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from tests.unit.api.http.raw import Http1

TOKEN = "an-access-token-for-tests"

_open: list[Http1] = []


async def close_all() -> None:
    """Leave every listener; for the end of a test."""
    while _open:
        await _open.pop().close()


class Listener:
    """One answer to `listen`, line by line."""

    def __init__(self, client: Http1) -> None:
        self.client = client
        self._text = b""

    async def line(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """The next line that is no ping; raises EOFError when there is none."""
        async with asyncio.timeout(timeout_s):
            while (found := await self._line())["type"] == "ping":
                pass
        return found

    async def messages(self, count: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """The next messages."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            line = await self.line(timeout_s)
            assert line["type"] == "message", (line, found)
            found.append(line)
        return found

    async def nothing(self, seconds: float) -> None:
        """Nothing comes for so long."""
        try:
            found = await self.line(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"it should be silent and says {found}")

    async def close(self) -> None:
        """Leave."""
        _open.remove(self.client)
        await self.client.close()

    async def _line(self) -> dict[str, Any]:
        while b"\n" not in self._text:
            chunk = await self.client.chunk()
            if not chunk:
                raise EOFError
            self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        return json.loads(line)


class QueueClient:
    """One queue at one port."""

    def __init__(self, port: int, queue: str = "work", database: str = "default", token: str = TOKEN) -> None:
        self.port, self.path, self.token = port, f"/queues/{database}/{queue}", token
        self.timeout_ms = 0  # what it says that it waits; 0 = nothing

    @property
    def headers(self) -> dict[str, str]:
        deadline = {"x-kvnode-timeout-ms": str(self.timeout_ms)} if self.timeout_ms else {}
        return deadline | ({"authorization": f"Bearer {self.token}"} if self.token else {})

    async def post(self, method: str, body: object, *, path: str = "") -> tuple[int, dict[str, Any]]:
        """One request."""
        client = await Http1.open(self.port)
        try:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await client.request(path or f"{self.path}/{method}", self.headers, raw)
            return answer.status, json.loads(answer.body)
        finally:
            await client.close()

    async def enqueue(self, *payloads: bytes, **more: object) -> dict[str, Any]:
        messages = [{"payload": base64.b64encode(each).decode(), "encoding": "bytes", **more} for each in payloads]
        status, answer = await self.post("messages", {"messages": messages})
        assert status == 200, answer
        return answer

    async def settle(self, **what: object) -> dict[str, Any]:
        status, answer = await self.post("settle", what)
        assert status == 200, answer
        return answer

    async def begin(self, **what: object) -> tuple[int, Http1]:
        """A listen whose answer is not read yet."""
        client = await Http1.open(self.port, receive_buffer_bytes=1 << 18)
        _open.append(client)
        body = json.dumps(what).encode()
        lines = [f"POST {self.path}/listen HTTP/1.1", "host: test", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        client.send("\r\n".join([*lines, "", ""]).encode() + body)
        status, _ = await client.head()
        return status, client

    async def listen(self, **what: object) -> Listener:
        """A listener that has been opened."""
        status, client = await self.begin(**what)
        assert status == 200
        listener = Listener(client)
        opened = await listener.line()
        assert opened["type"] == "opened", opened
        return listener


def payload(line: dict[str, Any]) -> bytes:
    return base64.b64decode(line["payload"])
