"""Databases and tokens on three real nodes: through changes, restarts, a snapshot and the leader's death."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sqlite3
import time
from collections.abc import Callable
from typing import NamedTuple

from grpc import aio

from cluster.launcher import LocalCluster, LocalNode
from kvnode.base.errors import KvError, NotFound, Unauthenticated
from kvnode.client import Admin, Kv, open_kv, rpc
from kvnode.node.channels import open_channel
from kvnode.proto.kv.v1 import kv_pb2
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import assert_equal_digests, error_of, write_request
from tests.integration.test_snapshot_catch_up import MIB, SMALL_LOG, leave_one_behind

WITHIN_S = 1.0  # that a revocation takes on every node
SETS_PER_COMMIT_COUNT = 500
FULL_COUNT = 30_000


class Answer(NamedTuple):
    status: int
    body: bytes


def post(node: LocalNode, path: str, token: str, body: bytes, content_type: str, **headers: str) -> Answer:
    """One request of KV Connect."""
    connection = http.client.HTTPConnection(node.connect_address, timeout=5)
    try:
        sent = {"authorization": f"Bearer {token}", "content-type": content_type, **headers}
        connection.request("POST", path, body, sent)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def exchange(node: LocalNode, database: str, token: str) -> Answer:
    """The metadata exchange at one node."""
    return post(node, f"/{database}", token, b'{"supportedVersions":[1,2,3]}', "application/json")


def data(node: LocalNode, uuid: str, data_token: str) -> int:
    """The status of a read of nothing at one node."""
    headers = {"x-denokv-version": "3", "x-denokv-database-id": uuid}
    return post(node, f"/data/{uuid}/strong/snapshot_read", data_token, b"", "application/x-protobuf", **headers).status


def watch_over_http(node: LocalNode, uuid: str, data_token: str, seen: list[bytes]) -> float:
    """Watch the key b"k" over KV Connect to the stream's end; returns when that was."""
    connection = http.client.HTTPConnection(node.connect_address, timeout=30)
    try:
        headers = {
            "authorization": f"Bearer {data_token}",
            "content-type": "application/x-protobuf",
            "x-denokv-version": "3",
            "x-denokv-database-id": uuid,
        }
        body = b"\x0a\x03\x0a\x01k"  # Watch { keys { key: "k" } }
        connection.request("POST", f"/data/{uuid}/strong/watch", body, headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while chunk := response.read1(65_536):
            seen.append(chunk)
        return time.monotonic()
    finally:
        connection.close()


def at(node: LocalNode, database: str = "", token: str = "") -> Kv:
    return open_kv([node.address], database=database, token=token, timeout_ms=10_000)


async def put(node: LocalNode, database: str, value: str) -> None:
    async with at(node, database) as kv:
        assert (await kv.set(("k",), value)).ok


async def get(node: LocalNode, database: str) -> object:
    async with at(node, database) as kv:
        return (await kv.get(("k",), consistency="eventual")).value


async def fill(node: LocalNode, database: str, count: int) -> None:
    async with at(node, database) as kv:
        for start in range(0, count, SETS_PER_COMMIT_COUNT):
            commit = kv.atomic()
            for number in range(start, min(count, start + SETS_PER_COMMIT_COUNT)):
                commit.set(("n", number), b"value")
            assert (await commit.commit()).ok


def rows_of(cluster: LocalCluster, name: str, number: int) -> int:
    """How many rows of a database a node that has ended holds in its state."""
    (file,) = (cluster.nodes[name].data_dir / "state").glob("state-*.db")
    bounds = (number.to_bytes(4, "big"), (number + 1).to_bytes(4, "big"))
    with contextlib.closing(sqlite3.connect(file)) as state:
        return int(state.execute("SELECT count(*) FROM rows WHERE key >= ? AND key < ?", bounds).fetchone()[0])


async def test_databases_are_apart_through_names_deletes_and_restarts(cluster: LocalCluster) -> None:
    a, b, c = cluster.nodes.values()
    async with Admin([b.address]) as admin:
        orders = (await admin.create_database("orders")).database
        await admin.create_database("bills")
    for node, database in ((a, ""), (c, "orders"), (b, "bills")):
        await put(node, database, database or "default")
    await assert_equal_digests(cluster)  # each node's own state is read, and it may be behind
    for node in (a, b, c):
        assert [await get(node, name) for name in ("", "orders", orders.uuid, "bills")] == [
            "default", "orders", "orders", "bills",
        ]  # fmt: skip
    async with Admin([c.address]) as admin:
        await admin.rename_database("orders", "orders-2030")
        await admin.delete_database("bills")
    for node in (a, b, c):
        assert await get(node, "orders-2030") == "orders"
        assert isinstance(await error_of(get(node, "orders")), NotFound)
        assert isinstance(await error_of(put(node, "bills", "x")), NotFound)
    async with Admin([a.address]) as admin:
        async with asyncio.timeout(20):
            while (await admin.databases()).purges:
                await asyncio.sleep(0.1)
        again = (await admin.create_database("bills")).database
    assert await get(a, "bills") is None
    for name in cluster.nodes:
        cluster.kill(name)
    for name in cluster.nodes:
        cluster.restart(name, wait=False)
    await asyncio.to_thread(cluster.wait_ready)
    for node in (a, b, c):
        async with Admin([node.address]) as admin:
            databases = {each.name: each for each in (await admin.databases()).databases}
        assert set(databases) == {"default", "orders-2030", "bills"}
        assert databases["bills"] == again and again.number == 4
        assert await get(node, "orders-2030") == "orders"
    await assert_equal_digests(cluster)


async def test_a_revocation_takes_effect_on_every_node_within_a_second(cluster: LocalCluster) -> None:
    nodes = list(cluster.nodes.values())
    async with Admin([nodes[0].address]) as admin:
        uuid = (await admin.create_database("orders")).database.uuid
        made = await admin.create_token(database="orders")
    answers = [await asyncio.to_thread(exchange, node, "orders", made.secret) for node in nodes]
    assert [answer.status for answer in answers] == [200] * 3, answers
    tokens = [json.loads(answer.body)["token"] for answer in answers]
    for node in nodes:
        assert [await asyncio.to_thread(data, node, uuid, token) for token in tokens] == [200] * 3
        assert (await asyncio.to_thread(exchange, node, "", made.secret)).status == 401
    watches = [asyncio.ensure_future(_watch(node, made.secret)) for node in nodes]
    frames: list[list[bytes]] = [[], [], []]
    streams = [
        asyncio.ensure_future(asyncio.to_thread(watch_over_http, node, uuid, tokens[1], seen))
        for node, seen in zip(nodes, frames, strict=True)
    ]
    await asyncio.sleep(0.5)
    assert not any(watch.done() for watch in (*watches, *streams))
    assert all(frames), "no first frame"
    async with Admin([nodes[1].address]) as admin:
        began = time.monotonic()
        await admin.revoke_token(made.token.token_id)
    for node in nodes:
        for attempt in (
            lambda node=node: exchange(node, "orders", made.secret).status,
            lambda node=node: data(node, uuid, tokens[0]),
        ):
            assert await _until(attempt, 401, began) < WITHIN_S
    for watch in watches:
        assert isinstance(await error_of(asyncio.wait_for(watch, WITHIN_S)), Unauthenticated)
    assert time.monotonic() - began < 2 * WITHIN_S
    for stream in streams:
        assert await stream - began < WITHIN_S
    assert isinstance(await error_of(_read(nodes[2], made.secret)), Unauthenticated)


async def _watch(node: LocalNode, token: str) -> None:
    async with at(node, "orders", token) as kv:
        async for _ in kv.watch([("k",)]):
            pass


async def _read(node: LocalNode, token: str) -> object:
    async with at(node, "orders", token) as kv:
        return await kv.get(("k",))


async def _until(attempt: Callable[[], int], wanted: int, began: float) -> float:
    """Seconds since `began` until an attempt gives the wanted status."""
    while await asyncio.to_thread(attempt) != wanted:
        assert time.monotonic() - began < 10, "never"
    return time.monotonic() - began


async def test_a_snapshot_brings_the_directory(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(arguments=SMALL_LOG)
    async with Admin(cluster.addresses) as admin:
        await admin.create_database("early")
    away = await leave_one_behind(cluster, 4 * MIB)
    others = [node for node in cluster.nodes.values() if node.name != away]
    async with Admin([node.address for node in others]) as admin:
        await admin.create_database("late")
        made = await admin.create_token(database="late")
    for node in others:
        await asyncio.to_thread(node.admin.snapshot)
    await asyncio.to_thread(cluster.restart, away)
    node = cluster.nodes[away]
    answer = await asyncio.to_thread(exchange, node, "late", made.secret)
    assert answer.status == 200, answer
    async with at(node, "late", made.secret) as kv:
        await kv.set(("k",), 1)
    await assert_equal_digests(cluster)


async def test_a_purge_survives_the_leader_killed_in_its_middle(cluster: LocalCluster) -> None:
    nodes = list(cluster.nodes.values())
    async with Admin(cluster.addresses) as admin:
        await admin.create_database("orders")
        await fill(nodes[0], "orders", FULL_COUNT)
        await fill(nodes[0], "", 500)
        leader = await asyncio.to_thread(cluster.wait_leader)
        await admin.delete_database("orders")
        deleted = 0
        async with asyncio.timeout(20):
            while (deleted := (await admin.show_database("orders")).purge.deleted_keys) == 0:
                await asyncio.sleep(0.02)
        cluster.kill(leader)
        assert deleted < FULL_COUNT // 2, "it may have been over before the leader died"
        assert rows_of(cluster, leader, 2) > 0
        successor = await asyncio.to_thread(cluster.wait_leader, other_than=leader)
        async with asyncio.timeout(60):
            while not isinstance(await _show(admin), NotFound):
                await asyncio.sleep(0.2)
    await asyncio.to_thread(cluster.restart, leader)
    await assert_equal_digests(cluster)
    await asyncio.to_thread(cluster.terminate, successor)
    assert (rows_of(cluster, successor, 2), rows_of(cluster, successor, 1)) == (0, 500)


async def _show(admin: Admin) -> KvError | None:
    try:
        await admin.show_database("orders")
    except KvError as error:
        return error
    return None


async def test_where_grpc_asks_for_tokens(make_cluster: MakeCluster) -> None:
    static = "a-token-for-all-nodes"
    cluster = make_cluster(arguments=("--grpc-auth", "--access-token", static))
    nodes = list(cluster.nodes.values())
    assert isinstance(await error_of(put(nodes[0], "", "x")), Unauthenticated)
    async with Admin([nodes[0].address]) as admin:
        assert isinstance(await error_of(admin.cluster_status()), Unauthenticated)
    async with Admin([nodes[1].address], token=static) as admin:
        async with asyncio.timeout(10):
            while not (status := await admin.cluster_status()).healthy:
                await asyncio.sleep(0.2)
        assert not any(node.error for node in status.nodes), "the nodes refuse each other"
        reader = (await admin.create_token(right="read")).secret
        lasting = (await admin.create_token()).secret
        await admin.create_database("orders")
        stranger = (await admin.create_token(database="orders")).secret
        writer = (await admin.create_token(expires_in_ms=4_000)).secret
    for node in nodes:
        async with at(node, "", writer) as kv:
            assert (await kv.set(("k",), node.name)).ok
    for node in nodes:
        async with at(node, "", reader) as kv:
            assert (await kv.get(("k",))).value == "c"
            assert (await error_of(kv.set(("k",), 1))).code == "TOKEN_READ_ONLY"
    await _a_guessed_client_id_is_worth_nothing(nodes, lasting, stranger)
    await asyncio.sleep(4)
    async with at(nodes[2], "", writer) as kv:
        assert (await error_of(kv.set(("k",), 1))).code == "ACCESS_TOKEN_EXPIRED"


class Stream:
    """One Session, as any program may speak it: one write at a time, under ids and a client id of its choice."""

    def __init__(self, channel: aio.Channel, token: str, database: str) -> None:
        metadata = (("authorization", f"Bearer {token}"), ("kv-database", database))
        self._call = channel.stream_stream(rpc.SESSION.path)(metadata=metadata)

    async def exchange(self, request: kv_pb2.SessionRequest) -> kv_pb2.SessionResponse:
        await self._call.write(request.SerializeToString())
        return kv_pb2.SessionResponse.FromString(await asyncio.wait_for(self._call.read(), 30))

    async def open(self, client_id: bytes = b"") -> bytes:
        answer = await self.exchange(kv_pb2.SessionRequest(open=kv_pb2.SessionOpen(client_id=client_id)))
        return answer.opened.client_id

    async def write(self, number: int, name: str, *, lowest: int = 1, resend: bool = False) -> kv_pb2.OperationResult:
        operation = kv_pb2.Operation(id=number, resend=resend, timeout_ms=15_000, write=write_request(name))
        answer = await self.exchange(kv_pb2.SessionRequest(operations=[operation], lowest_unanswered=lowest))
        return answer.results[0]


async def _a_guessed_client_id_is_worth_nothing(nodes: list[LocalNode], token: str, orders_token: str) -> None:
    """A client of another database can neither use up the request ids of a session nor answer its writes."""
    async with open_channel(nodes[0].address, None) as near, open_channel(nodes[1].address, None) as far:
        victim, stranger, again = Stream(near, token, ""), Stream(far, orders_token, "orders"), Stream(far, token, "")
        client_id = await victim.open()
        first = (await victim.write(1, "mine")).write.versionstamp
        await stranger.open(client_id)
        for number, lowest in ((1, 1), (2, 1), (1_000, 1_000)):
            for resend in (False, True):
                error = (await stranger.write(number, "evil", lowest=lowest, resend=resend)).error
                assert (error.code, error.not_applied) == ("SESSION_UNKNOWN", not resend)
        second = (await victim.write(2, "precious")).write.versionstamp
        assert second > first
        async with at(nodes[0], "", token) as kv:
            assert (await kv.get(("precious",))).versionstamp == second.hex()
        await again.open(client_id)
        assert (await again.write(1, "mine", resend=True)).write.versionstamp == first, "its own database may resume it"
