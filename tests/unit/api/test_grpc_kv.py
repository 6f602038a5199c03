"""kv.v1.KV over a real socket, in front of a fake node."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from kvnode.api.grpc_server import GrpcServer
from kvnode.base import limits
from kvnode.base.errors import ConfigError, KvError, OutcomeUnknown, TooStale, Unavailable
from kvnode.client.status import error_from_rpc, is_retryable
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.fake_node import FakeNode
from tests.unit.api.serving import Served, served, until

READ, WRITE = "/kv.v1.KV/Read", "/kv.v1.KV/AtomicWrite"
SESSION, WATCH = "/kv.v1.KV/Session", "/kv.v1.KV/Watch"


def write_of(key: bytes, value: bytes = b"v") -> kv_pb2.AtomicWriteRequest:
    mutation = kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=key, value=kv_pb2.Value(data=value, encoding=3))
    return kv_pb2.AtomicWriteRequest(mutations=[mutation])


def read_of(key: bytes) -> kv_pb2.ReadRequest:
    return kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=key, end=key + b"\0", limit=1)])


class Client:
    """One Session stream."""

    def __init__(self, channel: aio.Channel) -> None:
        self.call = channel.stream_stream(SESSION)()
        self.responses: list[kv_pb2.SessionResponse] = []

    async def send(self, **fields) -> None:
        await self.call.write(kv_pb2.SessionRequest(**fields).SerializeToString())

    async def receive(self) -> kv_pb2.SessionResponse:
        raw = await self.call.read()
        assert raw is not aio.EOF, await self.call.details()
        self.responses.append(kv_pb2.SessionResponse.FromString(raw))
        return self.responses[-1]

    async def results(self, count: int) -> dict[int, kv_pb2.OperationResult]:
        found = {}
        while len(found) < count:
            for result in (await self.receive()).results:
                found[result.id] = result
        return found


async def test_unary_write_and_read() -> None:
    async with served() as s:
        written = await s.call(WRITE, write_of(b"k", b"hello"), kv_pb2.AtomicWriteResponse)
        assert written.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
        answer = await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse)
        assert answer.ranges[0].entries[0].value == b"hello"


async def test_the_callers_deadline_reaches_the_node() -> None:
    async with served() as s:
        await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse, timeout=2.0)
        await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse, timeout=None)
        await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse, timeout=3_600)
        first, default, capped = s.node.timeouts
        assert 500 < first <= 2_100  # the deadline is rounded up on the wire
        assert default == limits.DEFAULT_OPERATION_TIMEOUT_MS
        assert capped == limits.MAX_OPERATION_TIMEOUT_MS


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            KvError("DEADLINE_EXCEEDED", "too late", phase="commit", not_applied=False),
            grpc.StatusCode.DEADLINE_EXCEEDED,
        ),
        (Unavailable("no leader", code="NO_LEADER"), grpc.StatusCode.UNAVAILABLE),
        (OutcomeUnknown("who knows"), grpc.StatusCode.UNKNOWN),
        (KvError("SESSION_UNKNOWN", "gone", phase="commit"), grpc.StatusCode.FAILED_PRECONDITION),
        (KvError("STATE_DAMAGED", "bits", phase="storage", not_applied=False), grpc.StatusCode.DATA_LOSS),
        (ZeroDivisionError("a bug"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_errors_become_statuses_with_the_error_beside_them(error: Exception, code: grpc.StatusCode) -> None:
    node = FakeNode(name="näme")
    node.read_error = error
    async with served(node) as s:
        with pytest.raises(aio.AioRpcError) as caught:
            await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse)
        assert caught.value.code() is code
        seen = error_from_rpc(caught.value, "elsewhere")
        wanted = error if isinstance(error, KvError) else KvError("INTERNAL", "", phase="storage", not_applied=False)
        assert (seen.code, seen.phase, seen.not_applied) == (wanted.code, wanted.phase, wanted.not_applied)
        assert seen.endpoint == "näme"
        assert caught.value.details().startswith(f"{wanted.code}: ")
        metadata = dict(caught.value.trailing_metadata())
        assert metadata["kvnode-code"] == wanted.code
        assert metadata["kvnode-phase"] == wanted.phase
        assert metadata["kvnode-endpoint"] == "n?me"
        assert metadata["kvnode-not-applied"] == ("true" if wanted.not_applied else "false")
        node.read_error = None
        await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse)


@pytest.mark.parametrize("path", [READ, WRITE, WATCH, "/kv.v1.Admin/MemberAdd", "/kv.internal.v1.Peer/Adopt"])
async def test_torn_protobuf_is_answered_and_the_server_lives_on(path: str) -> None:
    async with served() as s:
        with pytest.raises(aio.AioRpcError) as caught:
            if path == WATCH:
                await s.channel.unary_stream(path)(b"\x0a\xff").read()
            else:
                await s.channel.unary_unary(path)(b"\x0a\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "MALFORMED_REQUEST: the 2 bytes received are not a kv." in caught.value.details()
        assert (await s.call(WRITE, write_of(b"k"), kv_pb2.AtomicWriteResponse)).versionstamp


async def test_an_answer_too_large_for_a_message_is_an_error() -> None:
    async with served() as s:
        s.node.read_bytes = limits.MAX_GRPC_MESSAGE_BYTES
        with pytest.raises(aio.AioRpcError) as caught:
            await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen(), operations=[kv_pb2.Operation(id=1, read=read_of(b"k"))])
        results = await client.results(1)
        assert results[1].error.code == "RESPONSE_TOO_LARGE"
        client.call.cancel()


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is in a cycle stays."""
    gc.disable()
    yield
    gc.enable()


async def test_an_answer_too_large_for_a_message_is_neither_serialized_nor_kept(
    monkeypatch: pytest.MonkeyPatch, no_collection: None
) -> None:
    made: list[kv_pb2.ReadResponse] = []

    async def read(request: kv_pb2.ReadRequest, timeout_ms: int, *, database: int) -> kv_pb2.ReadResponse:
        entries = [kv_pb2.Entry(key=b"k", value=bytes(1_000))] * request.ranges[0].limit
        made.append(kv_pb2.ReadResponse(ranges=[kv_pb2.ReadRangeResult(entries=entries)]))
        return made[-1]

    async def listed(s: Served, count: int) -> kv_pb2.ReadResponse:
        wanted = kv_pb2.ReadRange(start=b"k", end=b"l", limit=count)
        return await s.call(READ, kv_pb2.ReadRequest(ranges=[wanted]), kv_pb2.ReadResponse)

    async with served() as s:
        monkeypatch.setattr(limits, "MAX_GRPC_MESSAGE_BYTES", 100_000)
        monkeypatch.setattr(s.node, "read", read)
        with pytest.raises(aio.AioRpcError) as caught:
            await listed(s, 1_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the answer has 128000 bytes or more" in caught.value.details()  # as far as they were counted
        assert len((await listed(s, 90)).ranges[0].entries) == 90
        await until(lambda: sys.getrefcount(made[1]) == 2)
        references_count = sys.getrefcount(made[0])
        assert references_count == 2, "something keeps an answer that was not given"


async def test_session_pipelines_and_coalesces_results() -> None:
    async with served() as s:
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen())
        opened = (await client.receive()).opened
        assert len(opened.client_id) == 10
        assert opened.node == "a"
        operations = [kv_pb2.Operation(id=i, write=write_of(b"k%d" % i)) for i in range(1, 65)]
        await client.send(operations=operations, lowest_unanswered=1)
        response = await client.receive()
        assert [result.id for result in response.results] == list(range(1, 65))
        assert s.node.owners == [1]
        assert s.node.batches == [(64, (opened.client_id, 1, 1, False))]
        assert s.node.stats.sessions_open == 1
        await client.send(operations=[kv_pb2.Operation(id=65, write=write_of(b"bad"))])
        assert (await client.results(1))[65].error.code == "KEY_BAD"
        await client.call.done_writing()
        assert await client.call.read() is aio.EOF
        assert await client.call.code() is grpc.StatusCode.OK
        assert s.node.stats.sessions_open == 0


async def test_session_resumes_a_client_id_and_takes_operations_with_the_open() -> None:
    async with served() as s:
        client = Client(s.channel)
        await client.send(
            open=kv_pb2.SessionOpen(client_id=b"0123456789"),
            operations=[kv_pb2.Operation(id=7, write=write_of(b"k"))],
            lowest_unanswered=7,
        )
        assert (await client.receive()).opened.client_id == b"0123456789"
        assert (await client.results(1))[7].write.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
        assert s.node.opened == 0
        client.call.cancel()


def eventual(number: int) -> kv_pb2.Operation:
    request = read_of(b"k")
    request.consistency = kv_pb2.CONSISTENCY_EVENTUAL
    return kv_pb2.Operation(id=number, read=request)


async def test_without_a_leader_eventual_reads_are_answered_and_the_rest_waits_for_the_client_id() -> None:
    async with served() as s:
        s.node.leader_comes = asyncio.Event()
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen(), operations=[eventual(1)])
        assert 1 in await client.results(1)
        await client.send(operations=[eventual(2)])
        assert 2 in await client.results(1)
        await client.send(operations=[kv_pb2.Operation(id=3, write=write_of(b"k")), eventual(4)], lowest_unanswered=3)
        await client.send(operations=[kv_pb2.Operation(id=5, write=write_of(b"k"))], lowest_unanswered=3)
        s.node.leader_comes.set()
        opened = (await client.receive()).opened
        assert len(opened.client_id) == 10, "the id comes before what needed it"
        assert set(await client.results(3)) == {3, 4, 5}
        assert [origin for _, origin in s.node.batches[-2:]] == [(opened.client_id, 3, 1, False)] * 2
        await client.call.done_writing()
        assert await client.call.read() is aio.EOF


async def test_a_client_that_leaves_before_its_session_is_open_is_forgotten() -> None:
    async with served() as s:
        s.node.leader_comes = asyncio.Event()
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen(), operations=[eventual(1)])
        await client.results(1)
        assert s.node.stats.sessions_open == 1
        client.call.cancel()
        await until(lambda: s.node.stats.sessions_open == 0)


async def test_what_is_owed_is_answered_after_the_client_half_closes() -> None:
    async with served() as s:
        s.node.hold = True
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen(), operations=[kv_pb2.Operation(id=1, write=write_of(b"k"))])
        await client.call.done_writing()
        await client.receive()
        await until(lambda: s.node.held)
        s.node.release()
        assert 1 in await client.results(1)
        assert await client.call.read() is aio.EOF


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([{"operations": []}], "SESSION_NOT_OPENED"),
        ([{"open": kv_pb2.SessionOpen(client_id=b"short")}], "CLIENT_ID_INVALID"),
        ([{"open": kv_pb2.SessionOpen()}, {"open": kv_pb2.SessionOpen()}], "SESSION_OPENED_TWICE"),
        (
            [
                {"open": kv_pb2.SessionOpen()},
                {
                    "operations": [
                        kv_pb2.Operation(id=i) for i in range(limits.MAX_SESSION_MESSAGE_OPERATIONS_COUNT + 1)
                    ]
                },
            ],
            "TOO_MANY_OPERATIONS",
        ),
    ],
)
async def test_a_session_against_the_rules_ends_with_the_reason(messages: list[dict], code: str) -> None:
    async with served() as s:
        client = Client(s.channel)
        for message in messages:
            await client.send(**message)
        with pytest.raises(aio.AioRpcError) as caught:
            while await client.call.read() is not aio.EOF:
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(code)


async def test_a_torn_session_message_ends_the_session_only() -> None:
    async with served() as s:
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen())
        await client.receive()
        await client.call.write(b"\xff\xff")
        with pytest.raises(aio.AioRpcError, match="MALFORMED_REQUEST"):
            await client.receive()
        await until(lambda: s.node.stats.sessions_open == 0)
        assert (await s.call(WRITE, write_of(b"k"), kv_pb2.AtomicWriteResponse)).versionstamp


async def test_a_session_is_not_read_on_while_too_much_is_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SESSION_UNANSWERED_COUNT", 10)
    async with served() as s:
        s.node.hold = True
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen())
        await client.receive()
        for first in range(1, 31, 5):
            operations = [kv_pb2.Operation(id=first + i, write=write_of(b"k")) for i in range(5)]
            await client.send(operations=operations)
        await asyncio.sleep(0.1)
        assert len(s.node.held) == 10
        s.node.hold = False
        s.node.release()
        assert set(await client.results(30)) == set(range(1, 31))
        client.call.cancel()


async def test_one_message_of_large_reads_does_not_hold_more_results_than_a_stream_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_SESSION_RESULT_BYTES", 100_000)
    async with served() as s:
        s.node.put(b"k", bytes(40_000))
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen())
        await client.receive()
        reads = [kv_pb2.Operation(id=number, read=read_of(b"k")) for number in range(1, 21)]
        await client.send(operations=[*reads, kv_pb2.Operation(id=21, write=write_of(b"w"))])
        results = await client.results(21)
        assert results[21].HasField("write")
        refused = [number for number in range(1, 21) if results[number].HasField("error")]
        assert len(refused) == 18
        assert s.node.bounded == [True], "what cannot be taken is read all the same"
        error = results[refused[0]].error
        assert (error.code, error.phase, error.not_applied) == ("SESSION_RESULTS_FULL", "read", True)
        assert is_retryable(error)
        await client.send(operations=[kv_pb2.Operation(id=22, read=read_of(b"k"))])
        assert (await client.results(1))[22].HasField("read")
        client.call.cancel()


async def test_a_session_whose_client_left_is_forgotten() -> None:
    async with served() as s:
        s.node.hold = True
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen(), operations=[kv_pb2.Operation(id=1, write=write_of(b"k"))])
        await until(lambda: s.node.held)
        client.call.cancel()
        await until(lambda: s.node.stats.sessions_open == 0)
        s.node.release()  # nobody listens any more
        assert (await s.call(READ, read_of(b"k"), kv_pb2.ReadResponse)).ranges[0].entries


async def test_stop_answers_what_is_owed_and_names_the_reason() -> None:
    async with served() as s:
        s.node.hold = True
        client = Client(s.channel)
        await client.send(open=kv_pb2.SessionOpen(), operations=[kv_pb2.Operation(id=1, write=write_of(b"k"))])
        await client.receive()
        watch = s.channel.unary_stream(WATCH)(kv_pb2.WatchRequest(keys=[b"k"]).SerializeToString())
        await watch.read()
        stopping = asyncio.create_task(s.server.stop(5))
        await asyncio.sleep(0.05)
        s.node.release()
        assert 1 in await client.results(1)
        for call in (client.call, watch):
            with pytest.raises(aio.AioRpcError, match="NODE_STOPPING"):
                await call.read()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(2):
            await stopping


async def test_watch_of_keys_over_the_wire() -> None:
    async with served() as s:
        s.node.put(b"a", b"1")
        request = kv_pb2.WatchRequest(keys=[b"a", b"b"], strong=True)
        watch = s.channel.unary_stream(WATCH)(request.SerializeToString())
        first = kv_pb2.WatchResponse.FromString(await watch.read())
        assert [(key.key, key.changed, key.HasField("entry")) for key in first.keys] == [
            (b"a", True, True),
            (b"b", True, False),
        ]
        assert len(s.node.timeouts) == 2  # the ReadIndex barrier, then the local state caught up
        s.node.put(b"b", b"2")
        second = kv_pb2.WatchResponse.FromString(await watch.read())
        assert [(key.key, key.changed, key.entry.value) for key in second.keys] == [
            (b"a", False, b""),
            (b"b", True, b"2"),
        ]
        watch.cancel()
        await until(lambda: len(s.node.watches) == 0)


async def test_a_watch_that_allows_no_such_age_is_told_so_and_may_go_elsewhere() -> None:
    async with served() as s:  # whose node knows no age
        request = kv_pb2.WatchRequest(keys=[b"a"], max_staleness_ms=5_000)
        watch = s.channel.unary_stream(WATCH)(request.SerializeToString())
        with pytest.raises(aio.AioRpcError) as caught:
            await watch.read()
        error = error_from_rpc(caught.value, "here")
        assert isinstance(error, TooStale) and error.not_applied and "5000 ms" in error.message
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: len(s.node.watches) == 0)


async def test_a_port_in_use_is_named_with_the_remedy() -> None:
    async with served() as s:
        second = GrpcServer(FakeNode(), s.address)
        port = s.address.rpartition(":")[2]
        with pytest.raises(ConfigError, match=f"port {port} is in use") as caught:
            await second.start()
        assert caught.value.code == "CONFIG_INVALID"


@pytest.mark.parametrize("address", ["nowhere.invalid:1", "127.0.0.1:notaport", "192.0.2.1:4512"])
async def test_an_impossible_address_is_explained(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        await GrpcServer(FakeNode(), address).start()


async def test_health_follows_readiness() -> None:
    async with served() as s:
        check = "/grpc.health.v1.Health/Check"

        async def status(service: str) -> int:
            answer = await s.call(check, health_pb2.HealthCheckRequest(service=service), health_pb2.HealthCheckResponse)
            return answer.status

        assert await status("kv.v1.KV") == health_pb2.HealthCheckResponse.SERVING
        s.node.ready = (False, "no leader")
        await asyncio.sleep(2.5 * limits.HEALTH_INTERVAL_MS / 1_000)
        assert await status("") == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_lists_the_services() -> None:
    async with served() as s:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        call = s.channel.stream_stream(method)()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
        answer = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
        names = {service.name for service in answer.list_services_response.service}
        assert {"kv.v1.KV", "kv.v1.Admin", "kv.internal.v1.Peer", "grpc.health.v1.Health"} <= names
        call.cancel()
