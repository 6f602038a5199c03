"""Queues at a gateway without data: nodes die behind it, and its listeners feel a pause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster.launcher import LocalCluster
from kvnode.base.errors import KvError
from kvnode.client import Admin, open_kv, rpc
from kvnode.client.queue import QueueListener, QueueMessage
from kvnode.client.queue_handlers import run_handlers
from kvnode.client.unary import UnaryCaller
from kvnode.proto.kv.v1 import queue_pb2
from tests.integration.helpers import three_nodes
from tests.integration.queue_client import TOKEN, QueueClient, close_all, payload
from tests.integration.test_gateway import Gateway
from tests.unit.api.http.raw import Http1

MESSAGES_COUNT = 400


@pytest.fixture(autouse=True)
async def _left() -> AsyncIterator[None]:
    yield
    await close_all()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with three_nodes(tmp_path_factory.mktemp("cluster"), "--access-token", TOKEN) as cluster:
        yield cluster


@pytest.fixture
async def gateway(nodes: LocalCluster, tmp_path: Path) -> AsyncIterator[Gateway]:
    made = Gateway(nodes, tmp_path, TOKEN)
    made.child.start()
    await ready(made)
    yield made
    made.child.kill()


async def ready(gateway: Gateway) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                http = await Http1.open(port_of(gateway.address))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            answer = await http.request("/kvnode.js", method="GET")
            await http.close()
            assert answer.status == 200
            return


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_its_node_and_the_leader_die_and_nothing_is_lost(nodes: LocalCluster, gateway: Gateway) -> None:
    client = QueueClient(port_of(gateway.address))
    listener = await client.listen(credit=20, lease_ms=3_000)
    handled: dict[bytes, int] = {}

    async def produce() -> None:
        for number in range(MESSAGES_COUNT):
            await client.enqueue(b"%d" % number)

    async def consume() -> None:
        while len(handled) < MESSAGES_COUNT:
            line = await listener.line(30)
            if line["type"] == "failed":
                assert line["code"] == "LEASE_LOST"
                continue
            assert line["type"] == "message", line
            handled[payload(line)] = handled.get(payload(line), 0) + 1
            answer = await client.settle(ack=[line["lease"]])
            assert [each["code"] for each in answer["failed"]] in ([], ["LEASE_LOST"])

    producing, consuming = asyncio.ensure_future(produce()), asyncio.ensure_future(consume())
    first = next(iter(nodes.nodes))  # the gateway is at it
    for at in (1, 2):
        async with asyncio.timeout(60):
            while len(handled) < MESSAGES_COUNT * at // 4:
                await asyncio.sleep(0.02)
        victim = first if at == 1 else await asyncio.to_thread(nodes.wait_leader)
        await asyncio.to_thread(nodes.kill, victim)
        await asyncio.to_thread(nodes.restart, victim)
    await asyncio.wait_for(asyncio.gather(producing, consuming), 90)
    assert set(handled) >= {b"%d" % number for number in range(MESSAGES_COUNT)}
    print(f"{sum(handled.values())} deliveries of {len(handled)} messages")
    async with open_kv(nodes.addresses, token=TOKEN) as kv, asyncio.timeout(20):
        while (status := (await kv.queues.status("work"))[0]).in_flight_count:
            await asyncio.sleep(0.1)
        assert (status.waiting_count, status.dead_count) == (0, 0)


async def test_a_gateway_that_stops_leaves_the_leases_with_the_client(nodes: LocalCluster, gateway: Gateway) -> None:
    client = QueueClient(port_of(gateway.address), "stops")
    listener = await client.listen(credit=10, lease_ms=60_000)
    await client.enqueue(*(b"%d" % number for number in range(10)))
    held = [line["lease"] for line in await listener.messages(10)]
    stopped = asyncio.ensure_future(asyncio.to_thread(gateway.child.terminate, 10))
    end = await listener.line()
    assert (end["type"], end["code"], end["retry"]) == ("end", "NODE_STOPPING", True)
    assert await stopped
    ports = [port_of(node.connect_address) for node in nodes.nodes.values()]
    moved = await QueueClient(ports[0], "stops").listen(credit=11, held=held)
    await moved.nothing(1.0)  # none of them was given back
    assert (await QueueClient(ports[1], "stops").settle(ack=held))["failed"] == []


async def test_a_client_that_leaves_gives_back_and_one_that_may_not_listen_is_told(
    nodes: LocalCluster, gateway: Gateway
) -> None:
    client = QueueClient(port_of(gateway.address), "leaves")
    listener = await client.listen(credit=3, lease_ms=60_000)
    await client.enqueue(b"1", b"2", b"3")
    assert len(await listener.messages(3)) == 3
    await listener.nothing(0.3)  # no more than its credit
    await listener.close()
    again = await (await client.listen(credit=3)).messages(3, 5.0)
    assert {payload(line) for line in again} == {b"1", b"2", b"3"}
    async with Admin(nodes.addresses, token=TOKEN) as admin:
        reading = await admin.create_token(right="read")
        writing = await admin.create_token(right="write")
        status, answer = await QueueClient(port_of(gateway.address), token=reading.secret).post("listen", {})
        assert (status, answer["code"]) == (403, "TOKEN_READ_ONLY")
        other = await QueueClient(port_of(gateway.address), "other", token=writing.secret).listen(credit=1)
        await admin.revoke_token(writing.token.token_id)
        end = await other.line()
        assert (end["type"], end["code"]) == ("end", "ACCESS_TOKEN_INVALID")
    status, answer = await client.post("listen", {"lease_ms": 5})
    assert (status, answer["code"]) == (400, "BAD_LEASE_TIME")


async def test_listen_over_grpc_at_a_gateway(nodes: LocalCluster, gateway: Gateway) -> None:
    """Queue.Listen itself, by the client that every node serves: its node dies behind the gateway."""
    first = next(iter(nodes.nodes))
    handled: set[object] = set()

    async def handle(message: QueueMessage) -> None:
        handled.add(message.value)
        await asyncio.sleep(0.02)

    listener = QueueListener([gateway.grpc_address], queue="grpc", concurrency=8, lease_ms=2_000)
    async with open_kv(nodes.addresses, token=TOKEN) as kv:
        listening = asyncio.ensure_future(run_handlers(listener, handle))
        for number in range(100):
            await kv.enqueue(float(number), queue="grpc")
        await asyncio.to_thread(nodes.kill, first)
        async with asyncio.timeout(60):
            while len(handled) < 100:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(nodes.restart, first)
        async with asyncio.timeout(20):
            while (status := (await kv.queues.status("grpc"))[0]).in_flight_count or status.waiting_count:
                await asyncio.sleep(0.1)
        assert (status.acknowledged_total, status.dead_total) == (100, 0)
        assert not listening.done()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        # What looks into queues is there, and wrong openings are answered as at a node.
        looking = UnaryCaller([gateway.grpc_address])
        found = await looking.call(rpc.QUEUE_LIST, queue_pb2.QueueListRequest(), 5_000)
        assert {each.queue: each.acknowledged_total for each in found.queues}["grpc"] == 100
        await looking.close()
        wrong = QueueListener([gateway.grpc_address], queue="grpc")
        wrong._open.lease_ms = 5  # which the listener itself would refuse
        with pytest.raises(KvError) as caught:
            await anext(wrong)
        assert caught.value.code == "BAD_LEASE_TIME"
        await wrong.aclose()
