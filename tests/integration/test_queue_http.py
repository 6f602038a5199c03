"""Queues over HTTP on three real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.launcher import LocalCluster
from kvnode.client import Admin, open_kv
from tests.integration.conftest import MakeCluster
from tests.integration.queue_client import TOKEN, QueueClient, close_all, payload
from tests.unit.api.http.raw import Http1


@pytest.fixture(autouse=True)
async def _left() -> AsyncIterator[None]:
    yield
    await close_all()


@pytest.fixture
def nodes(make_cluster: MakeCluster) -> LocalCluster:
    return make_cluster(arguments=["--access-token", TOKEN])


def ports(cluster: LocalCluster) -> list[int]:
    return [int(node.connect_address.rpartition(":")[2]) for node in cluster.nodes.values()]


def client(cluster: LocalCluster, at: int = 0, queue: str = "work", **more: str) -> QueueClient:
    return QueueClient(ports(cluster)[at], queue, **more)


async def status_of(cluster: LocalCluster, queue: str = "work"):
    async with open_kv(cluster.addresses) as kv:
        (status,) = await kv.queues.status(queue)
        return status


async def test_messages_go_round_by_every_node(nodes: LocalCluster) -> None:
    one, other, third = (client(nodes, at) for at in range(3))
    listener = await one.listen(credit=2, consumer="test")
    sent = await other.enqueue(b"1", b"2", b"3")
    assert sent["ids"] == [sent["versionstamp"] + f"{at:04x}" for at in range(3)]
    first = await listener.messages(2)
    assert [payload(line) for line in first] == [b"1", b"2"]
    assert [(line["id"], line["attempt"], line["queue"], line["encoding"]) for line in first] == [
        (sent["ids"][at], 1, "work", "bytes") for at in range(2)
    ]
    await listener.nothing(0.5)  # two is all it may hold
    done = await one.settle(ack=[first[0]["lease"]])
    assert done == {"settled": [first[0]["lease"]], "failed": []}
    (second,) = await listener.messages(1)
    assert payload(second) == b"3"
    # At a node where it does not listen, the place is not given back; the message is gone all the same.
    assert (await third.settle(ack=[second["lease"]], nack=[{"lease": first[1]["lease"], "delay_ms": 0}]))[
        "failed"
    ] == []
    await listener.nothing(0.5)
    (again,) = await (await other.listen(credit=1)).messages(1)
    assert (payload(again), again["attempt"]) == (b"2", 2)
    lost = await one.settle(ack=[first[1]["lease"]])
    assert (lost["settled"], lost["failed"][0]["code"]) == ([], "LEASE_LOST")
    await listener.close()


async def test_leases_travel_when_the_node_stops_and_are_given_back_when_the_client_leaves(nodes: LocalCluster) -> None:
    one, other = client(nodes), client(nodes, 1)
    listener = await one.listen(credit=10)
    await other.enqueue(*(b"%d" % number for number in range(10)))
    held = [line["lease"] for line in await listener.messages(10)]
    stopping = asyncio.to_thread(nodes.terminate, "a")
    stopped = asyncio.ensure_future(stopping)
    end = await listener.line()
    assert (end["type"], end["code"], end["retry"]) == ("end", "NODE_STOPPING", True)
    assert await stopped  # it waits for no listener
    moved = await other.listen(credit=11, held=held)
    await moved.nothing(1.0)  # none of them was given back
    assert (await other.settle(ack=held[:5]))["failed"] == []
    await moved.close()
    again = await (await other.listen(credit=10)).messages(5, 3.0)
    assert {payload(line) for line in again} == {b"5", b"6", b"7", b"8", b"9"}


async def test_a_claim_to_hold_what_is_lost_is_refused_and_its_place_is_free(nodes: LocalCluster) -> None:
    one = client(nodes)
    listener = await one.listen(credit=1, held=["00" * 12])
    failed = await listener.line()
    assert (failed["type"], failed["code"], failed["lease"]) == ("failed", "LEASE_LOST", "00" * 12)
    await one.enqueue(b"x")
    await listener.messages(1)


async def test_extending_keeps_a_message_and_silence_loses_it(nodes: LocalCluster) -> None:
    one = client(nodes)
    listener = await one.listen(credit=1, lease_ms=1_000)
    await one.enqueue(b"x")
    (message,) = await listener.messages(1)
    other = await client(nodes, 1).listen(credit=1)
    for _ in range(5):
        await asyncio.sleep(0.4)
        assert (await client(nodes, 2).settle(extend=[message["lease"]], lease_ms=1_000))["failed"] == []
    (again,) = await other.messages(1)
    assert again["id"] == message["id"]
    failed = await listener.line(15)  # and the place is free again
    assert (failed["type"], failed["lease"], failed["code"]) == ("failed", message["lease"], "LEASE_LOST")
    await one.enqueue(b"y")
    assert payload((await listener.messages(1))[0]) == b"y"


async def test_without_a_leader_an_enqueue_is_refused_in_the_time_that_its_client_has(nodes: LocalCluster) -> None:
    """Before that leaves, and sends it again elsewhere: what it left behind would be enqueued when a leader comes."""
    leader = await asyncio.to_thread(nodes.wait_leader)
    left, *_ = (at for at, name in enumerate(nodes.nodes) if name != leader)
    (other,) = (name for at, name in enumerate(nodes.nodes) if name != leader and at != left)
    await client(nodes, left).enqueue(b"before")
    for name in (leader, other):
        await asyncio.to_thread(nodes.kill, name)
    patient = client(nodes, left)
    patient.timeout_ms = 1_500
    for _ in range(2):  # the first may be on its way to the dead leader still
        began = asyncio.get_running_loop().time()
        status, answer = await patient.post("messages", {"messages": [{"payload": "aGk=", "encoding": "bytes"}]})
        took = asyncio.get_running_loop().time() - began
        assert status in (503, 504) and answer["retry"] is True, answer
        assert took < 3.5
    assert (status, answer["code"]) == (503, "DEADLINE_EXCEEDED")  # it was not applied
    assert "leader" in answer["message"]
    for name in (leader, other):
        await asyncio.to_thread(nodes.restart, name)
    assert (await status_of(nodes)).enqueued_total <= 2  # of the one whose outcome was not known, perhaps


async def test_a_nack_to_the_end_of_the_schedule_makes_a_dead_letter(nodes: LocalCluster) -> None:
    one = client(nodes)
    listener = await one.listen(credit=1)
    await one.enqueue(b"bad", backoff_schedule=[50], keys_if_undelivered=[["dead", {"$bigint": "7"}]])
    for attempt in (1, 2):
        (message,) = await listener.messages(1)
        assert message["attempt"] == attempt
        await one.settle(nack=[{"lease": message["lease"]}])
    status = await status_of(nodes)
    assert (status.dead_count, status.waiting_count, status.in_flight_count) == (1, 0, 0)
    async with open_kv(nodes.addresses) as kv:
        assert [entry.value async for entry in kv.list(("dead",))] == [b"bad"]


async def test_a_listener_that_leaves_is_sent_nothing_more_and_keeps_what_it_holds(nodes: LocalCluster) -> None:
    one, other = client(nodes), client(nodes, 1)
    listener = await one.listen(credit=10)
    await one.enqueue(b"held")
    (held,) = await listener.messages(1)
    assert (await one.settle(extend=[held["lease"]], leaving=True))["failed"] == []
    await other.enqueue(b"later")
    await listener.nothing(0.5)
    for verb, attempt in (("unseen", 1), ("release", 1), ("ack", 2)):
        taking = await other.listen(credit=1)
        (later,) = await taking.messages(1)
        assert (payload(later), later["attempt"]) == (b"later", attempt)
        assert (await other.settle(leaving=True, **{verb: [later["lease"]]}))["failed"] == []
        await taking.close()
    assert (await one.settle(ack=[held["lease"]], leaving=True))["failed"] == []


async def test_tokens(nodes: LocalCluster) -> None:
    async with Admin(nodes.addresses, token=TOKEN) as admin:
        await admin.create_database("orders")
        reading = await admin.create_token(database="orders", right="read")
        writing = await admin.create_token(database="orders", right="write")
        limited = await admin.create_token(database="orders", right="write", requests_per_second=1)
        for token, database, wanted in (
            ("", "orders", (401, "ACCESS_TOKEN_INVALID")),
            ("wrong", "orders", (401, "ACCESS_TOKEN_INVALID")),
            (reading.secret, "orders", (403, "TOKEN_READ_ONLY")),
            (writing.secret, "default", (401, "ACCESS_TOKEN_WRONG_DATABASE")),
            (TOKEN, "nowhere", (404, "DATABASE_NOT_FOUND")),
        ):
            for method, body in (("listen", {}), ("settle", {"ack": ["00" * 12]}), ("messages", {"messages": []})):
                status, answer = await client(nodes, token=token, database=database).post(method, body)
                assert ((status, answer["code"]), answer["retry"]) == (wanted, False)
        slow = client(nodes, token=limited.secret, database="orders")
        answers = [await slow.post("settle", {"ack": ["00" * 12]}) for _ in range(5)]
        assert (429, "RATE_LIMITED") in [(status, answer.get("code")) for status, answer in answers]
        listener = await client(nodes, token=writing.secret, database="orders").listen(credit=1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await admin.revoke_token(writing.token.token_id)
        end = await listener.line()
        assert (end["type"], end["code"], loop.time() - began < 1.0) == ("end", "ACCESS_TOKEN_INVALID", True)


async def test_a_listener_that_does_not_read_costs_little_and_loses_nothing(nodes: LocalCluster) -> None:
    one = client(nodes)
    for _ in range(40):
        await one.enqueue(*(bytes(60_000) for _ in range(12)))  # 28 MB
    status, _ = await one.begin(credit=1_000)
    assert status == 200
    await asyncio.sleep(2.0)
    held = (await status_of(nodes)).in_flight_count
    assert 0 < held < 200  # what the sockets take, and MAX_LISTENER_UNSENT_BYTES
    await close_all()
    reading = await client(nodes, 1).listen(credit=480)
    assert len(await reading.messages(480, 20.0)) == 480


async def test_the_module(nodes: LocalCluster) -> None:
    http = await Http1.open(ports(nodes)[0])
    for method in ("GET", "HEAD"):
        module = await http.request("/kvnode.js", method=method)
        assert (module.status, module.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        assert module.headers["x-typescript-types"] == "./kvnode.d.ts"
        assert "access-control-allow-origin" not in module.headers
    types = await http.request("/kvnode.d.ts", method="GET")
    assert (types.status, types.headers["content-type"]) == (200, "application/typescript; charset=utf-8")
    await http.close()
