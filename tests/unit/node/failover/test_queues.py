"""Messages, their leases and the ticks of crons across a failover that cuts off what became of them."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

from kvnode.codec.versionstamp import split
from kvnode.machine.queue import cron_schedule
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import SUCCESS, Trio, on_regions, put, until
from tests.unit.node.failover.test_request_ids import cut_in_two, lose_the_primary
from tests.unit.node.queue.test_crons import fired, now_ms, set_cron, show, sleep_until
from tests.unit.node.queue.test_delivery import Listener, rows_of_queues, send

_MINUTE_MS = 10_000  # a cron's, here


def ack(lease: bytes, *mutations: kv_pb2.Mutation) -> kv_pb2.AtomicWriteRequest:
    action = kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=lease))
    return kv_pb2.AtomicWriteRequest(actions=[action], mutations=mutations)


@on_regions
async def test_a_tick_whose_entry_was_lost_is_fired_once_by_the_region_that_takes_over(trio: Trio) -> None:
    with patch.object(cron_schedule, "MINUTE_MS", _MINUTE_MS):
        await set_cron(trio, await trio.leading())
        primary, replicas = await cut_in_two(trio)
        tick_ms = (now_ms() // _MINUTE_MS + 1) * _MINUTE_MS
        await sleep_until(tick_ms + 1_000)
        assert fired(trio) == [tick_ms]
        await lose_the_primary(trio, primary, replicas)
        listener = Listener(trio, replicas[1], credit=10)
        for number in range(2):
            await until(lambda number=number: len(listener.got) > number, 12.0, "not delivered")  # type: ignore[misc]
            assert await listener.ack(listener.got[number]) is None
            for server in primary:
                if not server.running:
                    trio.start(server)
        await sleep_until(tick_ms + _MINUTE_MS + 3_000)
        ticks = [tick_ms, tick_ms + _MINUTE_MS]
        assert [message.scheduled_at_ms for message in listener.got] == ticks == fired(trio)
        status = await show(trio, replicas[0])
        assert (status.fired_total, status.missed_total) == (2, 0)


@on_regions
async def test_a_lease_that_was_lost_settles_nothing_and_its_message_comes_again(trio: Trio) -> None:
    await send(trio, await trio.leading(), b"kept")
    primary, replicas = await cut_in_two(trio)
    before = Listener(trio, primary[1], credit=10)
    await until(lambda: bool(before.got), 5.0, "not delivered")
    (old,) = before.got
    assert await before.ack(old) is None
    await send(trio, primary[0], b"lost")
    await until(lambda: len(before.got) == 2, 5.0, "not delivered")
    await lose_the_primary(trio, primary, replicas)
    after = Listener(trio, replicas[1], credit=10)
    await until(lambda: bool(after.got), 10.0, "what was handled in the history that ended is not in this one")
    await asyncio.sleep(5.0)
    assert after.payloads() == [b"kept"]
    (new,) = after.got
    assert (new.id, split(new.lease[:10])[0]) == (old.id, 19) and new.lease != old.lease
    node = trio.node(replicas[0])
    for lease in (old.lease, before.got[1].lease):
        refused = await trio.refused(replicas[0], node.write(ack(lease, put(b"effect"))))
        assert refused.code == "LEASE_LOST"
        assert await trio.get(replicas[0], b"effect") is None
    assert rows_of_queues(trio, replicas[0]) != []
    answer = await trio.within(replicas[0], node.write(ack(new.lease, put(b"effect"))))
    assert answer.status == SUCCESS and not answer.results[0].lost
    assert await trio.get(replicas[1], b"effect") == b"v"
    await trio.everywhere()
    assert [rows_of_queues(trio, server) for server in replicas] == [[], []]
