"""A few that come while a larger batch is under way wait a moment for more: a batch is to be worth its cost."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.base import limits
from kvnode.node.holding import may_hold
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.raft.messages import MessageKind
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Asked, Trio, on_trio, put, read, until, write

HOLD_S = limits.BATCH_HOLD_MS / 1_000


def ask(trio: Trio, leader: Server, count: int) -> list[Asked]:
    return [trio.ask(leader, write(put(b"k%d" % number))) for number in range(count)]


async def under_way(trio: Trio, leader: Server, count: int) -> list[Asked]:
    """So many writes in one entry whose acknowledgements are held."""
    index = trio.node(leader).raft.last_index + 1

    def acknowledges_it(source: int, target: int, batch: peer_pb2.PeerBatch) -> bool:
        return any(message.kind == MessageKind.APPEND_RESPONSE and message.index >= index for message in batch.messages)

    trio.wire.holds = acknowledges_it
    asked = ask(trio, leader, count)
    await until(lambda: trio.node(leader).raft.last_index == index, 1)
    await asyncio.sleep(0.1)  # the leader's own fsync is over
    return asked


async def entries_after(trio: Trio, leader: Server, wait_s: float, before: int) -> int:
    await asyncio.sleep(wait_s)
    return trio.node(leader).raft.last_index - before


@on_trio
async def test_a_few_wait_for_more_and_share_an_entry(trio: Trio) -> None:
    leader = await trio.leading()
    asked = await under_way(trio, leader, 10)
    index = trio.node(leader).raft.last_index
    asked += ask(trio, leader, 3)
    assert await entries_after(trio, leader, HOLD_S / 2, index) == 0
    asked += ask(trio, leader, 3)
    assert await entries_after(trio, leader, HOLD_S * 0.6, index) == 1, "no longer than they may be held"
    assert await entries_after(trio, leader, HOLD_S * 5, index) == 1
    trio.wire.release()
    for each in asked:
        await each.write()


@on_trio
async def test_they_go_when_what_is_under_way_is_committed(trio: Trio) -> None:
    leader = await trio.leading()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvnode.node.driver.BATCH_HOLD_S", 60.0)
        asked = await under_way(trio, leader, 10)
        index = trio.node(leader).raft.last_index
        asked += ask(trio, leader, 3)
        assert await entries_after(trio, leader, 0.1, index) == 0
        trio.wire.release()
        for each in asked:
            await asyncio.wait_for(each.write(), 1.0)
        assert trio.node(leader).raft.last_index == index + 1


async def go_at_once(trio: Trio, more_count: int, under_way_count: int) -> None:
    leader = await trio.leading()
    asked = await under_way(trio, leader, under_way_count)
    index = trio.node(leader).raft.last_index
    asked += ask(trio, leader, more_count)
    assert await entries_after(trio, leader, HOLD_S / 2, index) == 1
    trio.wire.release()
    for each in asked:
        await each.write()


@on_trio
async def test_as_many_as_are_under_way_do_not_wait(trio: Trio) -> None:
    await go_at_once(trio, 10, 10)


@on_trio
async def test_nobody_waits_for_a_few(trio: Trio) -> None:
    await go_at_once(trio, 1, 3)


@on_trio
async def test_a_lost_leadership_lets_go_of_them(trio: Trio) -> None:
    leader = await trio.leading()
    asked = await under_way(trio, leader, 10)
    asked += ask(trio, leader, 3)
    trio.wire.holds = None
    trio.cut(leader)
    await until(lambda: trio.leader() not in (None, leader), 30.0, "another leader")
    trio.heal()
    for each in asked:
        assert await each.result()


@on_trio
async def test_reads_do_not_wait_with_them(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.ask(leader, write(put(b"k0"))).write()
    asked = await under_way(trio, leader, 10)
    asked += ask(trio, leader, 3)
    reading = trio.ask(leader, read(b"k0"))
    await until(lambda: reading.done, 1.0, "the read")
    trio.wire.release()
    for each in asked:
        await each.write()


async def reads_under_way(trio: Trio, leader: Server, count: int) -> list[Asked]:
    """So many reads in one round whose acknowledgements are held."""
    rounds = trio.node(leader).stats.read_rounds

    def acknowledges(source: int, target: int, batch: peer_pb2.PeerBatch) -> bool:
        return any(message.kind == MessageKind.HEARTBEAT_RESPONSE for message in batch.messages)

    trio.wire.holds = acknowledges
    asked = [trio.ask(leader, read(b"k")) for _ in range(count)]
    await until(lambda: trio.node(leader).stats.read_rounds == rounds + 1, 1)
    return asked


async def rounds_after(trio: Trio, leader: Server, wait_s: float, before: int) -> int:
    await asyncio.sleep(wait_s)
    return trio.node(leader).stats.read_rounds - before


@on_trio
async def test_a_few_reads_wait_for_more_and_share_a_round(trio: Trio) -> None:
    leader = await trio.leading()
    asked = await reads_under_way(trio, leader, 10)
    before = trio.node(leader).stats.read_rounds
    asked += [trio.ask(leader, read(b"k")) for _ in range(3)]
    assert await rounds_after(trio, leader, HOLD_S / 2, before) == 0
    asked += [trio.ask(leader, read(b"k")) for _ in range(3)]
    assert await rounds_after(trio, leader, HOLD_S * 0.6, before) == 1, "no longer than they may be held"
    trio.wire.release()
    for each in asked:
        await each.read()


@on_trio
async def test_reads_go_when_the_round_under_way_is_confirmed(trio: Trio) -> None:
    leader = await trio.leading()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvnode.node.driver.BATCH_HOLD_S", 60.0)
        asked = await reads_under_way(trio, leader, 10)
        before = trio.node(leader).stats.read_rounds
        asked += [trio.ask(leader, read(b"k")) for _ in range(3)]
        assert await rounds_after(trio, leader, 0.05, before) == 0
        trio.wire.release()
        for each in asked:
            await asyncio.wait_for(each.read(), 1.0)
        assert trio.node(leader).stats.read_rounds == before + 1


@on_trio
async def test_as_many_reads_as_are_under_way_do_not_wait(trio: Trio) -> None:
    leader = await trio.leading()
    asked = await reads_under_way(trio, leader, 10)
    before = trio.node(leader).stats.read_rounds
    asked += [trio.ask(leader, read(b"k")) for _ in range(10)]
    assert await rounds_after(trio, leader, HOLD_S / 2, before) == 1
    trio.wire.release()
    for each in asked:
        await each.read()


@pytest.mark.parametrize(
    ("waiting", "under_way", "held"),
    [(0, 9, False), (1, 3, False), (3, 4, True), (4, 4, False), (63, 64, True), (64, 1_000, False), (1, 0, False)],
)
def test_who_is_held(waiting: int, under_way: int, held: bool) -> None:
    assert may_hold(waiting, under_way) is held
