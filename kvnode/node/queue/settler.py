"""Acks and their like, many in one transaction.

A consumer's acks come one by one; each as a transaction of its own would cost the log an outcome and the loop a
coroutine. So what comes while MAX_SETTLEMENTS_COUNT writes of a database are under way gathers, and goes in the next
one. Each action in it passes over a lease that is lost (`skip_if_lost`), so that they do not depend on one another. The
write has a request id and is sent again until its outcome is known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.machine.queue.errors import lease_lost
from kvnode.proto.kv.v1 import kv_pb2

Done = Callable[[KvError | None], None]
"""Told how an action ended: None = it is committed."""

_Item = tuple[kv_pb2.QueueAction, Done]


class Write(Protocol):
    """Node.write."""

    async def __call__(
        self, request: kv_pb2.AtomicWriteRequest, timeout_ms: int = 0, *, database: int, settle: bool
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write under the node's own session, settled."""


class _Lane:
    """What waits for one database."""

    __slots__ = ("items", "writes_count")

    def __init__(self) -> None:
        self.items: deque[_Item] = deque()
        self.writes_count = 0


class Settler:
    """Settles leases on behalf of the consumers of one node. Its memory is bounded by the leases they hold."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lanes: dict[int, _Lane] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}

    def settle(self, database: int, action: kv_pb2.QueueAction, done: Done) -> None:
        """Do it together with others; `done` is called later, once."""
        action.skip_if_lost = True
        lane = self._lanes.setdefault(database, _Lane())
        lane.items.append((action, done))
        if lane.writes_count < limits.MAX_SETTLEMENTS_COUNT:
            lane.writes_count += 1
            self._start(self._drain(database, lane))

    def release(self, database: int, leases: Iterable[bytes], *, unseen: bool) -> None:
        """Give leases back; whether that works nobody waits for, since they expire anyway.

        Args:
            unseen: no handler has seen the messages.
        """
        for lease in leases:
            release = kv_pb2.QueueRelease(lease=lease, unseen=unseen)
            self.settle(database, kv_pb2.QueueAction(release=release), _ignore)

    async def close(self) -> None:
        """End what is under way; nobody is told: whoever listened is gone too."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()

    def _start(self, work) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    async def _drain(self, database: int, lane: _Lane) -> None:
        try:
            await asyncio.sleep(0)  # what else comes in this pass of the loop goes along
            while lane.items:
                count = min(len(lane.items), limits.MAX_QUEUE_TOUCHED_COUNT)
                await self._settle(database, [lane.items.popleft() for _ in range(count)])
        finally:
            lane.writes_count -= 1
            if not lane.items and not lane.writes_count and self._lanes.get(database) is lane:
                del self._lanes[database]

    async def _settle(self, database: int, items: list[_Item]) -> None:
        request = kv_pb2.AtomicWriteRequest(actions=[action for action, _ in items])
        try:
            response = await self._write(request, limits.MAX_OPERATION_TIMEOUT_MS, database=database, settle=True)
        except KvError as error:
            if error.code == "TRANSACTION_TOO_LARGE" and len(items) > 1:  # many give up large messages at once
                half = len(items) // 2
                await self._settle(database, items[:half])
                await self._settle(database, items[half:])
                return
            for _, done in items:
                done(error)
            return
        lost = {position for position, result in enumerate(response.results) if result.lost}
        for position, (action, done) in enumerate(items):
            done(lease_lost(_lease_of(action)) if position in lost else None)


def _lease_of(action: kv_pb2.QueueAction) -> bytes:
    lease: bytes = getattr(action, action.WhichOneof("action") or "ack").lease
    return lease


def _ignore(_error: KvError | None) -> None:
    pass
