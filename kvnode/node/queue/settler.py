"""Acks and their like, many in one transaction.

A consumer's acks come one by one; each as a transaction of its own would cost the log an outcome, and each as an entry
of its own what an entry costs three nodes. So they gather, up to MAX_QUEUE_TOUCHED_COUNT to a transaction, and it goes

- with the next entry that this node makes as the leader anyway (`ride`);
- otherwise as soon as no more acks are to be expected: of messages that were delivered here within the last
  SETTLE_HOLD_MS, or that a claim of this leader is about to bring;
- SETTLE_HOLD_MS after the first of them at the latest, Nagle's algorithm (RFC 896) as in holding.py;
- in any case not before one of MAX_SETTLEMENTS_COUNT that are under way has ended, unless it rides.

Nobody but the sender of an ack waits for it, and a consumer that handles one message at a time has no others to expect.

Each action passes over a lease that is lost (`skip_if_lost`), so that they do not depend on one another. The write has
a request id and is sent again until its outcome is known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.client.status import error_from_proto
from kvnode.machine.queue.errors import lease_lost
from kvnode.node.ports import Deliver
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


class Begin(Protocol):
    """OwnSession.begin, if it takes a write now."""

    def __call__(self, operation: kv_pb2.Operation, database: int, deliver: Deliver) -> bool:
        """Whether the write has begun; `deliver` is given its result once."""


def _never(operation: kv_pb2.Operation, database: int, deliver: Deliver) -> bool:
    return False


class _Lane:
    """What waits for one database."""

    __slots__ = ("expected_count", "is_leaving", "items", "timer", "writes_count")

    def __init__(self) -> None:
        self.items: deque[_Item] = deque()
        self.writes_count = 0
        self.expected_count = 0  # messages delivered a moment ago, whose acks may be about to come
        self.timer: asyncio.TimerHandle | None = None  # for the first of the items
        self.is_leaving = False  # at the end of this pass of the loop

    @property
    def is_idle(self) -> bool:
        return not (self.items or self.writes_count or self.expected_count or self.is_leaving)


class Settler:
    """Settles leases on behalf of the consumers of one node. Its memory is bounded by the leases they hold.

    Args:
        write: for what cannot `begin`.
        begin: as write, without a task.
        claims: whether a claim is under way that may bring this node's consumers more.
    """

    def __init__(self, write: Write, begin: Begin = _never, claims: Callable[[], bool] = lambda: False) -> None:
        self._write = write
        self._begin = begin
        self._claims = claims
        self._lanes: dict[int, _Lane] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}

    def delivered(self, database: int, count: int) -> None:
        """A consumer here has been given so many messages: their acks may follow at once."""
        lane = self._lane(database)
        lane.expected_count += count
        asyncio.get_running_loop().call_later(limits.SETTLE_HOLD_MS / 1_000, self._expect_less, database, lane, count)

    def settle(self, database: int, action: kv_pb2.QueueAction, done: Done) -> None:
        """Do it together with others; `done` is called later, once."""
        action.skip_if_lost = True
        lane = self._lane(database)
        lane.items.append((action, done))
        if lane.expected_count:
            lane.expected_count -= 1
        self._consider(database, lane)

    def release(self, database: int, leases: Iterable[bytes], *, unseen: bool) -> None:
        """Give leases back; whether that works nobody waits for, since they expire anyway.

        Args:
            unseen: no handler has seen the messages.
        """
        for lease in leases:
            release = kv_pb2.QueueRelease(lease=lease, unseen=unseen)
            self.settle(database, kv_pb2.QueueAction(release=release), _ignore)

    def ride(self) -> None:
        """This node is about to make an entry: what waits goes with it."""
        for database, lane in list(self._lanes.items()):
            if lane.items:
                self._send(database, lane)

    async def close(self) -> None:
        """End what is under way; nobody is told: whoever listened is gone too."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes.values():
            lane.items.clear()
        self._lanes.clear()

    def _lane(self, database: int) -> _Lane:
        lane = self._lanes.get(database)
        if lane is None:
            lane = self._lanes[database] = _Lane()
        return lane

    def _expect_less(self, database: int, lane: _Lane, count: int) -> None:
        lane.expected_count = max(0, lane.expected_count - count)
        if lane.items:
            self._consider(database, lane)
        else:
            self._forget_if_idle(database, lane)

    def _consider(self, database: int, lane: _Lane) -> None:
        """Something waits: let it go at the end of this pass of the loop, or later."""
        if lane.is_leaving or lane.writes_count >= limits.MAX_SETTLEMENTS_COUNT:
            return
        loop = asyncio.get_running_loop()
        if lane.expected_count or self._claims():
            if lane.timer is None:
                lane.timer = loop.call_later(limits.SETTLE_HOLD_MS / 1_000, self._hold_over, database, lane)
            return
        lane.is_leaving = True
        loop.call_soon(self._leave, database, lane)

    def _hold_over(self, database: int, lane: _Lane) -> None:
        lane.timer = None
        if lane.items and lane.writes_count < limits.MAX_SETTLEMENTS_COUNT:
            self._send(database, lane)

    def _leave(self, database: int, lane: _Lane) -> None:
        lane.is_leaving = False
        if lane.items:
            self._send(database, lane)

    def _send(self, database: int, lane: _Lane) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        while lane.items:
            count = min(len(lane.items), limits.MAX_QUEUE_TOUCHED_COUNT)
            self._settle(database, lane, [lane.items.popleft() for _ in range(count)])

    def _settle(self, database: int, lane: _Lane, items: list[_Item]) -> None:
        lane.writes_count += 1
        operation = kv_pb2.Operation(timeout_ms=limits.MAX_OPERATION_TIMEOUT_MS)
        operation.write.actions.extend([action for action, _ in items])
        if not self._begin(operation, database, partial(self._answered, database, lane, items)):
            self._start(self._run(operation.write, database, lane, items))

    async def _run(self, request: kv_pb2.AtomicWriteRequest, database: int, lane: _Lane, items: list[_Item]) -> None:
        try:
            response = await self._write(request, limits.MAX_OPERATION_TIMEOUT_MS, database=database, settle=True)
        except KvError as error:
            self._end(database, lane, items, error)
        else:
            self._end(database, lane, items, None, response.results)

    def _answered(self, database: int, lane: _Lane, items: list[_Item], result: kv_pb2.OperationResult) -> None:
        error = error_from_proto(result.error) if result.HasField("error") else None
        self._end(database, lane, items, error, result.write.results)

    def _end(
        self,
        database: int,
        lane: _Lane,
        items: list[_Item],
        error: KvError | None,
        results: Sequence[kv_pb2.QueueActionResult] = (),
    ) -> None:
        lane.writes_count -= 1
        if error is not None:
            self._failed(database, lane, items, error)
        else:
            lost = {position for position, result in enumerate(results) if result.lost}
            for position, (action, done) in enumerate(items):
                done(lease_lost(_lease_of(action)) if position in lost else None)
        if lane.items:
            self._consider(database, lane)
        else:
            self._forget_if_idle(database, lane)

    def _failed(self, database: int, lane: _Lane, items: list[_Item], error: KvError) -> None:
        if error.code == "TRANSACTION_TOO_LARGE" and len(items) > 1:  # many give up large messages at once
            half = len(items) // 2
            self._settle(database, lane, items[:half])
            self._settle(database, lane, items[half:])
            return
        for _, done in items:
            done(error)

    def _forget_if_idle(self, database: int, lane: _Lane) -> None:
        if lane.is_idle and self._lanes.get(database) is lane:
            del self._lanes[database]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)


def _lease_of(action: kv_pb2.QueueAction) -> bytes:
    lease: bytes = getattr(action, action.WhichOneof("action") or "ack").lease
    return lease


def _ignore(_error: KvError | None) -> None:
    pass
