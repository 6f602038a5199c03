"""Planted bugs of queues and crons, for the checkers of queue_ledger.py and queues.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kvnode.machine.batch_rows import BatchRows
from kvnode.machine.queue import cron, keys, schedule
from kvnode.machine.queue.cron_schedule import parse_schedule
from kvnode.machine.queue.grace import LeaseGrace
from kvnode.machine.queue.transaction import QueueTransaction
from kvnode.machine.queue.waiting import WaitingRows
from kvnode.machine.resolve import Batch, Resolver
from kvnode.node.proposals import Proposals, result_of
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from tests.simulation.planting import Patch, replaced
from tests.simulation.queue_clients import QUEUES


def _all(*patches: Patch) -> Patch:
    """Several places at once."""

    @contextmanager
    def patched() -> Iterator[None]:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield

    return patched()


def ignore_the_lease_of_an_ack() -> Patch:
    """An ack removes its message although its lease was lost and the message waits again."""
    act, put_lease = QueueTransaction.act, QueueTransaction._put_lease
    messages: dict[bytes, bytes] = {}

    def remember(self: QueueTransaction, lease_id: bytes, lease: rows.LeaseRow, expire_at_ms: int) -> None:
        messages[lease_id] = lease.message_id
        put_lease(self, lease_id, lease, expire_at_ms)

    def act_without_it(self: QueueTransaction, action: Any, into: Any = None) -> Any:
        result = act(self, action, into)
        if result.lost and action.HasField("ack") and action.ack.lease in messages:
            result.lost = False
            message_id = messages[action.ack.lease]
            for queue in QUEUES:
                name = queue or keys.DEFAULT_QUEUE
                start, end = keys.due_prefix(self._database, name), keys.due_end(self._database, name)
                for row in self._applied(start, end, 100):
                    if keys.due_of_key(row.key)[1] == message_id:
                        self._access.remove(row.key)
                        self._access.remove(keys.message_key(self._database, message_id))
                        self._queue(name).waiting_count -= 1
        return result

    return _all(replaced(QueueTransaction, "act", act_without_it), replaced(QueueTransaction, "_put_lease", remember))


def send_a_claim_before_it_is_committed() -> Patch:
    """Messages leave for their consumers when the claim is resolved."""
    original = Proposals._resolve_claims

    def resolve_and_answer(self: Proposals, batch: Any, waiters: Any) -> None:
        before = len(waiters)
        original(self, batch, waiters)
        for call, body in waiters[before:]:
            call.answer(result_of(call, body))

    return replaced(Proposals, "_resolve_claims", resolve_and_answer)


def claim_what_is_claimed() -> Patch:
    """A claim does not see what entries in flight have taken."""
    original = BatchRows.__init__

    def init(self: Any, batch: Any) -> None:
        original(self, batch)
        self.newest = lambda row: row

    return replaced(BatchRows, "__init__", init)


def drop_what_a_dead_consumer_held() -> Patch:
    """At most once: a lease that ends without a word takes its message along."""

    def lose(self: QueueTransaction, row: Any) -> None:
        lease, _ = self._end_lease(row)
        self._access.remove(keys.message_key(self._database, lease.message_id))

    return replaced(QueueTransaction, "_lose", lose)


def count_a_loss_as_a_failure() -> Patch:
    """A lease that ends without a word uses up an interval of the schedule."""

    def after_loss(history: rows.DueRow, intervals: Any) -> int | None:
        return schedule.after_failure(history, intervals, None)

    return replaced(schedule, "after_loss", after_loss)


def give_up_one_failure_early() -> Patch:
    """The last interval of the schedule is not waited for."""
    original = schedule.after_failure

    def after_failure(history: rows.DueRow, intervals: Any, delay_ms: int | None) -> int | None:
        return original(history, intervals[:-1], delay_ms)

    return replaced(schedule, "after_failure", after_failure)


def extend_what_has_ended() -> Patch:
    """A new leader gives the time back to leases that had ended before it, too."""
    original = LeaseGrace.__init__

    def init(self: LeaseGrace, state: Any, log_time_ms: int, gap_ms: int) -> None:
        original(self, state, 0, gap_ms)

    return replaced(LeaseGrace, "__init__", init)


def fire_what_is_in_flight() -> Patch:
    """A tick is judged by the applied state alone: entries in flight that have fired it are not seen."""
    original = Batch.tick

    def tick(self: Batch, due: Any) -> int:
        overlay = self.overlay
        for key, _ in due:
            if keys.is_event_key(key) and keys.is_tick_key(key):
                row = self.resolver.state.get(key)
                if row is not None:
                    overlay.put(key, row)
        return original(self, due)

    return replaced(Batch, "tick", tick)


def fire_again_with_each_leader() -> Patch:
    """A new leader fires the newest tick that has passed, whether its predecessor has or not."""
    begin, fire = Resolver.begin, cron.Crons._fire

    def begin_with_ticks(self: Resolver, index: int, log_time_ms: int) -> Batch:
        fresh = self._newest is None
        batch = begin(self, index, log_time_ms)
        if fresh:
            start = keys.cron_tick_key(1, "")
            for row in self.state.scan(start, keys.space_prefix(1) + b"u", 100):
                self.overlay.put(row.key, row._replace(expire_at_ms=log_time_ms))
                batch.tick([(row.key, log_time_ms)])
        return batch

    def fire_the_newest(self: cron.Crons, made: rows.CronRow, message: rows.MessageRow) -> int | None:
        passed = parse_schedule(made.schedule).latest_until(self._now_ms) or 0
        if passed > made.created_at_ms:
            made.next_at_ms = min(made.next_at_ms, passed)
        return fire(self, made, message)

    return _all(replaced(Resolver, "begin", begin_with_ticks), replaced(cron.Crons, "_fire", fire_the_newest))


def fire_every_missed_tick_as_the_first() -> Patch:
    """A tick that is fired late is the first one that was missed, not the newest."""
    original = cron.parse_schedule

    class First:
        def __init__(self, text: str) -> None:
            self._real = original(text)

        def latest_until(self, at_ms: int) -> None:
            return None

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    return replaced(cron, "parse_schedule", First)


def end_leases_while_nobody_leads() -> Patch:
    """A new leader gives no lease the time back in which nobody led."""
    original = LeaseGrace.__init__

    def init(self: LeaseGrace, state: Any, log_time_ms: int, gap_ms: int) -> None:
        original(self, state, log_time_ms, 0)

    return replaced(LeaseGrace, "__init__", init)


def list_nobody_who_waits() -> Patch:
    """A message that is due and that its own entry does not claim is not written down as waiting."""
    return replaced(WaitingRows, "close", lambda self: iter(()))


def claim_before_the_time() -> Patch:
    """The delay of a message is forgotten."""
    return replaced(QueueTransaction, "_due", lambda self, request: self.now_ms)


QUEUE_MUTANTS = (
    list_nobody_who_waits,
    claim_before_the_time,
    ignore_the_lease_of_an_ack,
    send_a_claim_before_it_is_committed,
    claim_what_is_claimed,
    drop_what_a_dead_consumer_held,
    count_a_loss_as_a_failure,
    give_up_one_failure_early,
    fire_what_is_in_flight,
    fire_again_with_each_leader,
    fire_every_missed_tick_as_the_first,
)
