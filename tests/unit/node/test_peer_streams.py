"""What the streams to a peer count, and what of it must be gone when a stream ends.

There are no sockets here: tests/unit/api/test_transport.py has them.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.base import limits
from kvnode.node.forward_stream import ForwardStream
from kvnode.node.lane import Lane
from kvnode.node.message_stream import MAX_UNANSWERED_SAMPLES_COUNT, MessageStream
from kvnode.node.ports import Origin
from kvnode.node.stats import Stats
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message, MessageKind
from tests.unit.node.fakes import HandClock

PEER = 2


class Channel:
    def stream_stream(self, method: str) -> None:
        return None


class StreamCall:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def forwarding() -> ForwardStream:
    return ForwardStream(PEER, "far", Channel(), None)  # type: ignore[arg-type]


def messaging(lane_host: str = "") -> MessageStream:
    handler = SimpleNamespace(check_hello=lambda hello: "", on_clock_sample=lambda *_: None)
    clock: Any = HandClock()
    return MessageStream(PEER, "far", Channel(), handler, clock, Stats(), lane_host)  # type: ignore[arg-type]


def go_up(stream: MessageStream, *, lane_port: int = 0) -> StreamCall:
    """As PeerStream does when the peer has welcomed it."""
    call = StreamCall()
    welcome = peer_pb2.PeerReply(lane_port=lane_port, lane_token=b"t" * 16, hello=peer_pb2.Hello())
    assert not stream._refusal(welcome.SerializeToString())
    stream._up = True
    stream._went_up(call)  # type: ignore[arg-type]
    return call


def go_down(stream: MessageStream) -> None:
    stream._up = False
    stream._discard("by the test")


def forward(stream: ForwardStream, number: int, results: list[kv_pb2.OperationResult]) -> None:
    value = kv_pb2.Value(data=b"v" * 1_000, encoding=3)
    mutation = kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=b"k", value=value)
    operation = kv_pb2.Operation(id=number, write=kv_pb2.AtomicWriteRequest(mutations=[mutation]))
    stream.forward(Origin(b"client-id-", 1), operation, results.append)


async def test_what_was_sent_or_given_up_takes_no_room_among_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FORWARD_QUEUE_BYTES", 2_500)
    stream = forwarding()
    results: list[kv_pb2.OperationResult] = []
    for number in range(10):
        forward(stream, number, results)
        assert stream._next_batch()
    await asyncio.sleep(0)
    assert not results, "all of them left"
    stream._discard("by the test")
    assert {result.error.code for result in results} == {"FORWARD_BROKEN"}
    for number in range(10):
        forward(stream, number, results)
        stream._discard("by the test")
    await asyncio.sleep(0)
    assert [result.error.message for result in results[10:]] == ["far could not be reached: by the test"] * 10


async def test_messages_that_were_dropped_with_the_stream_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    message = Message(MessageKind.HEARTBEAT, PEER, 1, 1, context=b"x" * 1_000)
    monkeypatch.setattr(limits, "MAX_PEER_QUEUE_BYTES", 2_500)
    stream = messaging()
    for _ in range(10):
        go_up(stream)
        stream.send([message], None)
        go_down(stream)
    assert stream._stats.messages_dropped == 10
    go_up(stream)
    stream.send([message, message], None)
    assert stream._stats.messages_dropped == 10
    batch = peer_pb2.PeerBatch.FromString(stream._next_batch() or b"")
    assert len(batch.messages) == 2
    go_down(stream)


async def test_silence_is_counted_anew_for_each_stream() -> None:
    """Or a peer that was silent once would be cut for ever."""
    stream = messaging()
    call = go_up(stream)
    for _ in range(MAX_UNANSWERED_SAMPLES_COUNT):
        assert not call.cancelled
        stream._sample()
    assert call.cancelled
    go_down(stream)
    call = go_up(stream)
    assert not call.cancelled and stream._sample_due
    go_down(stream)


async def test_a_stream_that_ends_takes_no_more_samples() -> None:
    """Or each time that it comes back there would be one more who takes them."""
    stream = messaging()
    go_up(stream)
    timer = stream._timer
    go_down(stream)
    assert timer is not None and timer.cancelled()


async def test_a_lane_that_opens_when_its_stream_has_ended_carries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = asyncio.Event()

    async def slowly(*_: object) -> Any:
        await connected.wait()
        return SimpleNamespace(is_full=False, close=lambda: None, send=lambda batch: None)

    monkeypatch.setattr(Lane, "open", slowly)
    stream = messaging(lane_host="127.0.0.1")
    go_up(stream, lane_port=9)
    await asyncio.sleep(0)
    go_down(stream)
    connected.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stream.has_lane


async def test_the_last_answers_of_a_lane_are_waited_for_when_its_stream_has_ended() -> None:
    stream = forwarding()
    results: list[kv_pb2.OperationResult] = []
    forward(stream, 7, results)
    assert stream._next_batch()
    closed: list[str] = []

    async def drained(_timeout_s: float) -> None:
        forward(stream, 8, results)
        assert stream._next_batch() is None and not stream.has_lane, "nobody would take it any more"
        result = kv_pb2.OperationResult(id=7)
        (call_id,) = stream._outstanding
        answer = peer_pb2.ForwardResponse(results=[peer_pb2.ForwardedResult(call_id=call_id, result=result)])
        stream._received(answer.SerializeToString())

    stream._streamed_count = None  # the lane has been used
    stream._lane = SimpleNamespace(drained=drained, close=lambda: closed.append("lane"))  # type: ignore[assignment]
    await stream._ended()
    stream._discard("by the test")
    await asyncio.sleep(0)
    assert [(result.id, result.error.code) for result in results] == [(7, ""), (8, "PEER_UNREACHABLE")]
    assert closed == ["lane"]


async def test_the_pause_before_the_next_attempt_grows_and_begins_anew_behind_a_stream_that_was_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = forwarding()
    ups = [False, False, False, True, False]
    pauses: list[float] = []

    async def stream_once() -> str:
        stream._up = ups[len(pauses)]
        return "by the test"

    async def pause(seconds: float) -> None:
        pauses.append(seconds * 1_000)
        if len(pauses) == len(ups):
            raise asyncio.CancelledError

    monkeypatch.setattr(stream, "_stream_once", stream_once)
    monkeypatch.setattr("kvnode.node.peer_stream.asyncio", SimpleNamespace(sleep=pause))
    with pytest.raises(asyncio.CancelledError):
        await stream._run()
    first = limits.MIN_PEER_BACKOFF_MS
    assert pauses == [first, 2 * first, 4 * first, first, 2 * first]
    assert not stream.up
