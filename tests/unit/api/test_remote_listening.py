"""The books of a listener at a gateway: what the next node is told when the one before has died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest

from kvnode.api import remote_listening
from kvnode.api.remote_backend import Reach
from kvnode.api.remote_listening import RemoteListening
from kvnode.base import limits
from kvnode.base.errors import Forbidden, InvalidRequest, KvError, Unauthenticated, Unavailable
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

A, B, C, D = (letter * 12 for letter in (b"a", b"b", b"c", b"d"))


class Permit:
    """May, until it may not."""

    database = 1
    refused: KvError | None = None

    def refusal(self, *, write: bool) -> KvError | None:
        assert write
        return self.refused


class Stage:
    """A listener whose node is the test."""

    def __init__(self) -> None:
        self.permit = Permit()
        self.followers: list[Callable[[], None]] = []
        self.stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refusal: asyncio.Future[KvError | None] = asyncio.get_running_loop().create_future()

    def open(self, **opening: object) -> RemoteListening:
        gate = SimpleNamespace(follow=lambda changed: self.followers.append(changed) or (lambda: None))
        reach = Reach(["nowhere:1"], (), None)
        opened = queue_pb2.ListenOpen(queue="mail", **opening)
        return RemoteListening("gateway", reach, self.permit, gate, opened, self.stopping)  # type: ignore[arg-type]


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    made = Stage()

    async def listen(*_: object) -> KvError | None:
        return await asyncio.shield(made.refusal)

    monkeypatch.setattr(remote_listening, "listen_until_refused", listen)
    yield made
    made.refusal.cancel()


def messages(*leases: bytes, size_bytes: int = 1) -> queue_pb2.ListenResponse:
    response = queue_pb2.ListenResponse()
    for lease in leases:
        response.messages.add(lease=lease).payload.data = bytes(size_bytes)
    return response


async def test_the_next_node_is_told_what_the_one_before_knew(stage: Stage) -> None:
    listening = stage.open(held=[D], consumer="me", lease_ms=2_000)
    listening.take(queue_pb2.ListenRequest(credit=3))
    listening.take(queue_pb2.ListenRequest(credit=2, extend=[D]))
    first = listening.first_request()
    assert (first.open.queue, first.open.consumer, first.open.lease_ms, list(first.open.held)) == (
        "mail",
        "me",
        2_000,
        [D],
    )
    assert (first.credit, list(first.extend)) == (5, [D])
    await listening.take_response(messages(A, B, C))
    listening.take(queue_pb2.ListenRequest(ack=[A], settled=[C], credit=2))
    listening.take(queue_pb2.ListenRequest(nack=[kv_pb2.QueueNack(lease=B, delay_ms=7)], credit=1))
    said = await listening.next_request()
    assert said is not None
    assert (said.credit, list(said.ack), said.nack[0].delay_ms, list(said.settled)) == (3, [A], 7, [C])
    await listening.take_response(queue_pb2.ListenResponse(settled=[A]))
    again = listening.first_request()  # the node has died before it said more
    assert (list(again.open.held), again.credit, list(again.ack)) == ([D], 5, [])
    assert [(nack.lease, nack.delay_ms) for nack in again.nack] == [(B, 7)]
    failed = queue_pb2.LeaseFailure(lease=D, error=kv_pb2.Error(code="LEASE_LOST"))
    await listening.take_response(queue_pb2.ListenResponse(failed=[failed]))
    assert list(listening.first_request().open.held) == []
    listening.close()


async def test_a_client_that_leaves_is_sent_nothing_more_by_any_node(stage: Stage) -> None:
    listening = stage.open()
    listening.take(queue_pb2.ListenRequest(credit=5))
    await listening.next_request()
    await listening.take_response(messages(A, B))
    responses = listening.responses()
    await anext(responses)
    assert len((await anext(responses)).messages) == 2
    await listening.take_response(messages(C))  # not sent to the client yet
    listening.take(queue_pb2.ListenRequest(leaving=True, unseen=[B]))
    said = await listening.next_request()
    assert said is not None
    assert (said.leaving, list(said.unseen), said.credit) == (True, [B, C], 0)
    await listening.take_response(messages(D, *(bytes([number]) * 12 for number in range(9))))  # was on its way
    again = listening.first_request()
    assert (again.leaving, again.credit, list(again.unseen), A in again.open.held) == (True, 0, [B, C], True)
    listening.close()


async def test_what_the_client_is_told(stage: Stage) -> None:
    listening = stage.open()
    responses = listening.responses()
    opened = await anext(responses)
    assert (opened.opened.node, opened.opened.lease_ms) == ("gateway", limits.DEFAULT_QUEUE_LEASE_MS)
    listening.take(queue_pb2.ListenRequest(credit=2))
    await listening.take_response(queue_pb2.ListenResponse(opened=queue_pb2.ListenOpened(node="a")))
    await listening.take_response(messages(A))
    assert [message.lease for message in (await anext(responses)).messages] == [A]
    listening.take(queue_pb2.ListenRequest(ack=[A]))
    listening.finish()
    last = asyncio.ensure_future(anext(responses, None))
    await asyncio.sleep(0.01)
    assert not last.done()  # the ack is not confirmed
    await listening.take_response(queue_pb2.ListenResponse(settled=[A]))
    found = await last
    assert found is not None and list(found.settled) == [A]
    assert await anext(responses, None) is None
    listening.close()


async def test_a_client_that_does_not_read_keeps_the_node_waiting(stage: Stage) -> None:
    listening = stage.open()
    responses = listening.responses()
    await anext(responses)
    listening.take(queue_pb2.ListenRequest(credit=9))
    taking = asyncio.ensure_future(
        listening.take_response(messages(A, B, size_bytes=limits.MAX_LISTENER_UNSENT_BYTES // 2))
    )
    await asyncio.sleep(0.01)
    assert not taking.done()
    await anext(responses)
    reading = asyncio.ensure_future(anext(responses))  # it has been sent when the next one is asked for
    await asyncio.wait_for(taking, 1)
    reading.cancel()
    listening.close()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (queue_pb2.ListenRequest(credit=1_001), "TOO_MUCH_CREDIT"),
        (queue_pb2.ListenRequest(ack=[b"abc"]), "BAD_LEASE"),
        (queue_pb2.ListenRequest(extend=[b""]), "BAD_LEASE"),
    ],
)
async def test_what_is_wrong_is_said_at_once(stage: Stage, request_: queue_pb2.ListenRequest, code: str) -> None:
    listening = stage.open()
    with pytest.raises(InvalidRequest) as caught:
        listening.take(request_)
    assert caught.value.code == code
    listening.close()


@pytest.mark.parametrize("lease", [b"", b"abc", bytes(13)])
async def test_a_held_lease_that_can_be_none_is_refused_in_the_opening(stage: Stage, lease: bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"`held`.* {len(lease)} bytes") as caught:
        stage.open(held=[A, lease])
    assert caught.value.code == "BAD_LEASE"


async def test_why_it_ends(stage: Stage) -> None:
    refused = stage.open()
    responses = refused.responses()
    await anext(responses)
    stage.permit.refused = Forbidden("no more", code="TOKEN_READ_ONLY")
    for changed in stage.followers:
        changed()
    with pytest.raises(Forbidden):
        await anext(responses)
    refused.close()
    stage.permit.refused = None
    by_the_node = stage.open()
    responses = by_the_node.responses()
    await anext(responses)
    stage.refusal.set_result(InvalidRequest("BAD_QUEUE_NAME", "by the test"))
    with pytest.raises(InvalidRequest, match="by the test"):
        await anext(responses)
    by_the_node.close()


async def test_a_token_that_expires_ends_it_before_the_next_message(stage: Stage) -> None:
    """The directory does not change then: nobody is called back."""
    listening = stage.open()
    responses = listening.responses()
    await anext(responses)
    listening.take(queue_pb2.ListenRequest(credit=2))
    await listening.take_response(messages(A))
    assert [message.lease for message in (await anext(responses)).messages] == [A]
    stage.permit.refused = Unauthenticated("by the test", code="ACCESS_TOKEN_EXPIRED")
    await listening.take_response(messages(B))
    with pytest.raises(Unauthenticated):
        await anext(responses)
    listening.close()


async def test_what_nobody_foresaw_ends_it_too(stage: Stage) -> None:
    listening = stage.open()
    responses = listening.responses()
    await anext(responses)
    stage.refusal.set_exception(RuntimeError("by the test"))
    with pytest.raises(Unavailable, match="RuntimeError"):
        await anext(responses)
    listening.close()


async def test_a_gateway_that_stops_tells_the_node_to_keep_the_leases_for_nobody(stage: Stage) -> None:
    listening = stage.open(held=[A])
    listening.take(queue_pb2.ListenRequest(credit=2))
    listening.first_request()
    await listening.take_response(messages(B))
    listening.take(queue_pb2.ListenRequest(ack=[B], credit=1))
    responses = listening.responses()
    await anext(responses)
    assert [message.lease for message in (await anext(responses)).messages] == [B]
    stage.stopping.set_result(None)
    with pytest.raises(Unavailable, match="stopping"):
        await anext(responses)
    said = await listening.next_request()
    assert said is not None
    assert (list(said.settled), list(said.ack), said.credit) == ([A], [B], 0)
    assert await listening.next_request() is None
    listening.close()
    assert not listening.relay.done()
    stage.refusal.set_result(None)
    await listening.left()
    assert listening.relay.done()


async def test_the_node_gives_nothing_back_of_a_client_that_comes_again(stage: Stage) -> None:
    listening = stage.open(held=[A])
    listening.take(queue_pb2.ListenRequest(credit=2))
    listening.first_request()
    await listening.take_response(messages(B))  # which the client has not seen
    listening.keep()
    listening.close()
    said = await listening.next_request()
    assert said is not None
    assert (list(said.settled), list(said.unseen), said.credit) == ([A], [B], 0)
    assert await listening.next_request() is None
    assert not listening.relay.done()


async def test_a_node_that_does_not_answer_is_not_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LISTENERS_STOP_TIMEOUT_MS", 20)
    listening = stage.open(held=[A])
    listening.keep()
    listening.close()
    await asyncio.wait_for(asyncio.gather(listening.relay, return_exceptions=True), 1)
