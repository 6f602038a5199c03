"""KV Connect on three real nodes, spoken by hand."""

from __future__ import annotations

import asyncio
import json
import struct
import time

from cluster.launcher import LocalCluster
from kvnode.proto.deno import datapath_pb2 as wire
from tests.unit.api.connect.support import get_bytes, metadata_headers, set_bytes, watch_bytes
from tests.unit.api.http.raw import Http1, Http2

TOKEN = "an-access-token-for-tests"


class Remote:
    """A database as one node's KV Connect port shows it."""

    def __init__(self, address: str, token: str = TOKEN) -> None:
        self.token = token
        self.port = int(address.rpartition(":")[2])
        self.headers: dict[str, str] = {}
        self.endpoints: dict[str, str] = {}

    async def exchange(self) -> None:
        client = await Http1.open(self.port)
        answer = await client.request("/", metadata_headers(self.token), b'{"supportedVersions":[1,2,3]}')
        await client.close()
        assert answer.status == 200, answer
        found = json.loads(answer.body)
        self.endpoints = {endpoint["consistency"]: endpoint["url"] for endpoint in found["endpoints"]}
        self.headers = {
            "authorization": f"Bearer {found['token']}",
            "x-denokv-version": "3",
            "x-denokv-database-id": found["databaseId"],
        }

    async def set(self, client: Http1 | Http2, key: bytes, value: bytes) -> bytes:
        path = f"{self.endpoints['strong']}/atomic_write"
        answer = await client.request(path, self.headers, set_bytes(key, value))
        assert answer.status == 200, answer
        written = wire.AtomicWriteOutput.FromString(answer.body)
        assert written.status == wire.AW_SUCCESS
        return written.versionstamp

    async def get(self, client: Http1 | Http2, key: bytes, consistency: str = "strong") -> bytes | None:
        path = f"{self.endpoints[consistency]}/snapshot_read"
        answer = await client.request(path, self.headers, get_bytes(key))
        assert answer.status == 200, answer
        values = wire.SnapshotReadOutput.FromString(answer.body).ranges[0].values
        return values[0].value if values else None


async def test_every_node_serves_the_same_database(make_cluster) -> None:
    cluster: LocalCluster = await asyncio.to_thread(make_cluster, arguments=["--access-token", TOKEN])
    remotes = [Remote(node.connect_address) for node in cluster.nodes.values()]
    for remote in remotes:
        await remote.exchange()
    assert len({remote.endpoints["strong"] for remote in remotes}) == 1
    stamps = []
    for number, remote in enumerate(remotes):
        for open_ in (Http1.open, Http2.open):
            client = await open_(remote.port)
            stamps.append(await remote.set(client, b"k", b"%d" % number))
            await client.close()
        for reader in remotes:  # with a data token of another node, too
            client = await Http1.open(reader.port)
            assert await remote.get(client, b"k") == b"%d" % number
            await client.close()
    assert stamps == sorted(set(stamps))


async def test_a_watch_sees_what_is_written_elsewhere(make_cluster) -> None:
    cluster: LocalCluster = await asyncio.to_thread(make_cluster, arguments=["--access-token", TOKEN])
    watching, writing = (Remote(node.connect_address) for node in list(cluster.nodes.values())[:2])
    await watching.exchange()
    await writing.exchange()
    client, other = await Http2.open(watching.port), await Http1.open(writing.port)
    stream = client.begin(f"{watching.endpoints['strong']}/watch", watching.headers)
    await client.send(stream, watch_bytes(b"w"))
    seen: list[bytes | None] = []
    read = 0
    for number in range(4):
        while True:
            (size,) = struct.unpack("<I", (await client.data_of(stream, read + 4))[read : read + 4])
            frame = (await client.data_of(stream, read + 4 + size))[read + 4 : read + 4 + size]
            read += 4 + size
            if size:
                break
        key = wire.WatchOutput.FromString(frame).keys[0]
        seen.append(key.entry_if_changed.value if key.HasField("entry_if_changed") else None)
        await writing.set(other, b"w", b"%d" % number)
    assert seen == [None, b"0", b"1", b"2"]
    await client.close()
    await other.close()


async def test_a_killed_leader_is_a_pause(make_cluster) -> None:
    cluster: LocalCluster = await asyncio.to_thread(make_cluster, arguments=["--access-token", TOKEN])
    leader = await asyncio.to_thread(cluster.wait_leader)
    remote = Remote(next(node.connect_address for name, node in cluster.nodes.items() if name != leader))
    await remote.exchange()
    client = await Http1.open(remote.port)
    written, longest = 0, 0.0
    ends = time.monotonic() + 6
    killed = False
    while time.monotonic() < ends:
        if written == 50 and not killed:
            killed = True
            await asyncio.to_thread(cluster.nodes[leader].child.kill)
        began = time.monotonic()
        await remote.set(client, b"%06d" % written, b"v")
        longest = max(longest, time.monotonic() - began)
        written += 1
    assert killed
    assert longest < 5
    assert await remote.get(client, b"%06d" % (written - 1)) == b"v"
    await client.close()
