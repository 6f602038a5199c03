"""A listener and one node: what is said again, what ends, and that nobody waits for what will not come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from kvnode.base.errors import Forbidden, KvError, OutcomeUnknown
from kvnode.client import Kv, open_kv
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.client.fake_queue import FakeQueue

REVOKED = kv_pb2.Error(code="TOKEN_READ_ONLY", message="it may not", phase="auth", not_applied=True)
TOO_LATE_S = 5


def limited(wait_ms: int) -> kv_pb2.Error:
    """As a node says it: kvnode/api/auth/rate.py."""
    text = f"This token may ask this node for 5 requests a second. Nothing was done: send it again in {wait_ms} ms."
    return kv_pb2.Error(code="RATE_LIMITED", message=text, phase="auth", not_applied=True)


@pytest.fixture
async def node() -> AsyncIterator[FakeQueue]:
    async with FakeQueue() as running:
        yield running


@pytest.fixture
async def kv(node: FakeQueue) -> AsyncIterator[Kv]:
    async with open_kv(node.address) as client:
        yield client


async def test_a_listener_whose_opening_exceeds_its_rate_opens_again_when_it_is_told_to(
    node: FakeQueue, kv: Kv
) -> None:
    node.waiting.append(1)
    node.refusals.append(limited(150))
    begun = time.monotonic()
    async with kv.messages() as messages:
        assert (await asyncio.wait_for(anext(messages), TOO_LATE_S)).value == 1
        assert time.monotonic() - begun >= 0.15
    assert len(node.openings) == 2


async def test_what_a_rate_left_unconfirmed_is_said_again_on_the_next_stream(node: FakeQueue, kv: Kv) -> None:
    node.waiting.extend([1, 2])
    async with kv.messages() as messages:
        acked, held = [await asyncio.wait_for(anext(messages), TOO_LATE_S) for _ in range(2)]
        node.refusals.append(limited(1))
        await asyncio.wait_for(acked.ack(), TOO_LATE_S)
        assert list(node.openings[1].ack) == [acked.lease]
        assert list(node.openings[1].open.held) == [held.lease]


async def test_after_a_refusal_for_its_rate_requests_keep_a_distance_in_which_they_gather(
    node: FakeQueue, kv: Kv
) -> None:
    node.waiting.extend(range(10))
    node.refusals.append(limited(200))
    async with kv.messages() as messages:
        held = [await asyncio.wait_for(anext(messages), TOO_LATE_S) for _ in range(10)]
        before_count = len(node.requests)
        for message in held:
            messages.settle_soon(message, "ack")
            await asyncio.sleep(0.005)
        await node.hear("ack", 10)
        assert len(node.requests) - before_count <= 2


async def test_a_listener_that_is_refused_ends_every_iteration_and_every_ack(node: FakeQueue, kv: Kv) -> None:
    node.waiting.extend([1, 2])
    async with kv.messages() as messages:
        one, two = [await asyncio.wait_for(anext(messages), TOO_LATE_S) for _ in range(2)]
        iterating = [asyncio.ensure_future(anext(messages)) for _ in range(2)]
        await asyncio.sleep(0)
        node.refuse_all = REVOKED
        for ending in (one.ack(), *iterating, two.ack(), anext(messages)):
            with pytest.raises(Forbidden):
                await asyncio.wait_for(ending, TOO_LATE_S)


async def test_a_listener_that_is_closed_ends_every_iteration(node: FakeQueue, kv: Kv) -> None:
    messages = kv.messages()

    async def consume() -> str:
        async for _ in messages:
            pass
        return "ended"

    consuming = [asyncio.ensure_future(consume()) for _ in range(2)]
    await asyncio.sleep(0.05)
    await messages.aclose()
    assert await asyncio.wait_for(asyncio.gather(*consuming), TOO_LATE_S) == ["ended", "ended"]


async def test_an_ack_that_is_not_confirmed_when_the_listener_closes_may_have_been_applied(
    node: FakeQueue, kv: Kv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnode.base.limits.LISTENER_CLOSE_TIMEOUT_MS", 50)
    node.waiting.append(1)
    node.settles = False
    async with kv.messages() as messages:
        acking = asyncio.ensure_future((await asyncio.wait_for(anext(messages), TOO_LATE_S)).ack())
        await node.hear("ack")
    with pytest.raises(OutcomeUnknown):
        await acking


@pytest.mark.parametrize("delay", [-5, 30 * 86_400_000 + 1, float("inf"), float("nan"), "5"])
async def test_a_message_whose_nack_is_refused_is_held_as_before(node: FakeQueue, kv: Kv, delay: float) -> None:
    node.waiting.append(1)
    async with kv.messages() as messages:
        message = await asyncio.wait_for(anext(messages), TOO_LATE_S)
        with pytest.raises(KvError) as refused:
            await message.nack(delay=delay)
        assert (refused.value.code, repr(delay) in refused.value.message) == ("BAD_DEADLINE", True)
        assert messages.held_count == 1
        await asyncio.wait_for(message.ack(), TOO_LATE_S)


async def test_a_delay_is_rounded(node: FakeQueue, kv: Kv) -> None:
    node.waiting.append(1)
    async with kv.messages() as messages:
        message = await asyncio.wait_for(anext(messages), TOO_LATE_S)
        await asyncio.wait_for(message.nack(delay=1.6), TOO_LATE_S)
    assert [nack.delay_ms for nack in node.said("nack")] == [2]


async def test_a_client_that_is_closed_gives_back_what_its_listeners_hold(node: FakeQueue) -> None:
    node.waiting.extend([1, 2])
    async with open_kv(node.address) as kv:
        async for _ in kv.messages():
            break
    assert (len(node.said("release")), len(node.said("unseen"))) == (1, 1)  # one was given to nobody
    assert any(request.leaving for request in node.requests)
    with pytest.raises(KvError) as closed:
        kv.messages()
    assert closed.value.code == "CLIENT_CLOSED"


async def test_a_client_that_is_closed_ends_listen_queue(node: FakeQueue) -> None:
    node.waiting.append(1)
    handling = asyncio.Event()

    async def handle(_message: object) -> None:
        handling.set()
        await asyncio.sleep(TOO_LATE_S)

    async with open_kv(node.address) as kv:
        listening = asyncio.ensure_future(kv.listen_queue(handle))
        await asyncio.wait_for(handling.wait(), TOO_LATE_S)
    await asyncio.wait_for(listening, TOO_LATE_S)
    assert len(node.said("release")) == 1
