"""The proxy as a process of its own: `python -m cluster.wan.process SOCKET` takes orders there, a line of JSON each."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from cluster.wan.server import WanServer
from kvnode.base import garbage

MAX_ORDER_BYTES = 1_048_576


async def serve(socket: Path) -> None:
    """Until SIGTERM."""
    wan = WanServer()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)

    async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                answer = await wan.obey(json.loads(line))
            except (KeyError, ValueError, OSError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    control = await asyncio.start_unix_server(obey, socket, limit=MAX_ORDER_BYTES)
    garbage.settle()  # what it carries waits while the collector walks
    try:
        await stopping.wait()
    finally:
        control.close()
        await wan.close()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    try:
        uvloop.run(serve(path))
    finally:
        path.unlink(missing_ok=True)
