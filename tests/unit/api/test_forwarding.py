"""What is forwarded to a peer and answered, by its stream and by its lane."""

from __future__ import annotations

import asyncio
from types import MethodType

import pytest
from grpc import aio

from kvnode.api.forwarding import Forwarding
from kvnode.api.peer_lanes import PeerLanes
from kvnode.base import limits
from kvnode.machine.sessions import NODES_OWN
from kvnode.node.lane import Lane
from kvnode.node.ports import Origin
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.peers import PEER, Pair, no_lanes, operation, pair
from tests.unit.api.serving import until


@pytest.fixture(params=["stream", "lane"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By which operations go to the peer and come back."""
    if request.param == "stream":
        monkeypatch.setattr(PeerLanes, "start", no_lanes)
    return str(request.param)


async def on(way: str, p: Pair) -> None:
    """Wait until they do."""
    await until(lambda: p.transport.has_lane(PEER) == (way == "lane"))


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
        await until(lambda: len(p.results) == 10_000, timeout=30)  # it asks for all of them, not how soon
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
