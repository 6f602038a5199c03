"""A client of KV Connect for tests: one HTTP/1.1 connection, one request at a time, nothing hidden.

It sends again after a lost connection or a 5xx, as the real clients do, and counts how often.
"""

from __future__ import annotations

import asyncio
import json

from cluster.plain_http import post
from kvnode.codec.keys import encode_key
from kvnode.proto.deno import datapath_pb2 as wire

RETRY_S = 0.1
U64 = 8


class HttpClient:
    """Keep-alive HTTP/1.1 to one host:port."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.host, self.port = host, int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """(status, body). Raises OSError or EOFError when the connection breaks; the next post opens another."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self.host, self.port)
            return await post(self._streams, f"{self.host}:{self.port}", path, headers, body)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class ConnectClient:
    """The default database by one URL.

    Attributes:
        statuses: how often each HTTP status came.
        breaks: how often the connection broke under a request.
    """

    def __init__(self, address: str, token: str) -> None:
        self._http = HttpClient(address)
        self._token = token
        self._path = ""
        self._headers: dict[str, str] = {}
        self.statuses: dict[int, int] = {}
        self.breaks = 0

    async def open(self) -> None:
        """The metadata exchange."""
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        status, body = await self._http.post("/", headers, b'{"supportedVersions":[1,2,3]}')
        assert status == 200, body
        metadata = json.loads(body)
        self._path = next(each["url"] for each in metadata["endpoints"] if each["consistency"] == "strong")
        self._headers = {
            "authorization": f"Bearer {metadata['token']}",
            "content-type": "application/x-protobuf",
            "x-denokv-version": "3",
            "x-denokv-database-id": metadata["databaseId"],
        }

    async def once(self, method: str, body: bytes) -> tuple[int, bytes]:
        """One request, sent once."""
        status, answer = await self._http.post(f"{self._path}/{method}", self._headers, body)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        return status, answer

    async def call(self, method: str, body: bytes) -> bytes:
        """One request, sent again until it is answered."""
        while True:
            try:
                status, answer = await self.once(method, body)
                if status == 200:
                    return answer
                assert status >= 500, answer
            except (OSError, EOFError):
                self.breaks += 1
            await asyncio.sleep(RETRY_S)

    async def write(self, write: wire.AtomicWrite) -> wire.AtomicWriteOutput:
        """One transaction."""
        return wire.AtomicWriteOutput.FromString(await self.call("atomic_write", write.SerializeToString()))

    async def get(self, *key: str | int) -> wire.KvEntry | None:
        """One strong read."""
        start = encode_key(key)
        read = wire.SnapshotRead(ranges=[wire.ReadRange(start=start, end=start + b"\x00", limit=1)])
        output = wire.SnapshotReadOutput.FromString(await self.call("snapshot_read", read.SerializeToString()))
        values = output.ranges[0].values
        return values[0] if values else None

    def close(self) -> None:
        """Leave."""
        self._http.close()


def add(*key: str | int, by: int = 1) -> wire.AtomicWrite:
    """A sum."""
    value = wire.KvValue(data=by.to_bytes(U64, "little"), encoding=wire.VE_LE64)
    return wire.AtomicWrite(mutations=[wire.Mutation(key=encode_key(key), value=value, mutation_type=wire.M_SUM)])


def create(*key: str | int, value: bytes = b"") -> wire.AtomicWrite:
    """A set of a key that must not exist."""
    encoded = encode_key(key)
    data = wire.KvValue(data=value, encoding=wire.VE_BYTES)
    return wire.AtomicWrite(
        checks=[wire.Check(key=encoded)],
        mutations=[wire.Mutation(key=encoded, value=data, mutation_type=wire.M_SET)],
    )
