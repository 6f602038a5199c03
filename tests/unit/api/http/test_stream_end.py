"""Streams over HTTP/2 end with their server, or before it, and leave nothing behind that a stop would wait for.

In a process of their own: what a stream leaves behind is a process that does not end.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROMPT_S = 3.0
TIMEOUT_S = 40.0
PROGRAM = """
import asyncio, sys, time
import h2.events
from kvnode.api.http import HttpServer, Stream
from kvnode.base import limits
from tests.unit.api.http.raw import Http2

closed = []

async def chunks(path):
    try:
        yield b"chunk"
        if path != "/ended":
            await asyncio.Event().wait()
    finally:
        closed.append(path)

async def handle(request):
    await request.body(100)
    return Stream(chunks(request.path), "application/octet-stream")

async def read_on(client):
    while await client.pump():
        pass

async def main(path):
    server = HttpServer(handle, "127.0.0.1:0", None, http2=True)
    client = await Http2.open(await server.start())
    stream = client.begin(path)
    await client.send(stream, b"")
    assert await client.data_of(stream, 5) == b"chunk"
    if path == "/ended":
        await client.answer(stream)
    if path == "/unheard":  # the client does not acknowledge that the server goes away
        limits.SHUTDOWN_TIMEOUT_MS = 400
        began = time.monotonic()
        await server.stop()
    else:
        reading = asyncio.ensure_future(read_on(client))
        began = time.monotonic()
        await server.stop()
        await reading
        assert isinstance(client.events[stream][-1], h2.events.StreamEnded), client.events
    print(time.monotonic() - began, *closed, flush=True)
    await client.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("path", ["/open", "/ended", "/unheard"])
def test_a_stop_does_not_wait_for_streams(path: str) -> None:
    """It ends one that is open, cleanly, and one that its handler has ended is over."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"the process does not end after its server was stopped: {hung.stdout!r} {hung.stderr!r}")
    assert done.returncode == 0, done.stderr
    took_s, *closed = done.stdout.split()
    assert float(took_s) < PROMPT_S, done.stderr
    assert closed == [path]
