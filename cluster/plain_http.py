"""HTTP/1.1 without a library: one POST on an open connection, whose answer names its length."""

from __future__ import annotations

import asyncio


async def post(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    host: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
) -> tuple[int, bytes]:
    """Returns (status, body). Raises OSError or EOFError when the connection breaks.

    Args:
        streams: a connection on which nothing is under way.
        host: as the request names it.
        path, headers, body: of the request.
    """
    reader, writer = streams
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    status = int((await reader.readuntil(b"\r\n")).split()[1])
    size = 0
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.decode().partition(":")
        if name.lower() == "content-length":
            size = int(value)
    return status, await reader.readexactly(size)
