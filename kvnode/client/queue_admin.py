"""Looking into queues, and setting them right: what `kvnode queue` does."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.client import rpc
from kvnode.client.numbers import parse_count, parse_flag, parse_push_limit
from kvnode.client.texts import QUEUE_NAME, dead_letter_id, sendable
from kvnode.client.unary import UnaryCaller
from kvnode.machine.queue.keys import DEFAULT_QUEUE
from kvnode.machine.queue.push import encode_secret
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

Commit = Callable[[kv_pb2.AtomicWriteRequest, int | None], Awaitable[kv_pb2.AtomicWriteResponse]]

PUSH_KEY_BYTES = 32  # of a secret that is made here
STEP_COUNT = 100  # messages that one transaction of a purge or requeue takes


class QueueAdmin:
    """The queues of one database (`kv.queues`). Every method raises KvError.

    Args:
        unary: calls the nodes.
        commit: commits a transaction.
        timeout_ms: of each call.
    """

    def __init__(self, unary: UnaryCaller, commit: Commit, timeout_ms: int) -> None:
        self._unary = unary
        self._commit = commit
        self._timeout_ms = timeout_ms

    async def status(self, queue: str = "") -> list[queue_pb2.QueueStatus]:
        """How every queue stands, or the one that is named; none for one that has never been used."""
        request = queue_pb2.QueueListRequest(queue=_named(queue))
        return list((await self._unary.call(rpc.QUEUE_LIST, request, self._timeout_ms)).queues)

    async def peek(self, queue: str = "", count: int = 10) -> list[queue_pb2.WaitingMessage]:
        """The next messages in the order of their time, up to 100; they stay where they are."""
        count = parse_count("count", count, 1, limits.MAX_PEEK_COUNT)
        request = queue_pb2.QueuePeekRequest(queue=_named(queue), max_count=count)
        return list((await self._unary.call(rpc.QUEUE_PEEK, request, self._timeout_ms)).messages)

    async def dead_letters(
        self, queue: str = "", count: int = limits.MAX_PEEK_COUNT, after: bytes = b""
    ) -> list[queue_pb2.DeadLetter]:
        """What was given up, the oldest first, up to 100; `after`: those behind the one with that id. For all of them
        see each_dead_letter."""
        count = parse_count("count", count, 1, limits.MAX_PEEK_COUNT)
        request = queue_pb2.DeadLettersRequest(
            queue=_named(queue), max_count=count, after=dead_letter_id("after", after)
        )
        return list((await self._unary.call(rpc.DEAD_LETTERS, request, self._timeout_ms)).dead_letters)

    async def each_dead_letter(
        self, queue: str = "", *, after: bytes = b"", batch_size: int = limits.MAX_PEEK_COUNT
    ) -> AsyncGenerator[queue_pb2.DeadLetter, None]:
        """What was given up, the oldest first, to the last one; `after`: those behind the one with that id.

        They are asked for as they are wanted, `batch_size` at a time, 1 to 100: what is given up, requeued or purged
        meanwhile is seen or not.
        """
        batch_size = parse_count("batch_size", batch_size, 1, limits.MAX_PEEK_COUNT)
        while True:
            page = await self.dead_letters(queue, batch_size, after)
            for dead in page:
                yield dead
            if len(page) < batch_size:
                return
            after = page[-1].id

    async def requeue(self, queue: str = "", dead_letter: bytes = b"") -> int:
        """Make dead letters messages again, with a fresh schedule: one, or all; returns how many.

        All goes in steps, the oldest first, and ends with as many as there were at the beginning: what consumers fail
        to handle meanwhile, of these too, stays a dead letter.

        Raises:
            KvError: DEAD_LETTER_NOT_FOUND, BAD_DEAD_LETTER_ID. QUEUE_FULL: there was no room for all; as many as fit
                were requeued. What fails behind the first step has `not_applied` False and says how many were requeued.
        """
        if dead_letter_id("dead_letter", dead_letter):
            action = kv_pb2.QueueRequeue(queue=_named(queue), dead_letter=dead_letter)
            return await self._act(kv_pb2.QueueAction(requeue=action))
        dead_count = sum(status.dead_count for status in await self.status(queue or DEFAULT_QUEUE))

        def step(count: int) -> kv_pb2.QueueAction:
            return kv_pb2.QueueAction(requeue=kv_pb2.QueueRequeue(queue=_named(queue), max_count=count))

        return await self._in_steps(step, "requeued", dead_count)

    async def purge(self, queue: str = "", *, dead_letters: bool = False, dead_letter: bytes = b"") -> int:
        """Delete the messages that wait, or the dead letters, or one of these; returns how many.

        It goes in steps; what is enqueued meanwhile may be deleted too. What consumers hold stays. What fails behind
        the first step has `not_applied` False and says how many were deleted.
        """
        dead_letters = parse_flag("dead_letters", dead_letters)
        if dead_letter_id("dead_letter", dead_letter):
            action = kv_pb2.QueuePurge(queue=_named(queue), dead_letter=dead_letter)
            return await self._act(kv_pb2.QueueAction(purge=action))

        def step(count: int) -> kv_pb2.QueueAction:
            purge = kv_pb2.QueuePurge(queue=_named(queue), dead_letters=dead_letters, max_count=count)
            return kv_pb2.QueueAction(purge=purge)

        return await self._in_steps(step, "deleted")

    async def configure(self, queue: str = "", *, max_messages: int = 0) -> None:
        """Set how many undelivered messages the queue may hold; 0 = the default, 100,000."""
        bound = parse_count("max_messages", max_messages, 0, limits.HARD_MAX_QUEUE_MESSAGES_COUNT)
        action = kv_pb2.QueueConfigure(queue=_named(queue), max_messages_count=bound)
        await self._act(kv_pb2.QueueAction(configure=action))

    async def push(
        self, queue: str = "", url: str = "", *, secret: str = "", concurrency: int = 0, timeout_ms: int = 0
    ) -> str:
        """Have the queue's messages POSTed to a URL. What is empty or 0 stays as it is, or is the default.

        Args:
            queue: its name; empty = the default one.
            url: http or https.
            secret: "whsec_" and the base64 of 24 to 64 bytes; empty: the queue's own, or a new one if it has none.
            concurrency: requests at one time, 1 to 100; by default 10.
            timeout_ms: of one request, 1,000 to 300,000; by default 15,000.

        Returns:
            The secret by which the receiver checks signatures, if it was given or made here; "" if the queue kept its
            own.
        """
        concurrency = parse_push_limit("concurrency", concurrency)
        timeout_ms = parse_push_limit("timeout_ms", timeout_ms)
        url, secret = sendable("url", url), sendable("secret", secret)
        present = await self.status(queue or DEFAULT_QUEUE)
        if not secret and not any(status.push_url for status in present):
            secret = encode_secret(secrets.token_bytes(PUSH_KEY_BYTES))
        push = kv_pb2.QueuePush(url=url, secret=secret, concurrency=concurrency, timeout_ms=timeout_ms)
        action = kv_pb2.QueueConfigure(queue=_named(queue), push=push, keep_max_messages=True)
        await self._act(kv_pb2.QueueAction(configure=action))
        return secret

    async def push_off(self, queue: str = "") -> None:
        """Push the queue's messages no longer; they wait for consumers."""
        action = kv_pb2.QueueConfigure(queue=_named(queue), no_push=True, keep_max_messages=True)
        await self._act(kv_pb2.QueueAction(configure=action))

    async def remove(self, queue: str) -> None:
        """Remove an empty queue, with its counters."""
        await self._act(kv_pb2.QueueAction(remove=kv_pb2.QueueRemove(queue=_named(queue))))

    async def _act(self, action: kv_pb2.QueueAction) -> int:
        return sum(await self._counts(action))

    async def _counts(self, action: kv_pb2.QueueAction) -> list[int]:
        """How many it was done to; empty = it is not known, because the write had to be sent again."""
        response = await self._commit(kv_pb2.AtomicWriteRequest(actions=[action]), self._timeout_ms)
        return [result.count for result in response.results]

    async def _in_steps(self, step: Callable[[int], kv_pb2.QueueAction], done: str, most: int | None = None) -> int:
        """Transactions one after the other, until one finds nothing or `most` are done; how many were.

        Args:
            step: what is to be done to so many of them.
            done: what is done to them, for an error's text.
            most: None = as many as there are.
        """
        total = 0
        while most is None or total < most:
            try:
                counts = await self._counts(step(STEP_COUNT if most is None else min(STEP_COUNT, most - total)))
            except KvError as error:
                if not total:
                    raise
                raise _behind_a_step(error, f"{total} were {done}") from error
            if counts == [0]:
                break
            total += sum(counts)
        return total


def _named(queue: str) -> str:
    return sendable("queue", queue, QUEUE_NAME)


def _behind_a_step(error: KvError, done: str) -> KvError:
    """An error of one step, for a caller to whom it is not true that nothing was done."""
    text = f"{done} in steps before this; of the last step: {error.message}"
    return KvError(error.code, text, phase=error.phase, endpoint=error.endpoint, not_applied=False)
