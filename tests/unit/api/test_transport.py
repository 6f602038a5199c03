"""The transport and the Peer service, face to face over loopback sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MethodType

import grpc
import pytest
from grpc import aio

from kvnode.api.forwarding import Forwarding
from kvnode.api.grpc_server import GrpcServer
from kvnode.api.peer_lanes import PeerLanes
from kvnode.base import limits
from kvnode.base.clock import Clock, SystemClock
from kvnode.base.errors import KvError
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import Member
from kvnode.machine.sessions import NODES_OWN
from kvnode.node.channels import SERVER_OPTIONS
from kvnode.node.lane import TOKEN_BYTES, FrameReader, Lane
from kvnode.node.ports import Freshness, Held, LeaseAsk, LeaseGrant, LeaseNews, Origin
from kvnode.node.transport import GrpcTransport
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message, MessageKind
from tests.unit.api.fake_node import FakeNode
from tests.unit.api.serving import served, until

PEER = 2


async def no_lanes(_self: PeerLanes, _host: str) -> None:
    pass


def append(index: int, data: bytes = b"x") -> Message:
    return Message(MessageKind.APPEND, PEER, 1, 1, index=index, entries=(Entry(1, index + 1, EntryKind.DATA, data),))


def operation(number: int, value: bytes = b"v") -> kv_pb2.Operation:
    mutation = kv_pb2.Mutation(type=1, key=b"k%d" % number, value=kv_pb2.Value(data=value, encoding=3))
    return kv_pb2.Operation(id=number, write=kv_pb2.AtomicWriteRequest(mutations=[mutation]))


class Pair:
    def __init__(self, near: FakeNode, far: FakeNode, transport: GrpcTransport, server: GrpcServer, port: int) -> None:
        self.near = near
        self.far = far
        self.transport = transport
        self.server = server
        self.port = port
        self.results: list[kv_pb2.OperationResult] = []

    def forward(self, *numbers: int, value: bytes = b"v") -> None:
        for number in numbers:
            origin = Origin(b"0123456789", number, 3, own_session=number % 2 == 0)
            self.transport.forward(PEER, origin, operation(number, value), self.results.append)


class SteppingClock(SystemClock):
    """Somebody sets the wall clock an hour ahead each time it has been looked at."""

    def __init__(self) -> None:
        self.asked = 0

    def now_ms(self) -> int:
        self.asked += 1
        return super().now_ms() + 3_600_000 * self.asked


@pytest.fixture(params=["stream", "lane"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By which operations go to the peer and come back."""
    if request.param == "stream":
        monkeypatch.setattr(PeerLanes, "start", no_lanes)
    return str(request.param)


async def on(way: str, p: Pair) -> None:
    """Wait until they do."""
    await until(lambda: p.transport.has_lane(PEER) == (way == "lane"))


@asynccontextmanager
async def pair(clock: Clock | None = None, *, connect: bool = True) -> AsyncIterator[Pair]:
    near, far = FakeNode(1, "near"), FakeNode(PEER, "far")
    server = GrpcServer(far, "127.0.0.1:0")
    port = await server.start()
    transport = GrpcTransport(near, clock or SystemClock(), stats=near.stats)
    transport.set_members([Member(PEER, "far", "r", "d", f"127.0.0.1:{port}")])
    try:
        if connect:
            await until(lambda: transport.connected(PEER))
        yield Pair(near, far, transport, server, port)
    finally:
        async with asyncio.timeout(5):
            await transport.close()
            await server.stop(0)


async def test_messages_of_one_pass_travel_in_one_batch_in_order_while_there_is_no_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PeerLanes, "start", no_lanes)
    async with pair() as p:
        for index in range(10):
            p.transport.send(PEER, [append(index)], Freshness(index, 2, 3))
        await until(lambda: p.far.messages)
        sender, messages, freshness = p.far.messages[0]
        assert sender == 1
        assert messages == [append(index) for index in range(10)]
        assert freshness == Freshness(9, 2, 3)


async def test_messages_travel_by_the_lane_in_order() -> None:
    async with pair() as p:
        await until(lambda: p.transport.has_lane(PEER))
        sent = [append(index, bytes([index]) * 100_000) for index in range(100)]
        for message in sent:
            p.transport.send(PEER, [message], Freshness(message.index, 2, 3))
        await until(lambda: sum(len(messages) for _, messages, _ in p.far.messages) == 100)
        assert [message for _, messages, _ in p.far.messages for message in messages] == sent
        assert p.far.messages[-1][2] == Freshness(99, 2, 3)
        assert {sender for sender, _, _ in p.far.messages} == {1}


@pytest.mark.parametrize("lane", [True, False])
async def test_how_far_replicas_are_is_told_on_either_way(lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not lane:
        monkeypatch.setattr(PeerLanes, "start", no_lanes)
    async with pair() as p:
        if lane:
            await until(lambda: p.transport.has_lane(PEER))
        rows = [Held(11, 5, 1_000), Held(12, 4, 0)]
        p.transport.send_held(PEER, rows)
        p.transport.send_held(99, rows)  # nobody's id
        await until(lambda: p.far.held_rows == rows)
        assert not p.far.messages, "it brings no Raft message along"
        p.transport.send_held(PEER, [Held(11, 6, 1_100)])
        p.transport.send_held(PEER, [Held(11, 7, 1_200, 30)])
        await until(lambda: p.far.held_rows[-1] == Held(11, 7, 1_200, 30))


@pytest.mark.parametrize("lane", [True, False])
async def test_news_of_the_lease_travel_on_either_way(lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not lane:
        monkeypatch.setattr(PeerLanes, "start", no_lanes)
    async with pair() as p:
        if lane:
            await until(lambda: p.transport.has_lane(PEER))
        ask = LeaseAsk(7, 123_456)
        p.transport.send_lease(PEER, LeaseNews(ask))
        p.transport.send_lease(99, LeaseNews(ask))  # nobody's id
        await until(lambda: p.far.lease_news == [LeaseNews(ask, [])])
        news = LeaseNews(None, [LeaseGrant(4, ask, 10_000, 10_000, 2**64 - 1), LeaseGrant(5, ask, 0, 0, 1)])
        p.transport.send_lease(PEER, news)
        await until(lambda: p.far.lease_news[-1] == news)
        assert not p.far.messages, "it brings no Raft message along"


async def test_a_lane_that_breaks_takes_its_stream_along() -> None:
    async with pair() as p:
        await until(lambda: p.transport.has_lane(PEER))
        p.server._lanes.stop()
        await until(lambda: PEER in p.near.unreachable)
        await until(lambda: p.transport.connected(PEER))
        p.transport.send(PEER, [append(1)], None)
        await until(lambda: p.far.messages)


async def test_a_stream_that_ends_closes_its_lane() -> None:
    async with pair() as p:
        await until(lambda: p.transport.has_lane(PEER))
        p.transport.set_members([])
        await until(lambda: not p.server._lanes._takers)
        assert not p.server._lanes._lanes, "what ends the offer cuts the lane"


async def test_only_the_offered_token_opens_a_lane() -> None:
    async with pair() as p:
        await until(lambda: p.transport.has_lane(PEER))
        reader, writer = await asyncio.open_connection("127.0.0.1", p.server._lanes._port)
        writer.write(b"0" * TOKEN_BYTES + b"\0\0\0\1x")
        assert await reader.read() == b""
        writer.close()


async def test_another_service_at_the_lanes_port_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEER_CONNECT_TIMEOUT_MS", 200)

    async def echoes_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request")
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(echoes_nonsense, "127.0.0.1", 0)
    port = stranger.sockets[0].getsockname()[1]
    async with pair(connect=False) as p:
        monkeypatch.setattr(p.server._lanes, "_port", port)
        await until(lambda: p.transport.connected(PEER))
        p.transport.send(PEER, [append(1)], None)
        await until(lambda: p.far.messages)
        assert not p.transport.has_lane(PEER)
        assert not p.near.unreachable
    stranger.close()


async def test_what_a_full_lane_does_not_take_waits_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as p:
        await until(lambda: p.transport.has_lane(PEER))
        p.transport._peers[PEER].messages._lane.is_full = True
        p.transport.send(PEER, [append(1)], None)
        monkeypatch.setattr(limits, "MAX_PEER_QUEUE_COUNT", 2)
        p.transport.send(PEER, [append(2), append(3)], None)
        assert p.near.stats.messages_dropped == 1
        p.transport._peers[PEER].messages._lane.resume_writing()
        await until(lambda: p.far.messages)
        assert p.far.messages[0][1] == [append(1), append(2)]


def test_frames_may_come_in_pieces() -> None:
    batches = [bytes([number]) * number for number in range(1, 50)]
    wire = b"".join(len(batch).to_bytes(4, "big") + batch for batch in batches)
    for step in (1, 3, 7, len(wire)):
        reader = FrameReader()
        found = [batch for at in range(0, len(wire), step) for batch in reader.feed(wire[at : at + step])]
        assert found == batches


def test_a_frame_beyond_any_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of 4294967295 bytes"):
        list(FrameReader().feed(b"\xff\xff\xff\xff"))


async def test_freshness_alone_is_sent() -> None:
    async with pair() as p:
        p.transport.send(PEER, [], Freshness(1, 2, 3))
        await until(lambda: p.far.messages)
        assert p.far.messages == [(1, [], Freshness(1, 2, 3))]


@pytest.mark.parametrize("lane", [True, False])
async def test_many_large_messages_arrive_whole(lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not lane:
        monkeypatch.setattr(PeerLanes, "start", no_lanes)
    async with pair() as p:
        if lane:  # while it opens, what goes by it may overtake what the stream has taken
            await until(lambda: p.transport.has_lane(PEER))
        sent = [append(index, bytes([index]) * 1_048_576) for index in range(20)]
        p.transport.send(PEER, sent, None)
        await until(lambda: sum(len(messages) for _, messages, _ in p.far.messages) == 20)
        assert [message for _, messages, _ in p.far.messages for message in messages] == sent
        assert len(p.far.messages) >= 5  # a batch closes at MAX_PEER_BATCH_BYTES


async def test_what_does_not_fit_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEER_QUEUE_COUNT", 3)
    async with pair() as p:
        p.transport.send(PEER, [append(index) for index in range(5)], None)
        assert p.near.stats.messages_dropped == 2
        monkeypatch.setattr(limits, "MAX_PEER_QUEUE_BYTES", 10)
        p.transport.send(PEER, [append(1)], None)
        p.transport.send(99, [append(1)], None)
        assert p.near.stats.messages_dropped == 4
        await until(lambda: p.far.messages)
        assert len(p.far.messages[0][1]) == 3


async def test_clocks_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEER_CLOCK_SAMPLE_INTERVAL_MS", 20)
    async with pair() as p:
        await until(lambda: len(p.near.clock_samples) >= 3)
        clock = SystemClock()
        apart_ms = clock.now_ms() - clock.monotonic_ms()  # one machine: the peer's wall clock is ours
        for sender, theirs_ms, round_trip_ms in p.near.clock_samples:
            assert sender == PEER
            assert 0 <= round_trip_ms < 500
            assert abs(theirs_ms - apart_ms) <= round_trip_ms / 2 + 3


async def test_a_clock_that_is_set_while_a_sample_is_under_way_does_not_make_the_peer_agree_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or every peer that is asked in that moment would."""
    monkeypatch.setattr(limits, "PEER_CLOCK_SAMPLE_INTERVAL_MS", 20)
    ours = SteppingClock()
    async with pair(ours) as p:
        await until(lambda: len(p.near.clock_samples) >= 3)
    apart_ms = SystemClock().now_ms() - SystemClock().monotonic_ms()
    assert ours.asked >= 3
    for _, theirs_ms, round_trip_ms in p.near.clock_samples:
        assert abs(theirs_ms - apart_ms) <= round_trip_ms / 2 + 3


async def test_a_refused_stream_is_unreachable_and_tried_again() -> None:
    async with pair(connect=False) as p:
        p.far.refuse = "a stranger"
        await until(lambda: len(p.near.unreachable) >= 2)
        assert not p.transport.connected(PEER)
        p.far.refuse = ""
        await until(lambda: p.transport.connected(PEER))


async def test_a_wrong_receiver_is_refused() -> None:
    async with pair() as p:
        p.transport.set_members([Member(3, "third", "r", "d", f"127.0.0.1:{p.port}")])
        await until(lambda: 3 in p.near.unreachable)
        assert not p.transport.connected(3)
        assert not p.transport.connected(PEER)


async def test_streams_come_back_after_the_peer_restarts() -> None:
    async with pair() as p:
        await p.server.stop(0)
        await until(lambda: PEER in p.near.unreachable)
        p.transport.send(PEER, [append(1)], None)
        assert p.near.stats.messages_dropped == 1
        p.server = GrpcServer(p.far, f"127.0.0.1:{p.port}")
        await p.server.start()
        started = asyncio.get_running_loop().time()
        await until(lambda: p.transport.connected(PEER))
        assert asyncio.get_running_loop().time() - started < 1.5
        p.transport.send(PEER, [append(1)], None)
        await until(lambda: p.far.messages)
        await p.server.stop(0)


async def test_a_peer_whose_loop_is_stuck_is_cut(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "PEER_CLOCK_SAMPLE_INTERVAL_MS", 10)
    caplog.set_level("INFO")

    async def welcomes_and_falls_silent(_requests: object, context: aio.ServicerContext) -> None:
        await context.read()
        hello = peer_pb2.Hello(cluster_id="c", node_id=PEER, to_node_id=1)
        await context.write(peer_pb2.PeerReply(hello=hello).SerializeToString())
        while await context.read() is not aio.EOF:
            pass

    server = aio.server(options=SERVER_OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(welcomes_and_falls_silent)
    methods = {"Messages": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("kv.internal.v1.Peer", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    near = FakeNode(1, "near")
    transport = GrpcTransport(near, SystemClock())
    transport.set_members([Member(PEER, "far", "r", "d", f"127.0.0.1:{port}")])
    await until(lambda: transport.connected(PEER))
    await until(lambda: PEER in near.unreachable)
    assert "Messages to far is down: the stream was cut" in caplog.text
    await transport.close()
    await server.stop(0)


async def test_forwarded_operations_are_answered_and_their_origin_travels(way: str) -> None:
    async with pair() as p:
        await on(way, p)
        p.forward(1, 2, 3)
        assert not p.results
        await until(lambda: len(p.results) == 3)
        assert [result.id for result in p.results] == [1, 2, 3]
        assert p.far.forwarded == [(Origin(b"0123456789", n, 3, n == 2), n) for n in (1, 2, 3)]
        assert all(p.far.bounded), "what cannot be taken is read all the same"


async def test_many_forwards_of_one_pass(way: str) -> None:
    async with pair() as p:
        await on(way, p)
        p.forward(*range(10_000))
        await until(lambda: len(p.results) == 10_000)
        assert sorted(result.id for result in p.results) == list(range(10_000))


async def test_a_fresh_client_id_is_asked_for(way: str) -> None:
    async with pair() as p:
        await on(way, p)
        answers: list[tuple[bytes, kv_pb2.Error | None]] = []
        p.transport.forward_open(PEER, 3, lambda client_id, error: answers.append((client_id, error)))
        await until(lambda: answers)
        assert len(answers[0][0]) == 10
        assert answers[0][1] is None
        p.far.refuse_snapshot = True
        p.transport.forward_open(PEER, NODES_OWN, lambda client_id, error: answers.append((client_id, error)))
        p.transport.forward_open(99, 3, lambda client_id, error: answers.append((client_id, error)))
        await until(lambda: len(answers) == 3)
        assert {answers[1][1].code, answers[2][1].code} == {"NOT_LEADER", "PEER_UNREACHABLE"}
        assert p.far.owners == [3, NODES_OWN]


async def test_an_outstanding_forward_breaks_with_the_stream(way: str) -> None:
    async with pair() as p:
        await on(way, p)
        p.far.hold = True
        p.forward(1)
        await until(lambda: p.far.held)
        await p.server.stop(0)
        await until(lambda: p.results)
        error = p.results[0].error
        assert (p.results[0].id, error.code, error.not_applied) == (1, "FORWARD_BROKEN", False)
        p.forward(2)
        await until(lambda: len(p.results) == 2)
        error = p.results[1].error
        assert (p.results[1].id, error.code, error.not_applied) == (2, "PEER_UNREACHABLE", True)
        p.far.release()


async def test_a_forward_to_nobody_or_beyond_the_bound_is_refused_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as p:
        p.transport.forward(99, Origin(b"", 0), operation(7), p.results.append)
        monkeypatch.setattr(limits, "MAX_FORWARD_QUEUE_BYTES", 10)
        p.forward(8)
        assert not p.results
        await until(lambda: len(p.results) == 2)
        assert {(r.id, r.error.code, r.error.not_applied) for r in p.results} == {
            (7, "PEER_UNREACHABLE", True),
            (8, "PEER_UNREACHABLE", True),
        }


async def test_a_failing_receiver_does_not_cost_the_others_their_answers(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as p:
        await on(way, p)

        def fails(result: kv_pb2.OperationResult) -> None:
            raise RuntimeError("a bug in the receiver")

        p.transport.forward(PEER, Origin(b"", 0), operation(1), fails)
        p.forward(2)
        await until(lambda: p.results)
        assert p.transport.connected(PEER)
        assert "a bug in the receiver" in caplog.text


@pytest.mark.parametrize("early_count", [0, 1, 500])
async def test_operations_stay_in_order_while_a_lane_opens(early_count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has left by the stream comes first, however slow that is."""
    lane_opens = asyncio.Event()
    opened = Lane.open

    async def when_told(*arguments: object) -> Lane:
        await lane_opens.wait()
        return await opened(*arguments)  # type: ignore[arg-type]

    slow = asyncio.Event()

    class SlowContext:
        def __init__(self, context: aio.ServicerContext) -> None:
            self._context = context

        async def read(self) -> object:
            raw = await self._context.read()
            await slow.wait()
            return raw

        async def write(self, message: bytes) -> None:
            await self._context.write(message)

    made = Forwarding.__init__

    def slowly(self: Forwarding, node: object, hello: object, context: aio.ServicerContext, stopping: object) -> None:
        made(self, node, hello, SlowContext(context), stopping)  # type: ignore[arg-type]

    monkeypatch.setattr(Lane, "open", when_told)
    monkeypatch.setattr(Forwarding, "__init__", slowly)
    async with pair() as p:
        await until(lambda: p.transport._peers[PEER].forwards.up)
        for number in range(early_count):
            p.forward(number)
            if number % 100 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: not p.transport._peers[PEER].forwards._queue)
        lane_opens.set()
        await until(lambda: p.transport.has_lane(PEER))
        p.forward(*range(early_count, early_count + 300))
        if early_count:
            await asyncio.sleep(0.05)
            assert not p.far.forwarded, "the lane has overtaken the stream"
        slow.set()
        await until(lambda: len(p.results) == early_count + 300)
        assert [number for _, number in p.far.forwarded] == list(range(early_count + 300))


async def test_a_lane_is_read_no_further_while_too_much_is_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SESSION_UNANSWERED_COUNT", 10)
    monkeypatch.setattr(limits, "MAX_PEER_BATCH_BYTES", 400_000)
    async with pair() as p:
        await on("lane", p)
        p.far.hold = True
        for number in range(100):
            p.forward(number, value=bytes(200_000))
        await until(lambda: len(p.far.forwarded) >= 10)
        await asyncio.sleep(0.1)
        assert len(p.far.forwarded) < 60, "it went on reading"
        p.far.hold = False
        p.far.release()
        await until(lambda: len(p.results) == 100)
        assert [number for _, number in p.far.forwarded] == list(range(100))


async def test_what_was_answered_by_the_lane_arrives_though_the_node_stops(way: str) -> None:
    async with pair() as p:
        await on(way, p)
        p.far.hold = True
        p.forward(*range(1_000))
        await until(lambda: len(p.far.held) == 1_000)
        stopping = asyncio.ensure_future(p.server.stop(5))
        await asyncio.sleep(0.05)
        assert not stopping.done() and not p.results
        p.far.hold = False
        p.far.release()
        await until(lambda: len(p.results) == 1_000)
        assert not any(result.HasField("error") for result in p.results)
        await stopping


async def test_what_comes_back_by_a_lane_and_is_none_ends_it() -> None:
    async with pair() as p:
        await on("lane", p)
        p.forward(1)
        await until(lambda: p.results)
        (lane,) = [lane for lane in p.server._lanes._lanes.values() if lane._take.__class__ is MethodType]
        lane._transport.write(b"\xff\xff\xff\xff")
        await until(lambda: not p.transport.has_lane(PEER))
        await until(lambda: p.transport.has_lane(PEER))
        p.forward(2)
        await until(lambda: len(p.results) == 2)


class Source:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[int] = []

    @property
    def header(self) -> peer_pb2.SnapshotHeader:
        return peer_pb2.SnapshotHeader(snapshot_id="s", index=5, term=1, size_bytes=len(self.data))

    async def read(self, offset: int, size: int) -> bytes:
        self.reads.append(offset)
        return self.data[offset : offset + size]

    def close(self) -> None:
        pass


async def test_a_snapshot_is_sent_whole() -> None:
    async with pair() as p:
        data = bytes(range(256)) * 8_192  # 2 MiB
        assert await p.transport.send_snapshot(PEER, Source(data))
        assert p.far.snapshot == data
        assert p.far.snapshot_finished
        assert p.far.snapshot_headers[0].hello.node_id == 1


async def test_a_broken_snapshot_resumes_at_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEER_BACKOFF_MS", 20)
    async with pair() as p:
        p.far.break_snapshot_at = 1_000_000
        source = Source(bytes(range(256)) * 8_192)
        assert await p.transport.send_snapshot(PEER, source)
        assert p.far.snapshot == source.data
        assert len(p.far.snapshot_headers) == 2
        assert 1_048_576 in source.reads


async def test_a_snapshot_already_held_is_only_finished() -> None:
    async with pair() as p:
        p.far.snapshot = bytes(1_000)
        assert await p.transport.send_snapshot(PEER, Source(bytes(1_000)))
        assert p.far.snapshot_finished


async def test_a_refused_snapshot_is_not_tried_again() -> None:
    async with pair() as p:
        p.far.refuse_snapshot = True
        assert not await p.transport.send_snapshot(PEER, Source(b"data"))
        p.far.refuse = "a stranger"
        assert not await p.transport.send_snapshot(PEER, Source(b"data"))
        assert not await p.transport.send_snapshot(99, Source(b"data"))
        assert len(p.far.snapshot_headers) == 1


async def test_identify_and_adopt() -> None:
    async with served(FakeNode(PEER, "far")) as s:
        transport = GrpcTransport(FakeNode(1), SystemClock())
        answer = await transport.identify(s.address)
        assert (answer.member.name, answer.cluster_id, answer.joined) == ("far", "c", True)
        request = peer_pb2.AdoptRequest(cluster_id="other", epoch=1, node_id=PEER)
        with pytest.raises(KvError) as caught:
            await transport.adopt(s.address, request)
        assert caught.value.code == "MEMBER_OF_ANOTHER_CLUSTER"
        with pytest.raises(KvError) as caught:
            await transport.identify("127.0.0.1:1")
        assert caught.value.code == "PEER_UNREACHABLE"
        await transport.close()


async def test_closing_answers_what_is_outstanding(way: str) -> None:
    async with pair() as p:
        await on(way, p)
        p.far.hold = True
        p.forward(1)
        await until(lambda: p.far.held)
        await p.transport.close()
        assert p.results[0].error.code == "FORWARD_BROKEN"


async def test_what_a_removed_peer_forwards_is_answered_with_its_removal(way: str) -> None:
    async with pair() as p:
        await on(way, p)
        p.forward(1)
        await until(lambda: len(p.results) == 1)
        p.far.removed.add(1)
        p.far.refuse = "MEMBER_REMOVED"  # as a node answers the next Hello
        resent = operation(3)
        resent.resend = True
        p.forward(2)
        p.transport.forward(PEER, Origin(b"0123456789", 3, 3), resent, p.results.append)
        opened: list[kv_pb2.Error | None] = []
        p.transport.forward_open(PEER, 3, lambda _client_id, error: opened.append(error))
        await until(lambda: len(p.results) == 3 and opened)
        assert [result.error.code for result in p.results[1:]] == ["MEMBER_REMOVED"] * 2
        assert [result.error.not_applied for result in p.results[1:]] == [True, False]
        assert opened[0] is not None and opened[0].code == "MEMBER_REMOVED"
        assert [number for _, number in p.far.forwarded] == [1]


@pytest.mark.parametrize("lane", [True, False])
async def test_a_removed_peer_is_cut_off_so_that_it_is_told_unless_it_leads(
    lane: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not lane:
        monkeypatch.setattr(PeerLanes, "start", no_lanes)
    async with pair() as p:
        await until(lambda: p.transport.has_lane(PEER) == lane)
        p.far.removed.add(1)
        p.far.leader_id = 1
        p.transport.send(PEER, [append(1)], None)
        await until(lambda: len(p.far.messages) == 1)
        p.far.leader_id = PEER
        p.far.refuse = "MEMBER_REMOVED"
        p.transport.send(PEER, [append(2)], None)
        await until(lambda: not p.transport.connected(PEER))
        assert len(p.far.messages) == 1
