"""Queues and strangers: each wrong request has its own error, over gRPC and over HTTP, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator

import pytest
from grpc import aio

from cluster.launcher import LocalCluster
from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.client import Admin, open_kv
from kvnode.client.session import Session
from kvnode.client.status import error_from_rpc
from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2
from tests.integration.helpers import error_of, three_nodes
from tests.integration.queue_client import TOKEN, QueueClient, close_all

QUEUE = "work"
NO_LEASE = bytes(12)
BIG = bytes(limits.MAX_VALUE_BYTES + 1)
TOO_LONG_MS = limits.MAX_QUEUE_DELAY_MS + 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with three_nodes(tmp_path_factory.mktemp("cluster"), "--access-token", TOKEN, "--grpc-auth") as cluster:
        yield cluster


@pytest.fixture
async def nodes(cluster: LocalCluster) -> AsyncIterator[LocalCluster]:
    """One message waits before anything goes wrong; it is still there, and delivered, when everything has."""
    async with open_kv(cluster.addresses, token=TOKEN) as kv:
        await kv.enqueue("still there", queue=QUEUE)
        (before,) = await kv.queues.status(QUEUE)
        yield cluster
        await close_all()
        assert all(node.child.running for node in cluster.nodes.values())
        async with kv.messages(QUEUE) as messages:
            message = await asyncio.wait_for(anext(messages), 10)
            assert message.value == "still there"
            await message.ack()
        (status,) = await kv.queues.status(QUEUE)
        assert (status.enqueued_total, status.acknowledged_total) == (before.enqueued_total, before.enqueued_total)
        assert (status.waiting_count, status.in_flight_count, status.dead_total) == (0, 0, 0)


class Stream:
    """Queue.Listen, spoken by hand: bytes up, responses down."""

    def __init__(self, address: str, token: str = TOKEN) -> None:
        self._channel = aio.insecure_channel(address)
        method = self._channel.stream_stream("/kv.v1.Queue/Listen", None, queue_pb2.ListenResponse.FromString)
        self._call = method(metadata=(("authorization", f"Bearer {token}"),) if token else ())

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def say(self, request: queue_pb2.ListenRequest | bytes) -> None:
        """Unless the stream has ended already, as it does when the caller is refused; then a read tells why."""
        with contextlib.suppress(aio.AioRpcError):
            await self._call.write(request if isinstance(request, bytes) else request.SerializeToString())

    async def read(self) -> queue_pb2.ListenResponse:
        """The next response that is no ping. Raises KvError: how the stream ended."""
        try:
            async with asyncio.timeout(10):
                while True:
                    response = await self._call.read()
                    assert response is not aio.EOF
                    if not response.ping:
                        return response
        except aio.AioRpcError as error:
            raise error_from_rpc(error, "") from None

    async def end(self) -> KvError:
        """Read until it ends."""
        while True:
            try:
                await self.read()
            except KvError as error:
                return error


def opening(**more: object) -> queue_pb2.ListenRequest:
    request = queue_pb2.ListenRequest(open=queue_pb2.ListenOpen(queue="other", **more))
    return request


BAD_FIRST = {
    "no opening": (queue_pb2.ListenRequest(credit=1), "LISTEN_NOT_OPENED"),
    "no protobuf": (b"\xff\xff\xff", "MALFORMED_REQUEST"),
    "an empty message": (b"", "LISTEN_NOT_OPENED"),
    "a queue's name": (queue_pb2.ListenRequest(open=queue_pb2.ListenOpen(queue="no name")), "BAD_QUEUE_NAME"),
    "a lease of 1 ms": (opening(lease_ms=1), "BAD_LEASE_TIME"),
    "a consumer's name": (opening(consumer="x" * 101), "CONSUMER_NAME_TOO_LONG"),
    "too much held": (opening(held=[NO_LEASE] * 1_001), "TOO_MUCH_CREDIT"),
    "a held lease of 3 bytes": (opening(held=[NO_LEASE, b"abc"]), "BAD_LEASE"),
}
BAD_LATER = {
    "opened twice": (opening(), "LISTEN_OPENED_TWICE"),
    "no protobuf": (b"\xff\xff\xff", "MALFORMED_REQUEST"),
    "too much credit": (queue_pb2.ListenRequest(credit=1_001), "TOO_MUCH_CREDIT"),
    "a lease of 3 bytes": (queue_pb2.ListenRequest(ack=[b"abc"]), "BAD_LEASE"),
    "an extension of no lease": (queue_pb2.ListenRequest(extend=[b""]), "BAD_LEASE"),
    "a nack after 31 days": (
        queue_pb2.ListenRequest(nack=[kv_pb2.QueueNack(lease=NO_LEASE, delay_ms=TOO_LONG_MS)]),
        "BAD_DEADLINE",
    ),
}


async def test_listen_over_grpc(nodes: LocalCluster) -> None:
    for at, address in enumerate(nodes.addresses[:2]):  # the leader or not: it makes no difference
        for name, (first, code) in BAD_FIRST.items():
            async with Stream(address) as stream:
                await stream.say(first)
                assert (await stream.end()).code == code, (at, name)
        for name, (later, code) in BAD_LATER.items():
            async with Stream(address) as stream:
                await stream.say(opening())
                assert (await stream.read()).HasField("opened")
                await stream.say(later)
                assert (await stream.end()).code == code, (at, name)


async def test_rules_broken_before_the_first_answer_is_out(nodes: LocalCluster) -> None:
    for _ in range(50):
        async with Stream(nodes.addresses[0]) as stream:
            await stream.say(opening())
            await stream.say(opening())
            assert (await stream.end()).code == "LISTEN_OPENED_TWICE"


async def test_leases_that_are_not_current_over_grpc(nodes: LocalCluster) -> None:
    async with open_kv(nodes.addresses, token=TOKEN) as kv, Stream(nodes.addresses[1]) as stream:
        await kv.enqueue("slow", queue="other")
        await stream.say(queue_pb2.ListenRequest(open=opening(lease_ms=1_000).open, credit=1))
        response = queue_pb2.ListenResponse()
        while not response.messages:
            response = await stream.read()
        lease = response.messages[0].lease
        async with kv.messages("other") as others:  # it is expired when another has it
            message = await asyncio.wait_for(anext(others), 10)
            await stream.say(queue_pb2.ListenRequest(ack=[lease, NO_LEASE], extend=[lease]))
            failed: list[tuple[bytes, str]] = []
            while len(failed) < 3:
                failed += [(each.lease, each.error.code) for each in (await stream.read()).failed]
            assert sorted(failed) == sorted([(lease, "LEASE_LOST"), (NO_LEASE, "LEASE_LOST"), (lease, "LEASE_LOST")])
            await message.ack()  # whoever has it now is not disturbed


async def refusal(address: str, token: str) -> KvError:
    """How a stream ends that may not listen.

    When the node's refusal is there before the first message is out, gRPC's client may lose it and speak of an internal
    error of its own. Our clients take that for something to try again, and so does this.
    """
    for _ in range(20):
        async with Stream(address, token) as stream:
            await stream.say(opening())
            error = await stream.end()
        if error.code != "GRPC_INTERNAL":
            break
    return error


async def test_who_may_not_listen_over_grpc(nodes: LocalCluster) -> None:
    async with Admin(nodes.addresses, token=TOKEN) as admin:
        reading = await admin.create_token(right="read")
        writing = await admin.create_token(right="write")
        for token, code in (
            ("", "ACCESS_TOKEN_INVALID"),
            ("wrong-token-of-some-length", "ACCESS_TOKEN_INVALID"),
            (reading.secret, "TOKEN_READ_ONLY"),
        ):
            error = await refusal(nodes.addresses[0], token)
            assert error.code in (code, "UNAUTHENTICATED"), (token, error)
        async with Stream(nodes.addresses[0], writing.secret) as stream, open_kv(nodes.addresses, token=TOKEN) as kv:
            await kv.enqueue("given back", queue="other")
            await stream.say(queue_pb2.ListenRequest(open=opening(lease_ms=60_000).open, credit=1))
            while not (await stream.read()).messages:
                pass
            await admin.revoke_token(writing.token.token_id)
            assert (await asyncio.wait_for(stream.end(), 5)).code == "ACCESS_TOKEN_INVALID"
            async with kv.messages("other") as others:  # what it held is another's at once, long before its lease ends
                message = await asyncio.wait_for(anext(others), 5)
                assert (message.value, message.attempt) == ("given back", 2)
                await message.ack()


def enqueue(**more: object) -> kv_pb2.Enqueue:
    payload = kv_pb2.Value(data=b"x", encoding=kv_pb2.VALUE_ENCODING_BYTES)
    return kv_pb2.Enqueue(**{"queue": QUEUE, "payload": payload, **more})


BAD_ENQUEUES = {
    "payload": (enqueue(payload=kv_pb2.Value(data=BIG, encoding=kv_pb2.VALUE_ENCODING_BYTES)), "PAYLOAD_TOO_LARGE"),
    "delay": (enqueue(delay_ms=TOO_LONG_MS), "BAD_DEADLINE"),
    "delay below 0": (enqueue(delay_ms=-1), "BAD_DEADLINE"),
    "intervals": (enqueue(backoff_intervals_ms=[1] * 11), "TOO_MANY_BACKOFF_INTERVALS"),
    "an interval": (enqueue(backoff_intervals_ms=[limits.MAX_BACKOFF_INTERVAL_MS + 1]), "BACKOFF_TOO_LONG"),
    "keys": (enqueue(keys_if_undelivered=[encode_key((1,))] * 11), "TOO_MANY_KEYS_IF_UNDELIVERED"),
    "an empty key": (enqueue(keys_if_undelivered=[b""]), "EMPTY_KEY"),
    "a large key": (enqueue(keys_if_undelivered=[b"k" * 2_049]), "KEY_TOO_LARGE"),
    "a queue": (enqueue(queue="no name"), "BAD_QUEUE_NAME"),
}


async def test_enqueue_over_grpc_and_http(nodes: LocalCluster) -> None:
    one = QueueClient(int(next(iter(nodes.nodes.values())).connect_address.rpartition(":")[2]), QUEUE)
    key = encode_key(("beside",))
    value = kv_pb2.Value(data=b"x", encoding=kv_pb2.VALUE_ENCODING_BYTES)
    beside = kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=key, value=value)
    async with Session(nodes.addresses, metadata=(("authorization", f"Bearer {TOKEN}"),)) as session:
        for name, (bad, code) in BAD_ENQUEUES.items():
            request = kv_pb2.AtomicWriteRequest(mutations=[beside], enqueues=[enqueue(), bad])
            assert (await error_of(session.write(request))).code == code, name
        found = await session.read(kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=key, end=key + b"\0", limit=1)]))
        assert not found.ranges[0].entries  # nor was anything done beside it
    good = {"payload": "eA==", "encoding": "bytes"}
    for bad, status, code in (
        ({"payload": b64encode(BIG).decode()}, 413, "PAYLOAD_TOO_LARGE"),
        ({"delay_ms": TOO_LONG_MS}, 400, "BAD_DEADLINE"),
        ({"delay_ms": -1}, 400, "BAD_DEADLINE"),
        ({"delay_ms": "soon"}, 400, "MALFORMED_REQUEST"),
        ({"backoff_schedule": [1] * 11}, 400, "TOO_MANY_BACKOFF_INTERVALS"),
        ({"backoff_schedule": [3_600_001]}, 400, "BACKOFF_TOO_LONG"),
        ({"keys_if_undelivered": [[1]] * 11}, 400, "TOO_MANY_KEYS_IF_UNDELIVERED"),
        ({"keys_if_undelivered": [[]]}, 400, "EMPTY_KEY"),
        ({"keys_if_undelivered": [{"a": 1}]}, 400, "BAD_KEY_JSON"),
        ({"payload": "no base64!"}, 400, "MALFORMED_REQUEST"),
        ({"encoding": "utf-8"}, 400, "UNKNOWN_ENCODING"),
        ({"priority": 1}, 400, "MALFORMED_REQUEST"),
    ):
        answer = await one.post("messages", {"messages": [good, good | bad]})
        assert (answer[0], answer[1]["code"]) == (status, code), bad
        assert answer[1]["message"] and not answer[1]["retry"]


async def test_listen_and_settle_over_http(nodes: LocalCluster) -> None:
    one = QueueClient(int(next(iter(nodes.nodes.values())).connect_address.rpartition(":")[2]), "other")
    lease = NO_LEASE.hex()
    for method, body, code in (
        ("listen", b"{", "MALFORMED_REQUEST"),
        ("listen", b"[]", "MALFORMED_REQUEST"),
        ("listen", {"credit": 1_001}, "MALFORMED_REQUEST"),
        ("listen", {"credit": 1, "held": [lease, "11" * 12]}, "TOO_MUCH_CREDIT"),
        ("listen", {"lease_ms": 5}, "BAD_LEASE_TIME"),
        ("listen", {"consumer": "x" * 101}, "CONSUMER_NAME_TOO_LONG"),
        ("listen", b'{"consumer": "\\ud800"}', "MALFORMED_REQUEST"),
        ("listen", {"held": ["abc"]}, "BAD_LEASE"),
        ("settle", {}, "BAD_COUNT"),
        ("settle", {"ack": [lease] * 1_001}, "BAD_COUNT"),
        ("settle", {"ack": [7]}, "BAD_LEASE"),
        ("settle", {"nack": [{"lease": lease, "delay_ms": TOO_LONG_MS}]}, "BAD_DEADLINE"),
        ("settle", {"extend": [lease], "lease_ms": 600_001}, "MALFORMED_REQUEST"),
    ):
        status, answer = await one.post(method, body)
        assert (status, answer["code"]) == (400, code), (method, body)
    ended = await one.settle(ack=[lease], extend=["11" * 12], lease_ms=1_000)
    assert (ended["settled"], [each["code"] for each in ended["failed"]]) == ([], ["LEASE_LOST", "LEASE_LOST"])
    ended = await one.settle(ack=[lease], extend=["11" * 12])  # its time is not known here
    assert {each["lease"]: each["code"] for each in ended["failed"]} == {
        lease: "LEASE_LOST",
        "11" * 12: "BAD_LEASE_TIME",
    }
    status, answer = await one.post("settle", json.dumps({"ack": []}).encode() + b" " * limits.MAX_SETTLE_BODY_BYTES)
    assert (status, answer["code"]) == (413, "BODY_TOO_LARGE")
    for path, status in (("/queues/default/other", 404), ("/queues/default/other/peek", 404)):
        assert (await one.post("", {}, path=path))[0] == status
    assert (await one.post("listen", {}, path="/queues/default/no%20name/listen"))[1]["code"] == "BAD_QUEUE_NAME"


async def test_a_full_queue(nodes: LocalCluster) -> None:
    one = QueueClient(int(next(iter(nodes.nodes.values())).connect_address.rpartition(":")[2]), "small")
    async with open_kv(nodes.addresses, token=TOKEN) as kv:
        await kv.queues.configure("small", max_messages=2)
        assert len((await one.enqueue(b"1", b"2"))["ids"]) == 2
        status, answer = await one.post("messages", {"messages": [{"payload": "eA==", "encoding": "bytes"}]})
        assert (status, answer["code"], answer["retry"]) == (409, "QUEUE_FULL", False)
        assert "max-messages" in answer["message"]
        assert (await error_of(kv.enqueue(3, queue="small"))).code == "QUEUE_FULL"
        listener = await one.listen(credit=2)
        leases = [line["lease"] for line in await listener.messages(2)]
        status, answer = await one.post("messages", {"messages": [{"payload": "eA==", "encoding": "bytes"}]})
        assert (status, answer["code"]) == (409, "QUEUE_FULL")  # what is in flight counts: it may come back
        await one.settle(ack=leases[:1])
        await one.enqueue(b"3")
        await one.settle(ack=leases[1:])
