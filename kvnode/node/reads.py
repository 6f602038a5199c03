"""Serving reads from the local state.

Both kinds end here: a strong read after its barrier, an eventual read as it arrives. Small reads are answered on
the loop in one pass over the applied state (a point read costs a few microseconds); counts of ranges, reads of
more than MAX_INLINE_READ_ENTRIES_COUNT entries, and those that prove to be larger than MAX_INLINE_READ_BYTES, leave the
loop, each with one read transaction of its own. Of those as many run at a time as the state has readers, so that a
message full of them neither holds the loop nor fills the memory. Small ones hold it no longer than MAX_READ_TURN_BYTES
say: the others are answered in later passes (read_turns.py). A strong read sees what its barrier asks for then too,
since the state only goes on; it is counted, stamped and held against the lease when it is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from kvnode.base import limits
from kvnode.base.deadline import answer_margin_ms
from kvnode.base.errors import DeadlineExceeded, InvalidRequest, KvError, TooStale
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.read import read_ranges, read_within, values_bytes
from kvnode.node.barriers import Item
from kvnode.node.calls import Answers, Call, DirectAnswers
from kvnode.node.freshness import Confirmed, FreshnessTracker, in_words, is_within
from kvnode.node.onward import Onward
from kvnode.node.proposals import deadline_error
from kvnode.node.read_batch import ReadBatch
from kvnode.node.read_turns import ReadTurns, WaitingRead
from kvnode.node.stamps import EpochRows, is_reached, refusal
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.storage.state import State, StateMeta, StateTables

_TRANSACTION_FROM_COUNT = 3  # from so many reads on, SQLite's transaction around them costs less than it saves
_MAX_INLINE_BYTES = limits.MAX_INLINE_READ_BYTES
_LAST_ORDER = limits.MAX_ENTRY_TRANSACTIONS_COUNT - 1  # a state holds whole entries


class _Waiting:
    """A read whose versionstamp is still ahead of the state."""

    __slots__ = ("call", "is_onward", "since_ms", "stamp", "strong")

    def __init__(self, call: Call, stamp: bytes, since_ms: float, *, strong: bool) -> None:
        self.call = call
        self.stamp = stamp
        self.since_ms = since_ms
        self.strong = strong
        self.is_onward = False


class Reads:
    """The reads of one node.

    Args:
        epochs: the replicated table of epochs.
        onward: takes eventual reads that the state here is too old for.
        now_ms: a monotonic clock.
        fail: told of an error that means that the state cannot be trusted.
        wake: told when a read begins to wait for the state, which may have more to apply.
        answers: where strong ones go.
        under_lease: told of a call that the leader lease has confirmed, and of the answer to a failed check, before it
            is answered; False = it was taken back.
    """

    def __init__(
        self,
        state: State,
        freshness: FreshnessTracker,
        stats: Stats,
        epochs: EpochRows,
        onward: Onward,
        now_ms: Callable[[], float],
        fail: Callable[[BaseException], None],
        wake: Callable[[], None],
        answers: Answers | None = None,
        under_lease: Callable[[Call, kv_pb2.OperationResult | None], bool] = lambda call, negative: True,
    ) -> None:
        self._answers: Answers = DirectAnswers() if answers is None else answers
        self._under_lease = under_lease
        self._state = state
        self._freshness = freshness
        self._stats = stats
        self._epochs = epochs
        self._onward = onward
        self._now_ms = now_ms
        self._fail = fail
        self._wake = wake
        self._waiting: list[_Waiting] = []
        self._turns = ReadTurns(self._go_on)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stamped: StateMeta | None = None
        self._last_stamp = b""

    def eventual(self, call: Call) -> None:
        """Answer from the state as it is, once it has the wanted versionstamp; from another node's if it is too old."""
        assert call.operation is not None
        wanted = call.operation.read.min_versionstamp
        if wanted and self._must_wait(call, wanted, strong=False):
            return
        self._take_eventual(call)

    def _take_eventual(self, call: Call) -> None:
        if self._turns.is_over:
            self._turns.wait(call, strong=False)
        else:
            self._answer_eventual(call)

    def _answer_eventual(self, call: Call) -> None:
        assert call.operation is not None
        if not is_within(self._freshness.age_ms(), call.operation.read.max_staleness_ms):
            self._onward.go(call, self._nobody_fresher)
            return
        self._stats.reads_eventual += 1
        self._serve(call, strong=False)

    def _nobody_fresher(self, call: Call, reasons: str) -> None:
        """No other node answered; meanwhile this one may be fresh enough."""
        assert call.operation is not None
        if call.done:
            return
        bound_ms, age_ms = call.operation.read.max_staleness_ms, self._freshness.age_ms()
        if is_within(age_ms, bound_ms):
            self._take_eventual(call)
            return
        self._stats.reads_too_stale += 1
        others = (
            "" if call.forwarded else f", and no other node answered with a fresher one ({reasons or 'there is none'})"
        )
        call.fail(
            TooStale(
                f"this node's state {in_words(age_ms)}, the read allows {bound_ms} ms{others}; allow more, or see "
                "`kvnode status`"
            )
        )

    def _must_wait(self, call: Call, stamp: bytes, *, strong: bool) -> bool:
        """Whether the state does not hold the stamp's entry: then the call is answered, or waits."""
        lost = refusal(stamp, self._epochs())
        if lost is not None:
            call.fail(lost)
            return True
        meta = self._state.meta
        if is_reached(stamp, meta.epoch, meta.applied_index):
            return False
        self._waiting.append(_Waiting(call, stamp, self._now_ms(), strong=strong))
        # Not from within: whoever is woken may apply at once, and strong reads are in a read transaction here.
        asyncio.get_running_loop().call_soon(self._wake)
        return True

    @property
    def is_awaiting(self) -> bool:
        """Whether a read waits for the state to reach its versionstamp."""
        return bool(self._waiting)

    def strong(self, items: list[Item]) -> None:
        """Answer what has passed its barrier."""
        if sum([item.call.reads_count for item in items]) < _TRANSACTION_FROM_COUNT:
            self._answer_strong(items)
            return
        try:
            with self._state.reading():
                self._answer_strong(items)
        except KvError as error:
            for item in items:
                item.call.fail(error)
            self._fail(error)

    def _answer_strong(self, items: list[Item]) -> None:
        now, turns = self._now_ms(), self._turns
        for item in items:
            call = item.call
            if item.negative is not None:
                if call.leased and not self._under_lease(call, item.negative):
                    continue
                self._stats.commit_latency_ms.observe(now - call.started_ms)
                self._answers.answer(call, item.negative)
            elif turns.is_over:
                turns.wait(call, strong=True)
            elif isinstance(call, ReadBatch):
                if not self._serve_batch(call, now):
                    turns.wait(call, strong=True)
            else:
                self._serve_strong(call, now)

    def _serve_strong(self, call: Call, now: float) -> None:
        assert call.operation is not None
        wanted = call.operation.read.min_versionstamp
        if wanted and self._must_wait(call, wanted, strong=True):
            return
        self._stats.reads_strong += 1
        self._stats.read_latency_ms.observe(now - call.started_ms)
        self._serve(call, strong=True)

    def _serve_batch(self, batch: ReadBatch, now: float) -> bool:
        """Answer reads that share a call, all from one state; False = this pass is over before their end."""
        if batch.done:
            return True
        try:
            results = self._read_batch(batch)
        except KvError as error:
            self._failed(batch, error)
            return True
        if batch.leased and not self._under_lease(batch, None):
            return True
        is_end = len(results) == len(batch.reads)
        self._answer_batch(batch if is_end else batch.split(len(results)), results, now)
        return is_end

    def _read_batch(self, batch: ReadBatch) -> list[kv_pb2.OperationResult | None]:
        """The results, up to where this pass is over; None = that read is too large for the loop."""
        state, meta = self._state, self._state.meta
        stamp, log_time_ms = self._stamp(meta), meta.log_time_ms
        took_bytes, room_bytes = 0, self._turns.room_bytes
        results: list[kv_pb2.OperationResult | None] = []
        for operation, origin, _, _ in batch.reads:
            result = kv_pb2.OperationResult(id=operation.id)
            response = result.read
            took = read_within(state, operation.read, origin.database, log_time_ms, response, _MAX_INLINE_BYTES)
            if took is None:
                took_bytes += _MAX_INLINE_BYTES
                results.append(None)
            else:
                took_bytes += took
                response.versionstamp = stamp
                response.strongly_consistent = True
                results.append(result)
            if took_bytes >= room_bytes:
                break
        self._turns.took(took_bytes)
        return results

    def _answer_batch(self, batch: ReadBatch, results: list[kv_pb2.OperationResult | None], now: float) -> None:
        stats = self._stats
        stats.reads_strong += len(results)
        observe = stats.read_latency_ms.observe
        for read in batch.reads:
            observe(now - read.started_ms)
        if self._answers.are_direct:
            batch.done = True
            for read, result in zip(batch.reads, results, strict=True):
                if result is not None:
                    read.deliver(result)
                else:
                    self._leave_batch(batch, batch.call(read))
        else:
            for call, result in zip(batch.calls(), results, strict=True):
                if result is not None:
                    self._answers.answer(call, result)
                else:
                    self._leave_batch(batch, call)

    def _leave_batch(self, batch: ReadBatch, call: Call) -> None:
        call.leased = batch.leased
        self._leave_loop(self._serve_large(call, strong=True))

    def _go_on(self) -> None:
        """Answer reads that wait for a pass of the loop, as many as one may answer."""
        try:
            with self._state.reading():
                while (waiting := self._turns.next()) is not None:
                    self._answer_waiting(waiting)
        except KvError as error:
            self.fail_waiting(error)
            self._fail(error)
        except InvariantViolation as error:
            self._fail(error)

    def _answer_waiting(self, waiting: WaitingRead) -> None:
        call, now = waiting.call, self._now_ms()
        if now >= call.deadline_ms:
            self._turns.took(call.reads_count * limits.READ_RANGE_BYTES)  # it takes its time too
            call.fail(_turn_error(call))
        elif not waiting.strong:
            self._answer_eventual(call)
        elif not isinstance(call, ReadBatch):
            self._serve_strong(call, now)
        elif not self._serve_batch(call, now):
            self._turns.wait_first(waiting)

    def lose_leadership(self) -> list[Call]:
        """The strong reads that wait for a pass of the loop; they are the caller's from here on."""
        return self._turns.take_strong()

    def fail_waiting(self, error: KvError) -> None:
        """Answer all reads that wait for a pass of the loop: nobody else will."""
        for call in self._turns.take_all():
            call.fail(error)

    def applied(self) -> None:
        """The state has moved on: wake the reads that waited for it."""
        if not self._waiting:
            return
        rows, meta = self._epochs(), self._state.meta
        ready: list[_Waiting] = []
        for waiting in self._waiting:
            lost = refusal(waiting.stamp, rows)
            if lost is not None:
                waiting.call.fail(lost)
            elif not waiting.call.done and is_reached(waiting.stamp, meta.epoch, meta.applied_index):
                ready.append(waiting)
        reached = dict.fromkeys(ready)
        self._waiting = [w for w in self._waiting if not w.call.done and w not in reached]
        for waiting in ready:
            if not waiting.strong:
                self._take_eventual(waiting.call)
            elif self._turns.is_over:
                self._turns.wait(waiting.call, strong=True)
            else:
                self._stats.reads_strong += 1
                self._serve(waiting.call, strong=True)

    def sweep(self, now_ms: float) -> None:
        """Answer the waiting reads that are past their deadline; have others answer what waits for long."""
        self._onward.sweep(now_ms)
        self._turns.sweep(now_ms, _turn_error)
        if not self._waiting:
            return
        for waiting in self._waiting:
            call = waiting.call
            if now_ms >= call.deadline_ms - answer_margin_ms(call.deadline_ms - call.started_ms):
                waiting.call.fail(self._not_reached(waiting))
            elif now_ms - waiting.since_ms >= limits.READ_WAIT_HERE_MS and not (waiting.is_onward or waiting.strong):
                waiting.is_onward = True  # and it goes on to wait here: whoever is there first answers
                self._onward.go(waiting.call, _wait_on)
        self._waiting = [waiting for waiting in self._waiting if not waiting.call.done]

    def _not_reached(self, waiting: _Waiting) -> KvError:
        meta = self._state.meta
        at = versionstamp(meta.epoch, meta.applied_index, _LAST_ORDER).hex()
        return DeadlineExceeded(
            f"the deadline passed before the state came to the versionstamp {waiting.stamp.hex()}; it is at {at}: if "
            "that is the stamp of a commit of this cluster, allow more time, or see `kvnode status` for the lag",
            phase="read",
        )

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
        reached = self._freshness.reached
        result = kv_pb2.OperationResult(id=operation.id)
        try:
            meta = self._state.meta
            log_time_ms = meta.log_time_ms
            took = read_within(self._state, request, call.database, log_time_ms, result.read, _MAX_INLINE_BYTES)
        except KvError as error:
            self._failed(call, error)
            return
        if took is None:
            self._turns.took(_MAX_INLINE_BYTES)
            self._leave_loop(self._serve_large(call, strong=strong))
            return
        self._turns.took(took)
        self._finish(call, result, meta, reached, strong=strong)

    def _leave_loop(self, work: Coroutine[object, object, None]) -> None:
        self._turns.took(limits.READ_RANGE_BYTES)  # a task takes about as long to begin
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_large(self, call: Call, *, strong: bool) -> None:
        assert call.operation is not None
        request = call.operation.read
        reached = self._freshness.reached  # the state that is read is no older

        operation_id, bounded = call.operation.id, call.bounded

        def read(state: StateTables) -> tuple[kv_pb2.OperationResult, StateMeta] | None:
            if self._now_ms() >= call.deadline_ms:
                return None  # it waited for its turn for too long: nobody needs the answer
            if bounded is not None and (refused := bounded.cannot_take(0)) is not None:
                raise refused
            # The state has moved on by now: the versionstamp is that of what is read.
            result = kv_pb2.OperationResult(id=operation_id)
            read_ranges(state, request, call.database, state.meta.log_time_ms, result.read)
            # Here, and not when it is a message: serializing 65 MB holds every thread for 0.1 s and more.
            if bounded is not None:
                size_bytes = values_bytes(result.read, limits.MAX_GRPC_MESSAGE_BYTES)
                if (refused := bounded.cannot_take(size_bytes)) is not None:
                    del result  # or it would live as long as the error's traceback
                    raise refused
            return result, state.meta

        try:
            found = await self._state.read_off_loop(read)
        except KvError as error:
            self._failed(call, error)
            return
        if found is None:
            call.fail(deadline_error(call))
        else:
            self._finish(call, found[0], found[1], reached, strong=strong)

    async def _serve_count(self, call: Call, *, strong: bool) -> None:
        assert call.operation is not None
        request = call.operation.read
        reached = self._freshness.reached
        try:
            if len(request.ranges) > 1:
                raise InvalidRequest(
                    "COUNT_NOT_ALONE", "a count must be the only range of its read: send one read for each count"
                )
            prefix = call.database.to_bytes(4, "big")
            only = request.ranges[0]
            # The state has moved on by the time the reader begins: the versionstamp is that of what was counted.
            count, meta = await self._state.count_with_meta(prefix + only.start, prefix + only.end)
            result = kv_pb2.OperationResult(id=call.operation.id)
            result.read.ranges.add(count=count)
        except KvError as error:
            self._failed(call, error)
            return
        self._finish(call, result, meta, reached, strong=strong)

    def _finish(
        self, call: Call, result: kv_pb2.OperationResult, meta: StateMeta, reached: Confirmed | None, *, strong: bool
    ) -> None:
        """Answer with what was read. `reached`: as of before the read, because the state may have moved on since."""
        assert call.operation is not None
        response = result.read
        response.versionstamp = self._stamp(meta)
        if strong:
            if call.leased and not self._under_lease(call, None):
                return
            response.strongly_consistent = True
            self._answers.answer(call, result)
            return
        response.age_ms = -1 if reached is None else self._freshness.age_ms(reached)
        if not is_within(response.age_ms, call.operation.read.max_staleness_ms):  # it took too long
            self._onward.go(call, self._nobody_fresher)
            return
        self._stats.read_age_ms.observe(response.age_ms)
        self._stats.eventual_latency_ms.observe(self._now_ms() - call.started_ms)
        call.answer(result)

    def _stamp(self, meta: StateMeta) -> bytes:
        """The versionstamp of a state; many reads in a row are of one."""
        if self._stamped is not meta:
            self._stamped = meta
            self._last_stamp = versionstamp(meta.epoch, meta.applied_index, _LAST_ORDER)
        return self._last_stamp

    def _failed(self, call: Call, error: KvError) -> None:
        call.fail(error)
        if error.phase == "storage":
            self._fail(error)


def _turn_error(call: Call) -> KvError:
    del call
    return DeadlineExceeded(
        "the deadline passed before the read had its turn: this node is asked for more than it can read; allow more "
        "time, or read less at once",
        phase="read",
    )


def _wait_on(call: Call, reasons: str) -> None:
    """No other node is further; the read goes on waiting here."""
    del call, reasons
