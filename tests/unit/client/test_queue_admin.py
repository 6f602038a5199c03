"""Requeue and purge in steps, and numbers that are none."""

from __future__ import annotations

import pytest

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.client import Kv, open_kv
from kvnode.client.queue_admin import STEP_COUNT, QueueAdmin
from kvnode.machine.queue.errors import queue_full
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


class Queue:
    """A queue whose consumers fail at once: what is requeued is dead again when the next step comes."""

    def __init__(self, dead_count: int) -> None:
        self.dead_count = dead_count
        self.answers: list[int | KvError | None] = []  # None: it is not known how many
        self.steps: list[int] = []

    async def call(self, _method: object, _request: object, _timeout_ms: int) -> queue_pb2.QueueListResponse:
        return queue_pb2.QueueListResponse(queues=[queue_pb2.QueueStatus(dead_count=self.dead_count)])

    async def commit(self, request: kv_pb2.AtomicWriteRequest, _timeout_ms: int | None) -> kv_pb2.AtomicWriteResponse:
        (action,) = request.actions
        wanted = action.requeue.max_count or action.purge.max_count
        self.steps.append(wanted)
        answer = self.answers.pop(0) if self.answers else min(wanted, self.dead_count)
        if isinstance(answer, KvError):
            raise answer
        counted = [] if answer is None else [kv_pb2.QueueActionResult(count=answer)]
        return kv_pb2.AtomicWriteResponse(results=counted)


def admin(queue: Queue) -> QueueAdmin:
    return QueueAdmin(queue, queue.commit, 1_000)  # type: ignore[arg-type]  # all that it calls


async def test_a_requeue_takes_as_many_as_there_were_when_it_began() -> None:
    queue = Queue(250)
    assert await admin(queue).requeue() == 250
    assert queue.steps == [STEP_COUNT, STEP_COUNT, 50]


async def test_a_requeue_without_dead_letters_writes_nothing() -> None:
    queue = Queue(0)
    assert await admin(queue).requeue() == 0
    assert queue.steps == []


async def test_a_step_that_was_sent_again_is_no_end() -> None:
    queue = Queue(150)
    queue.answers = [None, 50, 0]
    assert await admin(queue).requeue() == 50
    assert len(queue.steps) == 3


@pytest.mark.parametrize("method", ["requeue", "purge"])
async def test_what_fails_behind_a_step_says_what_was_done(method: str) -> None:
    queue = Queue(250)
    queue.answers = [100, 50, queue_full("mail", 150)]
    with pytest.raises(KvError) as refused:
        await getattr(admin(queue), method)("mail")
    assert (refused.value.code, refused.value.not_applied) == ("QUEUE_FULL", False)
    assert refused.value.message.startswith("150 were ")


class DeadLetters:
    """As a node answers: so many at most, behind the one that is named."""

    def __init__(self, count: int) -> None:
        self.ids = [number.to_bytes(12, "big") for number in range(1, count + 1)]
        self.asked: list[tuple[int, bytes]] = []

    async def call(
        self, _method: object, request: queue_pb2.DeadLettersRequest, _timeout_ms: int
    ) -> queue_pb2.DeadLettersResponse:
        self.asked.append((request.max_count, request.after))
        found = [dead_id for dead_id in self.ids if dead_id > request.after][: request.max_count]
        return queue_pb2.DeadLettersResponse(dead_letters=[queue_pb2.DeadLetter(id=dead_id) for dead_id in found])


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 205])
async def test_each_dead_letter_comes_once_in_pages(count: int) -> None:
    node = DeadLetters(count)
    queues = QueueAdmin(node, None, 1_000)  # type: ignore[arg-type]  # all that it calls
    assert [dead.id async for dead in queues.each_dead_letter("mail")] == node.ids
    assert len(node.asked) == count // 100 + 1, "a page that is not full is the last"
    behind = node.ids[: count // 2]
    after = behind[-1] if behind else b""
    assert [dead.id async for dead in queues.each_dead_letter("mail", after=after)] == node.ids[len(behind) :]


async def test_what_fails_in_the_first_step_has_done_nothing() -> None:
    queue = Queue(250)
    queue.answers = [queue_full("mail", 150)]
    with pytest.raises(InvalidRequest) as refused:
        await admin(queue).requeue("mail")
    assert refused.value.not_applied


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"delay": float("inf")}, "BAD_DEADLINE"),
        ({"delay": float("nan")}, "BAD_DEADLINE"),
        ({"delay": 2**70}, "BAD_DEADLINE"),
        ({"delay": -1}, "BAD_DEADLINE"),
        ({"delay": "5"}, "BAD_DEADLINE"),
        ({"delay": True}, "BAD_DEADLINE"),
        ({"backoff_schedule": [-1]}, "BAD_DEADLINE"),
        ({"backoff_schedule": [2**40]}, "BAD_DEADLINE"),
        ({"backoff_schedule": [float("inf")]}, "BAD_DEADLINE"),
        ({"backoff_schedule": 5}, "BAD_BACKOFF_SCHEDULE"),
        ({"backoff_schedule": "100"}, "BAD_BACKOFF_SCHEDULE"),
        ({"keys_if_undelivered": 5}, "BAD_KEYS_IF_UNDELIVERED"),
        ({"keys_if_undelivered": "lost"}, "BAD_KEYS_IF_UNDELIVERED"),
    ],
    ids=str,
)
def test_what_no_message_can_have_is_named(options: dict, code: str) -> None:
    kv: Kv = open_kv("127.0.0.1:1")
    with pytest.raises(InvalidRequest) as refused:
        kv.atomic().enqueue(1, **options)
    (given,) = options.values()
    assert refused.value.code == code
    assert repr(given[0] if isinstance(given, list) else given) in refused.value.message


@pytest.mark.parametrize("expiry", [float("inf"), float("nan"), 2**70, "5"])
def test_an_expiry_that_is_no_time_is_named(expiry: float) -> None:
    kv: Kv = open_kv("127.0.0.1:1")
    for refused in (
        lambda: kv.atomic().set(("k",), 1, expire_in=expiry),
        lambda: kv.atomic().set_expiry(("k",), expire_in=expiry),
        lambda: kv.atomic().set_expiry(("k",), expire_at_ms=expiry),
    ):
        with pytest.raises(InvalidRequest) as caught:
            refused()
        assert (caught.value.code, repr(expiry) in caught.value.message) == ("BAD_EXPIRE_IN", True)


@pytest.mark.parametrize("handler", [None, 5, "print"])
async def test_a_handler_that_cannot_be_called_is_refused(handler: object) -> None:
    """Before it listens: every message would fail, and become a dead letter."""
    async with open_kv("127.0.0.1:1") as kv:
        with pytest.raises(InvalidRequest) as refused:
            await kv.listen_queue(handler)  # type: ignore[arg-type]
    assert (refused.value.code, repr(handler) in refused.value.message) == ("BAD_HANDLER", True)


@pytest.mark.parametrize("number", [-1, 2**70, float("nan"), float("inf"), "1"])
async def test_a_number_that_no_request_can_have_is_named(number: int) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for code, call in (
            ("BAD_COUNT", kv.queues.peek(count=number)),
            ("BAD_COUNT", kv.queues.dead_letters(count=number)),
            ("BAD_COUNT", kv.queues.configure(max_messages=number)),
            ("BAD_PUSH_LIMIT", kv.queues.push(url="http://a", concurrency=number)),
            ("BAD_PUSH_LIMIT", kv.queues.push(url="http://a", timeout_ms=number)),
            ("BAD_LEASE_TIME", kv.listen_queue(print, lease_ms=number)),
            ("BAD_CONCURRENCY", kv.listen_queue(print, concurrency=number)),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await call
            assert (refused.value.code, repr(number) in refused.value.message) == (code, True)
