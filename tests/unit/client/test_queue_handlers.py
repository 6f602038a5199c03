"""What becomes of a message whose handler returns, raises, blocks, or is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Awaitable

import pytest

from kvnode.client import Kv, open_kv
from kvnode.client.queue import QueueMessage
from kvnode.client.queue_handlers import Handler
from tests.unit.client.fake_queue import FakeQueue

TOO_LATE_S = 5


@pytest.fixture
async def node() -> AsyncIterator[FakeQueue]:
    async with FakeQueue() as running:
        running.waiting.append("a message")
        yield running


@pytest.fixture
async def kv(node: FakeQueue) -> AsyncIterator[Kv]:
    async with open_kv(node.address) as client:
        yield client


@contextlib.asynccontextmanager
async def listening(kv: Kv, handler: Handler, lease_ms: int = 0) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(kv.listen_queue(handler, lease_ms=lease_ms))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Blocking:
    """A plain function that does not return before it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, _message: QueueMessage) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.let_go.wait(TOO_LATE_S)

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, TOO_LATE_S)


async def test_a_lease_is_extended_while_a_plain_function_blocks(node: FakeQueue, kv: Kv) -> None:
    blocking = Blocking()
    async with listening(kv, blocking, lease_ms=1_000):
        await node.hear("extend", 2)
        assert not node.said("ack")
        blocking.let_go.set()
        await node.hear("ack")
    assert blocking.thread is not threading.main_thread()


async def test_a_plain_function_is_waited_for_when_listening_ends(node: FakeQueue, kv: Kv) -> None:
    blocking = Blocking()
    async with listening(kv, blocking, lease_ms=1_000) as task:
        await blocking.has_begun()
        node.heeds_leaving = False
        task.cancel()
        node.waiting.append("one that comes meanwhile")
        await node.hear("unseen")
        assert not task.done()
        blocking.let_go.set()
        await asyncio.wait({task}, timeout=TOO_LATE_S)
    assert (len(node.said("ack")), len(node.said("unseen"))) == (1, 1)


async def test_a_plain_function_is_waited_for_no_longer_when_listening_is_cancelled_again(
    node: FakeQueue, kv: Kv
) -> None:
    blocking = Blocking()
    async with listening(kv, blocking) as task:
        await blocking.has_begun()
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task}, timeout=TOO_LATE_S)
        assert task.cancelled()
    assert (len(node.said("ack")), len(node.said("release"))) == (0, 1)
    blocking.let_go.set()


async def test_a_coroutine_is_cancelled_when_listening_ends_and_its_message_given_back(node: FakeQueue, kv: Kv) -> None:
    begun = asyncio.Event()

    async def handle(_message: QueueMessage) -> None:
        begun.set()
        await asyncio.sleep(TOO_LATE_S)

    def plain(message: QueueMessage) -> Awaitable[None]:
        return handle(message)

    for handler in (handle, plain):
        begun.clear()
        node.requests.clear()
        async with listening(kv, handler):
            await asyncio.wait_for(begun.wait(), TOO_LATE_S)
        assert (len(node.said("ack")), len(node.said("release"))) == (0, 1)
        node.waiting.append("another")


async def test_coroutines_run_on_the_loop_however_they_are_made(node: FakeQueue, kv: Kv) -> None:
    threads = []

    class Handling:
        async def __call__(self, _message: QueueMessage) -> None:
            threads.append(threading.current_thread())

    async def handle(_name: str, message: QueueMessage) -> None:
        await Handling()(message)

    handlers: list[Handler] = [Handling(), functools.partial(handle, "a"), lambda message: handle("b", message)]
    for number, handler in enumerate(handlers, 1):
        async with listening(kv, handler):
            await node.hear("ack", number)
        node.waiting.append("another")
    assert threads == [threading.main_thread()] * 3


async def _waits_for_what_was_cancelled(_message: QueueMessage) -> None:
    waited_for = asyncio.ensure_future(asyncio.sleep(TOO_LATE_S))
    waited_for.cancel()
    await waited_for


def _raises(_message: QueueMessage) -> None:
    raise ValueError("as it should")


def _has_no_next(_message: QueueMessage) -> None:
    next(iter(()))


@pytest.mark.parametrize("handler", [_waits_for_what_was_cancelled, _raises, _has_no_next])
async def test_a_handler_that_raises_has_failed(node: FakeQueue, kv: Kv, handler: Handler) -> None:
    async with listening(kv, handler):
        await node.hear("nack")
    assert (len(node.said("ack")), len(node.said("release"))) == (0, 0)
