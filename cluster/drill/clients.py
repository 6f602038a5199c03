"""Clients of a region: our own over gRPC, and one of KV Connect through a gateway beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Protocol, cast

from cluster.drill.record import Via
from cluster.plain_http import post
from kvnode.base.errors import KvError, OutcomeUnknown, Unavailable
from kvnode.client.session import Session
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2

TIMEOUT_MS = 20_000
MAX_CONNECTIONS_COUNT = 64


class Client(Protocol):
    """What the traffic needs of a client; calls raise KvError."""

    name: str
    region: str
    via: Via

    async def write(self, request: kv_pb2.AtomicWriteRequest) -> kv_pb2.AtomicWriteResponse:
        """One atomic write."""

    async def read(self, request: kv_pb2.ReadRequest) -> kv_pb2.ReadResponse:
        """One read."""

    async def close(self) -> None:
        """Leave."""


class GrpcClient:
    """The Python client's session; the nearest address first, the others for when that is gone."""

    via: Via = "grpc"

    def __init__(self, name: str, region: str, addresses: Sequence[str]) -> None:
        self.name = name
        self.region = region
        self._session = Session(addresses)

    async def write(self, request: kv_pb2.AtomicWriteRequest) -> kv_pb2.AtomicWriteResponse:
        """See Client."""
        return await self._session.write(request, TIMEOUT_MS)

    async def read(self, request: kv_pb2.ReadRequest) -> kv_pb2.ReadResponse:
        """See Client."""
        return await self._session.read(request, TIMEOUT_MS)

    async def close(self) -> None:
        """See Client."""
        await self._session.close()


class ConnectClient:
    """HTTP/1.1 with kept connections, each with one request at a time; nothing is sent twice.

    Args:
        address: host:port of a gateway or node.
        token: an access token.
    """

    via: Via = "connect"

    def __init__(self, name: str, region: str, address: str, token: str) -> None:
        self.name = name
        self.region = region
        self._address = address
        self._token = token
        self._headers: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self) -> None:
        """The metadata exchange. Raises KvError."""
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        metadata = json.loads(await self._post("/", headers, b'{"supportedVersions":[1,2,3]}'))
        for endpoint in reversed(metadata["endpoints"]):
            self._paths[endpoint["consistency"]] = endpoint["url"]
        self._headers = {
            "authorization": f"Bearer {metadata['token']}",
            "content-type": "application/x-protobuf",
            "x-denokv-version": str(metadata["version"]),
            "x-denokv-database-id": metadata["databaseId"],
        }

    async def write(self, request: kv_pb2.AtomicWriteRequest) -> kv_pb2.AtomicWriteResponse:
        """See Client."""
        mutations = [
            wire.Mutation(
                key=item.key,
                value=wire.KvValue(data=item.value.data, encoding=cast("wire.ValueEncoding", item.value.encoding)),
                mutation_type=cast("wire.MutationType", item.type),
            )
            for item in request.mutations
        ]
        body = await self._call("strong", "atomic_write", wire.AtomicWrite(mutations=mutations).SerializeToString())
        output = wire.AtomicWriteOutput.FromString(body)
        status = (
            kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
            if output.status == wire.AW_SUCCESS
            else kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED
        )
        return kv_pb2.AtomicWriteResponse(status=status, versionstamp=output.versionstamp)

    async def read(self, request: kv_pb2.ReadRequest) -> kv_pb2.ReadResponse:
        """See Client. The answer names no versionstamp: KV Connect has none for a read."""
        strong = request.consistency == kv_pb2.CONSISTENCY_STRONG
        ranges = [wire.ReadRange(start=item.start, end=item.end, limit=item.limit) for item in request.ranges]
        kind = "strong" if strong or "eventual" not in self._paths else "eventual"
        await self._call(kind, "snapshot_read", wire.SnapshotRead(ranges=ranges).SerializeToString())
        return kv_pb2.ReadResponse()

    async def close(self) -> None:
        """See Client."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _call(self, kind: str, method: str, body: bytes) -> bytes:
        if not self._headers:
            await self.open()
        return await self._post(f"{self._paths[kind]}/{method}", self._headers, body)

    async def _post(self, path: str, headers: dict[str, str], body: bytes) -> bytes:
        streams = None
        try:
            async with asyncio.timeout(TIMEOUT_MS / 1_000):
                host, _, port = self._address.rpartition(":")
                streams = self._idle.pop() if self._idle else await asyncio.open_connection(host, int(port))
                status, answer = await post(streams, self._address, path, headers, body)
        except (OSError, EOFError, TimeoutError) as error:
            if streams is not None:
                streams[1].close()
            raise OutcomeUnknown(f"{self._address}: {type(error).__name__}: {error}") from None
        if len(self._idle) < MAX_CONNECTIONS_COUNT:
            self._idle.append(streams)
        else:
            streams[1].close()
        if status != 200:
            raise _error(status, answer)
        return answer


def _error(status: int, answer: bytes) -> KvError:
    text = f"HTTP {status}: {answer.decode(errors='replace')}"
    return Unavailable(text, code=f"HTTP_{status}") if status < 500 else OutcomeUnknown(text)
