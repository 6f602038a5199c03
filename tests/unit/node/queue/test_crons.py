"""Crons on three nodes, in virtual time: each tick once, whoever leads."""

from __future__ import annotations

import asyncio

from kvnode.codec.entry import EntryKind
from kvnode.machine.queue import keys
from kvnode.node.queue import cron_views
from kvnode.node.queue.views import QueueReader
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2
from tests.simulation.clock import EPOCH_MS
from tests.simulation.cluster import Server
from tests.unit.node.cluster import SUCCESS, Trio, on_trio, until
from tests.unit.node.queue.test_delivery import Listener

MINUTE_MS = 60_000


async def set_cron(trio: Trio, server: Server, schedule: str = "* * * * *", *, overlap: bool = True) -> None:
    made = kv_pb2.CronSet(name="every minute", schedule=schedule, allow_overlap=overlap)
    made.message.payload.data, made.message.payload.encoding = b"tick", kv_pb2.VALUE_ENCODING_BYTES
    request = kv_pb2.AtomicWriteRequest(actions=[kv_pb2.QueueAction(cron_set=made)])
    answer = await trio.within(server, trio.node(server).write(request))
    assert answer.status == SUCCESS
    assert answer.results[0].next_at_ms > now_ms()


def now_ms() -> int:
    return int(EPOCH_MS + asyncio.get_running_loop().time() * 1000)


async def sleep_until(at_ms: float) -> None:
    await asyncio.sleep(max(0.0, (at_ms - now_ms()) / 1000))


async def show(trio: Trio, server: Server) -> queue_pb2.CronStatus:
    reader = QueueReader(trio.node(server).read, 1, 30_000)
    (status,) = await trio.within(server, cron_views.list_crons(reader))
    (shown,) = await trio.within(server, cron_views.show_cron(reader, status.name))
    assert shown.message.payload.data == b"tick"
    return status


def fired(trio: Trio) -> list[int]:
    """The ticks of all messages that the committed log made, whoever handled them."""
    space = keys.space_prefix(1) + b"m"
    entries = [entry for _, entry in sorted(trio.observer.committed.items()) if entry.kind is EntryKind.DATA]
    return [
        rows.MessageRow.FromString(fact.value).scheduled_at_ms
        for entry in entries
        for transaction in log_pb2.EntryPayload.FromString(entry.data).transactions
        for fact in transaction.facts
        if fact.key.startswith(space) and fact.kind == log_pb2.FACT_KIND_SET
    ]


@on_trio
async def test_each_tick_is_fired_once_across_changes_of_leader(trio: Trio) -> None:
    """Each leader is cut off around a tick: before it, with the firing alone in its log, right after it."""
    _, one, _ = await trio.leader_and_followers()
    await set_cron(trio, one)
    first_ms = (now_ms() // MINUTE_MS + 1) * MINUTE_MS
    for number, at_ms in enumerate((-900, -30, 60, 150)):
        await sleep_until(first_ms + number * MINUTE_MS + at_ms)
        leader = await trio.leading()
        trio.cut(leader)
        await asyncio.sleep(8.0)
        trio.heal()
        await asyncio.sleep(10.0)
    await trio.everywhere()
    assert fired(trio) == [first_ms + number * MINUTE_MS for number in range(4)]
    status = await show(trio, one)
    assert (status.fired_total, status.missed_total, status.skipped_total) == (4, 0, 0)
    assert status.next_at_ms == first_ms + 4 * MINUTE_MS


@on_trio
async def test_a_firing_that_only_the_old_leader_has_is_made_by_the_new_one(trio: Trio) -> None:
    leader = await trio.leading()
    await set_cron(trio, leader)
    tick_ms = (now_ms() // MINUTE_MS + 1) * MINUTE_MS
    await sleep_until(tick_ms - 20)
    before = trio.node(leader).raft.last_index
    trio.cut(leader)
    await until(lambda: trio.node(leader).raft.last_index > before, 2.0, "the old leader proposed nothing")
    assert fired(trio) == []
    await until(lambda: bool(fired(trio)), 10.0, "the new leader fires nothing")
    trio.heal()
    await trio.everywhere()
    await asyncio.sleep(5.0)
    assert fired(trio) == [tick_ms]


@on_trio
async def test_ticks_without_a_leader_fire_once_and_late(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    await set_cron(trio, leader)
    first_ms = (now_ms() // MINUTE_MS + 1) * MINUTE_MS
    trio.kill(one)
    trio.kill(other)
    await sleep_until(first_ms + 3 * MINUTE_MS + 25_000)
    assert fired(trio) == []
    trio.start(one)
    trio.start(other)
    listener = Listener(trio, leader, credit=10)
    await until(lambda: bool(listener.got), 20.0, "not delivered")
    (message,) = listener.got
    assert (message.cron, message.scheduled_at_ms) == ("every minute", first_ms + 3 * MINUTE_MS)
    assert message.enqueued_at_ms > message.scheduled_at_ms + 20_000
    await sleep_until(first_ms + 4 * MINUTE_MS + 200)
    assert fired(trio) == [first_ms + 3 * MINUTE_MS, first_ms + 4 * MINUTE_MS]
    status = await show(trio, leader)
    assert (status.fired_total, status.missed_total) == (2, 3)


@on_trio
async def test_a_tick_is_on_time_and_its_handler_sees_it_on_any_node(trio: Trio) -> None:
    _, one, other = await trio.leader_and_followers()
    await set_cron(trio, one, "*/2 * * * *", overlap=False)
    listener = Listener(trio, other, credit=1)
    for number in range(3):
        await sleep_until((now_ms() // (2 * MINUTE_MS) + 1) * 2 * MINUTE_MS - 200)
        await until(lambda number=number: len(listener.got) > number, 2.0, "no tick")  # type: ignore[misc]
        message = listener.got[-1]
        assert message.scheduled_at_ms % (2 * MINUTE_MS) == 0
        assert 0 <= message.enqueued_at_ms - message.scheduled_at_ms < 150
        await listener.ack(message)
        listener.grant(1)
    assert len({message.scheduled_at_ms for message in listener.got}) == 3
    stats = trio.node(await trio.leading()).stats
    assert stats.cron_late_ms.count == 3
    assert stats.cron_late_ms.sum < 450
