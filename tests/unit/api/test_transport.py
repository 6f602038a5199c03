"""The transport and the Peer service, face to face over loopback sockets."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc import aio

from kvnode.api.grpc_server import GrpcServer
from kvnode.api.peer_lanes import PeerLanes
from kvnode.base import limits
from kvnode.base.clock import SystemClock
from kvnode.base.errors import KvError
from kvnode.codec.membership import Member
from kvnode.node.channels import SERVER_OPTIONS
from kvnode.node.lane import TOKEN_BYTES, FrameReader
from kvnode.node.ports import Freshness, Held, LeaseAsk, LeaseGrant, LeaseNews
from kvnode.node.transport import GrpcTransport
from kvnode.proto.kv.internal.v1 import peer_pb2
from tests.unit.api.fake_node import FakeNode
from tests.unit.api.peers import PEER, append, no_lanes, pair
from tests.unit.api.serving import served, until


class SteppingClock(SystemClock):
    """Somebody sets the wall clock an hour ahead each time it has been looked at."""

    def __init__(self) -> None:
        self.asked = 0

    def now_ms(self) -> int:
        self.asked += 1
        return super().now_ms() + 3_600_000 * self.asked


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
