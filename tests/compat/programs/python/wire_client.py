"""KV Connect without a client: protobuf messages over HTTP/1.1, with no check of any limit before they leave."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin

import aiohttp
from denokv import _datapath_pb2 as pb
from denokv.datapath import pack_key


class Answered(Exception):
    """The server answered with another status than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")


class Wire:
    """One database.

    Args:
        session: of aiohttp.
        metadata: what the metadata exchange answered.
        base: the URL against which endpoints are resolved.
    """

    def __init__(self, session: aiohttp.ClientSession, metadata: dict[str, Any], base: str) -> None:
        self.session, self.metadata = session, metadata
        endpoints = metadata["endpoints"]
        self.urls = {kind: urljoin(base, _first(endpoints, kind)) for kind in ("strong", "eventual")}

    async def call(
        self, method: str, body: bytes, *, endpoint: str = "strong", headers: dict[str, str] | None = None
    ) -> bytes:
        """One request on the data path. Raises Answered."""
        async with self.session.post(
            f"{self.urls[endpoint]}/{method}", data=body, headers={**self.headers(), **(headers or {})}
        ) as response:
            content = await response.read()
            if response.status != 200:
                raise Answered(response.status, content.decode())
            return content

    def headers(self) -> dict[str, str]:
        """Of a request on the data path."""
        return {
            "authorization": f"Bearer {self.metadata['token']}",
            "content-type": "application/x-protobuf",
            "x-denokv-version": str(self.metadata["version"]),
            "x-denokv-database-id": self.metadata["databaseId"],
        }

    async def read(self, *ranges: pb.ReadRange, endpoint: str = "strong") -> Any:
        """A snapshot read of some ranges."""
        content = await self.call(
            "snapshot_read", pb.SnapshotRead(ranges=ranges).SerializeToString(), endpoint=endpoint
        )
        return pb.SnapshotReadOutput.FromString(content)

    async def get(self, key: bytes) -> Any:
        """The entry under a packed key, or None."""
        output = await self.read(pb.ReadRange(start=key, end=key + b"\x00", limit=1))
        return output.ranges[0].values[0] if output.ranges[0].values else None

    async def write(self, *mutations: pb.Mutation, checks: tuple[Any, ...] = (), enqueues: tuple[Any, ...] = ()) -> Any:
        """An atomic write."""
        message = pb.AtomicWrite(mutations=mutations, checks=checks, enqueues=enqueues)
        return pb.AtomicWriteOutput.FromString(await self.call("atomic_write", message.SerializeToString()))

    async def watch(self, *keys: bytes) -> AsyncIterator[Any]:
        """The frames of a watch; None for a ping."""
        message = pb.Watch(keys=[pb.WatchKey(key=key) for key in keys])
        async with self.session.post(
            f"{self.urls['strong']}/watch", data=message.SerializeToString(), headers=self.headers()
        ) as response:
            if response.status != 200:
                raise Answered(response.status, await response.text())
            while True:
                (length,) = struct.unpack("<I", await response.content.readexactly(4))
                yield pb.WatchOutput.FromString(await response.content.readexactly(length)) if length else None

    async def aclose(self) -> None:
        """Close its connections."""
        await self.session.close()


def _first(endpoints: list[dict[str, str]], kind: str) -> str:
    return next(endpoint["url"] for endpoint in endpoints if endpoint["consistency"] == kind)


async def exchange(
    session: aiohttp.ClientSession, url: str, token: str, body: bytes | None = b'{"supportedVersions":[1,2,3]}'
) -> dict[str, Any]:
    """The metadata exchange. Raises Answered."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    async with session.post(url, data=body, headers=headers) as response:
        text = await response.text()
        if response.status != 200:
            raise Answered(response.status, text)
        metadata: dict[str, Any] = json.loads(text)
        return metadata


async def open_wire(url: str, token: str) -> Wire:
    """Open a database. Raises Answered."""
    session = aiohttp.ClientSession()
    try:
        return Wire(session, await exchange(session, url, token), url)
    except BaseException:
        await session.close()
        raise


def packed(*parts: Any) -> bytes:
    """A packed key; whole numbers are JavaScript numbers."""
    return pack_key(tuple(float(part) if type(part) is int else part for part in parts))


def value(data: bytes, encoding: int = pb.VE_BYTES) -> Any:
    """A KvValue."""
    return pb.KvValue(data=data, encoding=encoding)


def u64(number: int) -> Any:
    """A KvU64."""
    return value(number.to_bytes(8, "little"), pb.VE_LE64)


def set_(key: bytes, data: bytes = b"v", encoding: int = pb.VE_BYTES, **more: Any) -> Any:
    """A set mutation."""
    return pb.Mutation(key=key, value=value(data, encoding), mutation_type=pb.M_SET, **more)
