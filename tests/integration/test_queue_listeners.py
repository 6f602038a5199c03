"""The Python listener at three real nodes: nobody waits for what will not come, and what is given up is given back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from cluster.launcher import LocalCluster
from kvnode.base.errors import KvError, Unauthenticated
from kvnode.client import Admin, Kv, open_kv
from kvnode.client.queue import QueueMessage
from kvnode.client.queue_admin import STEP_COUNT
from kvnode.client.queue_handlers import Handler
from kvnode.proto.kv.v1 import queue_pb2
from tests.integration.helpers import three_nodes
from tests.integration.queue_client import TOKEN

TOO_LATE_S = 10


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with three_nodes(tmp_path_factory.mktemp("cluster"), "--access-token", TOKEN, "--grpc-auth") as cluster:
        yield cluster


@pytest.fixture
async def kv(cluster: LocalCluster) -> AsyncIterator[Kv]:
    async with open_kv(cluster.addresses, token=TOKEN) as client:
        yield client


@contextlib.asynccontextmanager
async def listening(kv: Kv, handler: Handler, queue: str, **more: int) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(kv.listen_queue(handler, queue=queue, **more))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(
    kv: Kv, queue: str, is_so: Callable[[queue_pb2.QueueStatus], bool], timeout_s: float = 30
) -> queue_pb2.QueueStatus:
    """How the queue stands, once it is so."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await kv.queues.status(queue)
            if found and is_so(found[0]):
                return found[0]
            await asyncio.sleep(0.05)


async def fail(_message: QueueMessage) -> None:
    raise ValueError("as it should")


async def bury(kv: Kv, queue: str, count: int) -> None:
    """Have that many dead letters."""
    await asyncio.gather(*(kv.enqueue(number, queue=queue, backoff_schedule=[]) for number in range(count)))
    async with listening(kv, fail, queue, concurrency=count):
        await until(kv, queue, lambda status: status.dead_count == count)


async def test_an_ack_fails_once_the_listener_is_refused(cluster: LocalCluster, kv: Kv) -> None:
    async with Admin(cluster.addresses, token=TOKEN) as admin:
        made = await admin.create_token()
        await kv.enqueue(1, queue="refused")
        async with open_kv(cluster.addresses, token=made.secret) as other, other.messages("refused") as messages:
            message = await asyncio.wait_for(anext(messages), TOO_LATE_S)
            await admin.revoke_token(made.token.token_id)
            with pytest.raises(Unauthenticated):
                await asyncio.wait_for(anext(messages), TOO_LATE_S)
            with pytest.raises(Unauthenticated):
                await asyncio.wait_for(message.ack(), TOO_LATE_S)


async def test_a_listener_that_is_closed_by_another_task_ends_its_iteration(kv: Kv) -> None:
    messages = kv.messages("closed")
    iterating = asyncio.Event()

    async def consume() -> None:
        async for message in messages:
            await message.ack()
            iterating.set()

    await kv.enqueue(1, queue="closed")
    consuming = asyncio.ensure_future(consume())
    await asyncio.wait_for(iterating.wait(), TOO_LATE_S)
    await messages.aclose()
    await asyncio.wait_for(consuming, TOO_LATE_S)


async def test_a_client_that_is_closed_gives_back_what_its_iterators_hold(cluster: LocalCluster, kv: Kv) -> None:
    """`async for` without `async with` is what one writes first."""
    await kv.enqueue("a", queue="left")
    await kv.enqueue("b", queue="left")
    async with open_kv(cluster.addresses, token=TOKEN) as other:
        async for _ in other.messages("left", lease_ms=600_000):
            break
    await until(kv, "left", lambda status: (status.waiting_count, status.in_flight_count) == (2, 0), TOO_LATE_S)


async def test_a_nack_that_is_refused_hurts_no_message(kv: Kv) -> None:
    await kv.enqueue(1, queue="bad-nack")
    await kv.enqueue(2, queue="bad-nack")
    async with kv.messages("bad-nack") as messages:
        one, two = [await asyncio.wait_for(anext(messages), TOO_LATE_S) for _ in range(2)]
        with pytest.raises(KvError) as refused:
            await one.nack(delay=-5)
        assert refused.value.code == "BAD_DEADLINE"
        for message in (two, one):
            await asyncio.wait_for(message.ack(), TOO_LATE_S)


async def test_a_fraction_of_a_millisecond_is_a_delay_like_any_other(kv: Kv) -> None:
    await kv.enqueue(1, queue="fraction", delay=1.5)
    async with kv.messages("fraction", concurrency=1) as messages:
        for attempt in (1, 2):
            message = await asyncio.wait_for(anext(messages), TOO_LATE_S)
            assert message.attempt == attempt
            await (message.ack() if attempt == 2 else message.nack(delay=1.5))


async def test_a_listener_outlasts_its_tokens_rate(
    cluster: LocalCluster, kv: Kv, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvnode.client.listen_stream")
    count = 60
    await asyncio.gather(*(kv.enqueue(number, queue="rate") for number in range(count)))

    async def handle(message: QueueMessage) -> None:
        await asyncio.sleep(0.01 * (int(message.value) % 7))  # type: ignore[call-overload]  # so acks come one by one

    async with Admin(cluster.addresses, token=TOKEN) as admin:
        made = await admin.create_token(requests_per_second=5)
    async with open_kv(cluster.addresses, token=made.secret) as limited, listening(limited, handle, "rate") as task:
        await until(kv, "rate", lambda status: status.acknowledged_total == count or task.done())
        assert not task.done(), task.exception()
        (status,) = await kv.queues.status("rate")
    assert "pauses for" in caplog.text  # or the limit was not met at all
    assert not status.redelivered_total, "what it held in a pause was given to others"


async def test_a_plain_function_keeps_its_message_for_longer_than_a_lease(kv: Kv) -> None:
    attempts: list[int] = []

    def handle(message: QueueMessage) -> None:
        attempts.append(message.attempt)
        time.sleep(1.6)

    await kv.enqueue(1, queue="plain")
    async with listening(kv, handle, "plain", lease_ms=1_000):
        status = await until(kv, "plain", lambda status: status.acknowledged_total == 1)
    assert (attempts, status.redelivered_total) == ([1], 0)


async def test_a_requeue_ends_while_consumers_fail(kv: Kv) -> None:
    count = STEP_COUNT + 30
    await bury(kv, "again", count)
    async with listening(kv, fail, "again", concurrency=count):
        assert await asyncio.wait_for(kv.queues.requeue("again"), TOO_LATE_S) == count
        status = await until(kv, "again", lambda status: status.dead_count == count)
    assert status.dead_total == 2 * count


async def test_a_requeue_takes_what_fits_and_says_how_many(kv: Kv) -> None:
    fits_count = STEP_COUNT + 15
    await bury(kv, "tight", fits_count + 15)
    await kv.queues.configure("tight", max_messages=fits_count)
    with pytest.raises(KvError) as refused:
        await kv.queues.requeue("tight")
    (status,) = await kv.queues.status("tight")
    assert (status.waiting_count, status.dead_count) == (fits_count, 15)
    assert (refused.value.code, refused.value.not_applied) == ("QUEUE_FULL", False)
    assert f"{fits_count} were requeued" in refused.value.message


async def test_a_handler_whose_own_wait_was_cancelled_has_failed(kv: Kv) -> None:
    """What it waited for was cancelled, not the listener: it has raised, so the schedule counts."""
    attempts: list[int] = []

    async def handle(message: QueueMessage) -> None:
        attempts.append(message.attempt)
        waited_for = asyncio.ensure_future(asyncio.sleep(TOO_LATE_S))
        waited_for.cancel()
        await waited_for

    await kv.enqueue(1, queue="cancelled", backoff_schedule=[])
    async with listening(kv, handle, "cancelled"):
        await until(kv, "cancelled", lambda status: status.dead_count == 1)
    assert attempts == [1]


async def test_what_a_closed_listener_gives_back_does_not_come_to_it_again(kv: Kv) -> None:
    """Its node would have room for more: each time would be a loss, and many of these use up the schedule."""
    started = asyncio.Event()

    async def handle(_message: QueueMessage) -> None:
        started.set()
        await asyncio.sleep(60)

    await kv.enqueue(1, queue="closing", backoff_schedule=[])
    async with listening(kv, handle, "closing", concurrency=50):
        await asyncio.wait_for(started.wait(), TOO_LATE_S)
    status = await until(kv, "closing", lambda status: status.in_flight_count == 0)
    assert (status.waiting_count, status.delivered_total, status.dead_count) == (1, 1, 0)


async def test_a_listener_that_waits_for_a_thread_is_sent_nothing_more(kv: Kv) -> None:
    started, goes_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def handle(_message: QueueMessage) -> None:
        loop.call_soon_threadsafe(started.set)
        goes_on.wait(60)

    await kv.enqueue(1, queue="thread")
    listener = asyncio.ensure_future(kv.listen_queue(handle, queue="thread", concurrency=50))
    await asyncio.wait_for(started.wait(), TOO_LATE_S)
    listener.cancel()
    await asyncio.sleep(0.5)
    await kv.enqueue(2, queue="thread", backoff_schedule=[])
    await asyncio.sleep(0.5)
    goes_on.set()
    await asyncio.gather(listener, return_exceptions=True)
    status = await until(kv, "thread", lambda status: status.acknowledged_total == 1)
    assert (status.waiting_count, status.delivered_total, status.dead_count) == (1, 1, 0)


async def test_what_an_iterator_never_gave_to_anybody_has_not_been_delivered(kv: Kv) -> None:
    """One that takes a single message and closes has been sent ten; done often, it would use up their schedules."""
    for number in range(10):
        await kv.enqueue(number, queue="ahead", backoff_schedule=[])
    await until(kv, "ahead", lambda status: status.waiting_count == 10)
    for _ in range(5):
        async with kv.messages("ahead", concurrency=10) as messages:
            await (await asyncio.wait_for(anext(messages), TOO_LATE_S)).ack()
    async with kv.messages("ahead") as messages:
        left = [await asyncio.wait_for(anext(messages), TOO_LATE_S) for _ in range(5)]
        assert [message.attempt for message in left] == [1] * 5
