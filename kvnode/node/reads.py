"""Serving reads from the local state.

Both kinds end here: a strong read after its barrier, an eventual read as it arrives. Small reads are answered on
the loop in one pass over the applied state (a point read costs a few microseconds); counts of ranges, and reads of
more than MAX_INLINE_READ_ENTRIES_COUNT entries, leave the loop, each with one read transaction of its own. Of those as
many run at a time as the state has readers, so that a message full of them neither holds the loop nor fills the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec.versionstamp import split, versionstamp
from kvnode.machine.read import read_ranges
from kvnode.node.barriers import Item
from kvnode.node.calls import Call
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.proposals import deadline_error
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.storage.state import State, StateMeta, StateTables

_LAST_ORDER = limits.MAX_ENTRY_TRANSACTIONS_COUNT - 1  # a state holds whole entries


class Reads:
    """The reads of one node.

    Args:
        now_ms: a monotonic clock.
        fail: told of an error that means that the state cannot be trusted.
        wake: told when a read begins to wait for the state, which may have more to apply.
    """

    def __init__(
        self,
        state: State,
        freshness: FreshnessTracker,
        stats: Stats,
        now_ms: Callable[[], float],
        fail: Callable[[BaseException], None],
        wake: Callable[[], None],
    ) -> None:
        self._state = state
        self._freshness = freshness
        self._stats = stats
        self._now_ms = now_ms
        self._fail = fail
        self._wake = wake
        self._waiting: list[tuple[bytes, Call]] = []  # eventual reads with a min_versionstamp still ahead
        self._tasks: set[asyncio.Task[None]] = set()

    def eventual(self, call: Call) -> None:
        """Answer from the state as it is, or once it has reached the wanted versionstamp."""
        assert call.operation is not None
        wanted = call.operation.read.min_versionstamp
        if wanted and split(wanted)[:2] > (self._state.meta.epoch, self._state.meta.applied_index):
            self._waiting.append((wanted, call))
            self._wake()
            return
        self._stats.reads_eventual += 1
        self._serve(call, strong=False)

    @property
    def is_awaiting(self) -> bool:
        """Whether a read waits for the state to reach its versionstamp."""
        return bool(self._waiting)

    def strong(self, items: list[Item]) -> None:
        """Answer what has passed its barrier."""
        now = self._now_ms()
        for item in items:
            if item.negative is not None:
                self._stats.commit_latency_ms.observe(now - item.call.started_ms)
                item.call.answer(item.negative)
            else:
                self._stats.reads_strong += 1
                self._stats.read_latency_ms.observe(now - item.call.started_ms)
                self._serve(item.call, strong=True)

    def applied(self) -> None:
        """The state has moved on: wake the reads that waited for it."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for _, call in waiting:
            if not call.done:
                self.eventual(call)

    def sweep(self, now_ms: float) -> None:
        """Answer the waiting reads that are past their deadline."""
        if self._waiting and any(now_ms >= call.deadline_ms for _, call in self._waiting):
            for _, call in self._waiting:
                if now_ms >= call.deadline_ms:
                    call.fail(deadline_error(call))
            self._waiting = [pair for pair in self._waiting if not pair[1].done]

    async def close(self) -> None:
        """Wait for the reads that left the loop."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _serve(self, call: Call, *, strong: bool) -> None:
        operation = call.operation
        assert operation is not None
        request = operation.read
        entries_count = 0
        for item in request.ranges:
            if item.count_only:
                self._leave_loop(self._serve_count(call, strong=strong))
                return
            entries_count += item.limit
        if entries_count > limits.MAX_INLINE_READ_ENTRIES_COUNT:
            self._leave_loop(self._serve_large(call, strong=strong))
            return
        try:
            meta = self._state.meta
            response = read_ranges(self._state, request, call.database, meta.log_time_ms)
        except KvError as error:
            self._failed(call, error)
            return
        self._finish(call, response, meta.epoch, meta.applied_index, strong=strong)

    def _leave_loop(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_large(self, call: Call, *, strong: bool) -> None:
        assert call.operation is not None
        request = call.operation.read

        def read(state: StateTables) -> tuple[kv_pb2.ReadResponse, StateMeta] | None:
            if self._now_ms() >= call.deadline_ms:
                return None  # it waited for its turn for too long: nobody needs the answer
            # The state has moved on by now: the versionstamp is that of what is read.
            return read_ranges(state, request, call.database, state.meta.log_time_ms), state.meta

        try:
            found = await self._state.read_off_loop(read)
        except KvError as error:
            self._failed(call, error)
            return
        if found is None:
            call.fail(deadline_error(call))
        else:
            self._finish(call, found[0], found[1].epoch, found[1].applied_index, strong=strong)

    async def _serve_count(self, call: Call, *, strong: bool) -> None:
        assert call.operation is not None
        request = call.operation.read
        try:
            if len(request.ranges) > 1:
                raise InvalidRequest(
                    "COUNT_NOT_ALONE", "a count must be the only range of its read: send one read for each count"
                )
            prefix = call.database.to_bytes(4, "big")
            only = request.ranges[0]
            # The state has moved on by the time the reader begins: the versionstamp is that of what was counted.
            count, meta = await self._state.count_with_meta(prefix + only.start, prefix + only.end)
            response = kv_pb2.ReadResponse(ranges=[kv_pb2.ReadRangeResult(count=count)])
        except KvError as error:
            self._failed(call, error)
            return
        self._finish(call, response, meta.epoch, meta.applied_index, strong=strong)

    def _finish(self, call: Call, response: kv_pb2.ReadResponse, epoch: int, index: int, *, strong: bool) -> None:
        assert call.operation is not None
        response.versionstamp = versionstamp(epoch, index, _LAST_ORDER)
        if strong:
            response.strongly_consistent = True
        else:
            response.age_ms = self._freshness.age_ms()
        call.answer(kv_pb2.OperationResult(id=call.operation.id, read=response))

    def _failed(self, call: Call, error: KvError) -> None:
        call.fail(error)
        if error.phase == "storage":
            self._fail(error)
