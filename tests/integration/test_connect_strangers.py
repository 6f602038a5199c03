"""What strangers send to the KV Connect port of a real node: each gets its answer, the others do not feel it."""

from __future__ import annotations

import asyncio
import re
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import h2.events
import pytest

from cluster.launcher import LocalCluster
from kvnode.base import limits
from kvnode.proto.deno import datapath_pb2 as wire
from tests.integration.test_connect import TOKEN, Remote
from tests.unit.api.connect.support import get_bytes, metadata_headers, set_bytes
from tests.unit.api.http.raw import Answer, Http1, Http2

METHODS = ("snapshot_read", "atomic_write", "watch")
MAX_GROWTH_BYTES = 96 << 20  # of a node's resident memory, over all that happens here
MAX_NEIGHBOUR_PAUSE_S = 3.0  # the longest that a well-behaved client's set may take meanwhile, on two busy cores
NEEDED_FILES_COUNT = 5_000
STREAMS_COUNT = limits.MAX_HTTP2_STREAMS_COUNT + 100


class Node:
    """A follower under test, with a well-behaved client at its side."""

    def __init__(self, remote: Remote, pid: int) -> None:
        self.remote = remote
        self.pid = pid
        self.longest_s = 0.0
        self.sets_count = 0

    def resident_bytes(self) -> int:
        (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(kib) * 1024

    def path(self, method: str) -> str:
        return f"{self.remote.endpoints['strong']}/{method}"

    async def once(self, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        client = await Http1.open(self.remote.port)
        try:
            return await client.request(path, headers, body)
        finally:
            await client.close()

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Sets and gets go on all the time, each within its bound, and memory stays bounded."""
        before = self.resident_bytes()
        neighbour = asyncio.create_task(self._neighbour())
        try:
            yield
            await asyncio.sleep(0.2)
            assert not neighbour.done(), neighbour
        finally:
            neighbour.cancel()
            await asyncio.gather(neighbour, return_exceptions=True)
        assert self.sets_count
        assert self.longest_s < MAX_NEIGHBOUR_PAUSE_S
        assert self.resident_bytes() - before < MAX_GROWTH_BYTES

    async def _neighbour(self) -> None:
        client = await Http1.open(self.remote.port)
        try:
            while True:
                began = time.monotonic()
                value = b"%d" % self.sets_count
                await self.remote.set(client, b"neighbour", value)
                assert await self.remote.get(client, b"neighbour") == value
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.sets_count += 1
                await asyncio.sleep(0.01)
        finally:
            await client.close()


@pytest.fixture
async def node(make_cluster, many_files: None) -> Node:
    cluster: LocalCluster = await asyncio.to_thread(make_cluster, arguments=["--access-token", TOKEN])
    leader = await asyncio.to_thread(cluster.wait_leader)
    follower = next(node for name, node in cluster.nodes.items() if name != leader)
    remote = Remote(follower.connect_address)
    await remote.exchange()
    return Node(remote, follower.child.pid)


@pytest.fixture
def many_files(cold_nodes: None) -> Iterator[None]:
    """As many open files as 2,000 connections take; nodes that are started inherit it, forked ones would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < NEEDED_FILES_COUNT:
        pytest.skip(
            f"2,000 connections need {NEEDED_FILES_COUNT} open files and {hard} are allowed: raise `ulimit -Hn`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (10_000 if hard < 0 else min(hard, 10_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_requests_that_are_wrong(node: Node) -> None:
    offer = b'{"supportedVersions":[1,2,3]}'
    good = node.remote.headers
    async with node.undisturbed():
        for wrong, said in (("", b"Malformed authorization header."), ("wrong", b"token"), (TOKEN + "x", b"token")):
            answer = await node.once("/", metadata_headers(wrong), offer)
            assert answer.status == 401 and said in answer.body
        assert (await node.once("/", metadata_headers(TOKEN), b'{"supportedVersions":[9]}')).status == 400
        assert (await node.once("/", metadata_headers(TOKEN), b"{")).status == 400
        unknown = await node.once(f"/databases/{uuid4()}/connect", metadata_headers(TOKEN), offer)
        assert unknown.status == 404 and unknown.body
        assert (await node.once("/no/such/path", good, get_bytes())).status == 404
        for method in METHODS:
            path = node.path(method)
            assert (await node.once(path, good | {"authorization": "Bearer x"}, get_bytes())).status == 401
            other = await node.once(path, good | {"x-denokv-database-id": str(uuid4())}, get_bytes())
            assert other == Answer(400, other.headers, b"Invalid database id.")
            version = await node.once(path, good | {"x-denokv-version": "4"}, get_bytes())
            assert version.status == 400 and version.body.startswith(b"Expected protocol version")
            torn = await node.once(path, good, b"\x0a\xff\xff")
            assert torn.status == 400 and torn.body.startswith(b"Request protobuf is invalid")
            large = await node.once(path, good, bytes(limits.MAX_CONNECT_BODY_BYTES + 1))
            assert large.status == 413


async def test_writes_that_offer_an_upgrade_are_written(node: Node) -> None:
    """As `curl --http2` and Java's HttpClient send them; what is acknowledged must be there."""
    offer = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    head = f"POST {node.path('atomic_write')} HTTP/1.1\r\nhost: test\r\n{offer}"
    head += "".join(f"{name}: {value}\r\n" for name, value in node.remote.headers.items())

    def write(key: bytes, framing: str = "", *, chunked: bool = False) -> list[bytes]:
        body = set_bytes(key, key)
        if chunked:
            return [f"{head}transfer-encoding: chunked\r\n\r\n".encode(), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)]
        return [f"{head}{framing}content-length: {len(body)}\r\n\r\n".encode(), body[:5], body[5:]]

    pipelined = b"".join(b"".join(write(key)) for key in (b"first", b"second"))
    ways = {
        (b"whole",): [b"".join(write(b"whole"))],
        (b"pieces",): write(b"pieces"),
        (b"chunks",): write(b"chunks", chunked=True),
        (b"asked",): write(b"asked", "expect: 100-continue\r\n"),
        (b"first", b"second"): [pipelined],
    }
    async with node.undisturbed():
        client, reader = await Http1.open(node.remote.port), await Http1.open(node.remote.port)
        for keys, pieces in ways.items():
            for piece in pieces:
                client.send(piece)
                await asyncio.sleep(0.05)
            if keys == (b"asked",):
                assert (await client.head())[0] == 100
            for key in keys:
                written = wire.AtomicWriteOutput.FromString((await client.answer()).body)
                assert written.status == wire.AW_SUCCESS
                assert await node.remote.get(reader, key) == key
        await client.close()
        await reader.close()


async def test_slow_senders_are_refused_in_time(node: Node) -> None:
    head = f"POST {node.path('atomic_write')} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in node.remote.headers.items())
    body = set_bytes(b"slow", b"v")
    async with node.undisturbed():
        clients = [await Http1.open(node.remote.port) for _ in range(50)]
        for client in clients:
            client.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:-1])
        async with asyncio.timeout(limits.HTTP_BODY_TIMEOUT_MS / 1000 + 10):
            assert {(await client.answer()).status for client in clients} == {408}
            assert all([await client.closed() for client in clients])
        for client in clients:
            await client.close()
    reader = await Http1.open(node.remote.port)
    assert await node.remote.get(reader, b"slow") is None
    await reader.close()


async def test_2000_idle_connections(node: Node) -> None:
    async with node.undisturbed():
        idle = [await Http1.open(node.remote.port) for _ in range(2_000)]
        for client in idle[::20]:
            assert await node.remote.get(client, b"nothing") is None
        await asyncio.sleep(1)
        for client in idle[::50]:  # none was thrown out
            assert await node.remote.get(client, b"nothing") is None
        await asyncio.gather(*(client.close() for client in idle))


async def test_more_http_2_streams_than_allowed(node: Node) -> None:
    async with node.undisturbed():
        client = await Http2.open(node.remote.port)
        while client.h2.remote_settings.max_concurrent_streams != limits.MAX_HTTP2_STREAMS_COUNT:
            assert await client.pump()
        client.h2.remote_settings.max_concurrent_streams = 10 * STREAMS_COUNT  # a client that does not care
        client.h2.remote_settings.acknowledge()
        streams = [client.begin(node.path("atomic_write"), node.remote.headers) for _ in range(STREAMS_COUNT)]

        def refused() -> list[int]:
            resets = ((stream, event) for stream in streams for event in client.events.get(stream, ()))
            return [stream for stream, event in resets if isinstance(event, h2.events.StreamReset)]

        while len(refused()) < STREAMS_COUNT - limits.MAX_HTTP2_STREAMS_COUNT:
            assert await client.pump()
        assert refused() == streams[limits.MAX_HTTP2_STREAMS_COUNT :]
        await client.send(streams[0], set_bytes(b"first", b"in"))  # those within the limit are served
        assert (await client.answer(streams[0])).status == 200
        await client.close()
