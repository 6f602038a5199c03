"""What a program near a replica gets: reads and watches that say their age, its own writes, databases and tokens."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from typing import Any, NamedTuple

from cluster.launcher import LocalCluster, LocalNode, NodeSpec
from kvnode.base.errors import KvError
from kvnode.client import Admin, open_kv
from kvnode.client.results import Consistency
from kvnode.codec.keys import encode_key
from kvnode.proto.deno import datapath_pb2 as wire
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import error_of, eventually, put
from tests.integration.test_membership import kvnode
from tests.integration.test_replicas import arrives

EUROPE = NodeSpec("e1", "eu-a", "europe")
STATIC = "a-static-token-of-the-test"


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


async def replica_of(cluster: LocalCluster) -> LocalNode:
    """Join one replica in another region and wait until it serves."""
    node = await asyncio.to_thread(cluster.join, EUROPE)
    await kvnode(cluster, "member", "add", node.address, "--replica", at="a")
    await asyncio.to_thread(cluster.wait_ready, [EUROPE.name])
    return node


def post(node: LocalNode, path: str, headers: dict[str, str], body: bytes) -> Answer:
    connection = http.client.HTTPConnection(node.connect_address, timeout=20)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
    finally:
        connection.close()


async def exchange(node: LocalNode, database: str, token: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    answer = await asyncio.to_thread(post, node, f"/{database}", headers, b'{"supportedVersions":[3]}')
    assert answer.status == 200, answer
    return json.loads(answer.body)


def data_headers(metadata: dict[str, Any], **further: str) -> dict[str, str]:
    return {
        "authorization": f"Bearer {metadata['token']}",
        "content-type": "application/x-protobuf",
        "x-denokv-version": "3",
        "x-denokv-database-id": metadata["databaseId"],
        **{f"x-kvnode-{name.replace('_', '-')}": value for name, value in further.items()},
    }


def get_body(name: str) -> bytes:
    key = encode_key((name,))
    return wire.SnapshotRead(ranges=[wire.ReadRange(start=key, end=key + b"\x00", limit=1)]).SerializeToString()


def set_body(name: str, value: bytes) -> bytes:
    data = wire.KvValue(data=value, encoding=wire.VE_BYTES)
    mutation = wire.Mutation(key=encode_key((name,)), value=data, mutation_type=wire.M_SET)
    return wire.AtomicWrite(mutations=[mutation]).SerializeToString()


def value_of(answer: Answer) -> bytes:
    assert answer.status == 200, answer
    return wire.SnapshotReadOutput.FromString(answer.body).ranges[0].values[0].value


def watch_until(node: LocalNode, metadata: dict[str, Any], url: str, name: str, value: bytes) -> dict[str, str]:
    """Watch over KV Connect until the value shows; returns the answer's headers."""
    connection = http.client.HTTPConnection(node.connect_address, timeout=20)
    try:
        body = wire.Watch(keys=[wire.WatchKey(key=encode_key((name,)))]).SerializeToString()
        connection.request("POST", f"{url}/watch", body, data_headers(metadata))
        response = connection.getresponse()
        assert response.status == 200
        seen = b""
        while value not in seen:
            chunk = response.read1(65_536)
            assert chunk, "the watch ended"
            seen += chunk
        return {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


async def test_deno_clients_near_a_replica(make_cluster: MakeCluster) -> None:
    """KV Connect at a replica: its own endpoints, its own database, a token that is revoked on the other side."""
    cluster = make_cluster(arguments=("--access-token", STATIC))
    replica = await replica_of(cluster)
    async with Admin([replica.address], token=STATIC) as admin:
        await admin.create_database("orders")
        made = await admin.create_token(database="orders", label="near")
    metadata = await exchange(replica, "orders", made.secret)
    urls = {each["consistency"]: each["url"] for each in metadata["endpoints"]}
    assert [each["consistency"] for each in metadata["endpoints"]] == ["eventual", "strong"]
    assert urls["eventual"].startswith("/data/"), "a path on the same origin: the node that answered"

    async def call(consistency: str, method: str, body: bytes, **further: str) -> Answer:
        path = f"{urls[consistency]}/{method}"
        return await asyncio.to_thread(post, replica, path, data_headers(metadata, **further), body)

    written = await call("strong", "atomic_write", set_body("k", b"written far away"))
    stamp = wire.AtomicWriteOutput.FromString(written.body).versionstamp
    assert len(stamp) == 10, written
    own = await call("eventual", "snapshot_read", get_body("k"), min_versionstamp=stamp.hex())
    assert value_of(own) == b"written far away"
    assert own.headers["content-type"] == "application/x-protobuf"
    assert 0 <= int(own.headers["x-kvnode-age-ms"]) < 15_000
    assert own.headers["x-kvnode-versionstamp"] >= stamp.hex()
    assert value_of(await call("strong", "snapshot_read", get_body("k"))) == b"written far away"
    fresh = await call("eventual", "snapshot_read", get_body("k"), max_staleness_ms="400")
    assert value_of(fresh) == b"written far away" and int(fresh.headers["x-kvnode-age-ms"]) <= 400, "it came further"
    watching = asyncio.to_thread(watch_until, replica, metadata, urls["eventual"], "k", b"changed")
    _, seen = await asyncio.gather(call("strong", "atomic_write", set_body("k", b"changed")), watching)
    assert int(seen["x-kvnode-age-ms"]) >= 0

    async with Admin([cluster.nodes["a"].address], token=STATIC) as admin:
        await admin.revoke_token(made.token.token_id)
    began = time.monotonic()
    while (await call("eventual", "snapshot_read", get_body("k"))).status == 200:
        assert time.monotonic() - began < 10, "the revocation did not reach the replica"
        await asyncio.sleep(0.02)
    assert (await call("eventual", "snapshot_read", get_body("k"))).status == 401


async def test_ages_and_bounds_while_the_primary_region_is_silent(cluster: LocalCluster) -> None:
    replica = await replica_of(cluster)
    async with open_kv([cluster.nodes["a"].address]) as near, open_kv([replica.address]) as far:
        written = await near.set(("k",), "v")
        assert written.versionstamp is not None
        own = await far.get(("k",), consistency="eventual", min_versionstamp=written.versionstamp)
        assert own.value == "v" and own.age_ms >= 0
        watched = far.watch([("k",)], consistency="eventual")
        (first,) = await anext(watched)
        assert first.value == "v" and 0 <= first.age_ms < 15_000 and watched.age_ms == first.age_ms
        onward = metric(replica, "kvnode_reads_onward_total")
        bounded = await far.get(("k",), consistency="eventual", max_staleness_ms=400)
        assert bounded.value == "v" and 0 <= bounded.age_ms <= 400
        assert metric(replica, "kvnode_reads_onward_total") > onward, "no replica can be so sure by itself"
        for name in "abc":
            cluster.pause(name)
        try:
            await asyncio.sleep(2.5)
            old = await far.get(("k",), consistency="eventual")
            assert old.value == "v" and old.age_ms >= 2_500, "it knows nothing newer, and says so"
            error = await error_of(far.get(("k",), consistency="eventual", max_staleness_ms=1_000))
            assert error.code == "TOO_STALE" and "1000 ms" in error.message
        finally:
            for name in "abc":
                cluster.resume(name)

        async def is_fresh() -> bool:
            try:
                return (await far.get(("k",), consistency="eventual", max_staleness_ms=2_000)).value == "v"
            except KvError as error:
                assert error.code == "TOO_STALE"
                return False

        began = time.monotonic()
        while not await is_fresh():
            assert time.monotonic() - began < 20
            await asyncio.sleep(0.1)
    await eventually(lambda: metric(replica, "kvnode_age_ms") < 3_000, "it stays old")


def metric(node: LocalNode, name: str) -> float:
    status, text = node.http("/metrics")
    assert status == 200
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def test_who_waits_for_a_stamp_in_vain_is_told_how_far_the_node_is(cluster: LocalCluster) -> None:
    """docs/howto/regions.md: at the deadline the answer is DEADLINE_EXCEEDED and says how far the node is."""
    node = await replica_of(cluster)
    stamp = await put(cluster.addresses[0], "k")
    await arrives(node.address, "k")
    future = (stamp[:2] + (10**6).to_bytes(6, "big") + bytes(2)).hex()
    consistencies: tuple[Consistency, ...] = ("eventual", "strong")
    for address in (node.address, cluster.addresses[0]):
        async with open_kv([address]) as kv:
            for way in ("single calls", "a session"):
                errors = await asyncio.gather(
                    *(
                        error_of(kv.get(("k",), consistency=consistency, min_versionstamp=future, timeout_ms=2_000))
                        for consistency in consistencies
                    )
                )
                for consistency, error in zip(consistencies, errors, strict=True):
                    assert error.code == "DEADLINE_EXCEEDED"
                    assert "it is at" in error.message, (address, way, consistency, error)
                await kv.set(("session",), 1)  # from here on reads go with the writes
