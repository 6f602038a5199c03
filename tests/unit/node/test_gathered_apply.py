"""A follower lets what is committed gather while entries come, and applies it when somebody waits for it."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

from kvnode.base import limits
from kvnode.machine.passing import is_passing
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_trio, put, read, until, value_of, write
from tests.unit.node.queue.test_delivery import Listener, enqueue, operation, pass_one

WRITES_COUNT = 40


async def transactions(trio: Trio) -> tuple[int, int]:
    """State transactions of a follower, and of the leader, for one write after another."""
    leader, follower, _ = await trio.leader_and_followers()
    stats = [trio.node(server).stats for server in (follower, leader)]
    before = [found.apply_ms.count for found in stats]
    for number in range(WRITES_COUNT):
        await trio.ask(leader, write(put(b"k%d" % number))).write()
    await trio.everywhere()
    one, other = (found.apply_ms.count - count for found, count in zip(stats, before, strict=True))
    return one, other


@on_trio
async def test_a_followers_transactions_hold_many_entries(trio: Trio) -> None:
    followers, leaders = await transactions(trio)
    assert leaders >= WRITES_COUNT
    assert followers <= leaders // 2


@on_trio
async def test_the_last_of_a_burst_is_applied_soon(trio: Trio) -> None:
    leader, follower, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    wanted = trio.node(leader).raft.commit
    within_s = (limits.COMMIT_NOTICE_DELAY_MS + limits.APPLY_DELAY_MS + 15) / 1_000
    await until(lambda: trio.node(follower).applied_index >= wanted, within_s, "not applied in time")


@on_trio
async def test_a_read_that_waits_for_a_versionstamp_is_not_kept_waiting(trio: Trio) -> None:
    leader, follower, _ = await trio.leader_and_followers()
    for number in range(5):
        stamp = await trio.put(leader, b"k", b"%d" % number)
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    found = await trio.ask(follower, read(b"k", eventual=True, min_versionstamp=stamp)).read()
    assert value_of(found) == b"4"
    assert loop.time() - asked_at <= 0.030


async def one_that_passes(trio: Trio) -> tuple[list[Server], int]:
    """Leader and followers, and an entry in which a message only passes through, committed everywhere."""
    leader, *followers = await trio.leader_and_followers()
    listener = Listener(trio, leader, credit=5)
    await pass_one(trio, leader, listener)
    await trio.everywhere()
    await trio.ask(leader, operation(enqueue(b"m"))).write()
    wanted = trio.node(leader).raft.commit
    everyone = [leader, *followers]
    await until(lambda: all(trio.node(server).raft.commit >= wanted for server in everyone), 1)
    assert is_passing(trio.node(leader).log.entries(wanted, wanted + 1, 1_000)[0])
    return everyone, wanted


def behind(trio: Trio, servers: list[Server], wanted: int) -> list[bool]:
    return [trio.node(server).applied_index < wanted for server in servers]


@on_trio
async def test_entries_in_which_messages_pass_gather_longer_and_not_for_ever(trio: Trio) -> None:
    everyone, wanted = await one_that_passes(trio)
    await asyncio.sleep((limits.APPLY_DELAY_MS + 10) / 1_000)
    assert behind(trio, everyone, wanted) == [True] * 3
    await asyncio.sleep(limits.PASSING_APPLY_DELAY_MS / 1_000)
    assert behind(trio, everyone, wanted) == [False] * 3


@on_trio
async def test_another_write_takes_them_along_at_once(trio: Trio) -> None:
    everyone, wanted = await one_that_passes(trio)
    assert behind(trio, everyone, wanted) == [True] * 3
    await trio.put(everyone[0], b"k")
    within_s = (limits.COMMIT_NOTICE_DELAY_MS + limits.APPLY_DELAY_MS + 15) / 1_000
    await until(lambda: not any(behind(trio, everyone, wanted + 1)), within_s, "not applied in time")


@on_trio
async def test_a_strong_read_waits_for_none_of_it(trio: Trio) -> None:
    everyone, wanted = await one_that_passes(trio)
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    await trio.get(everyone[0], b"k")
    assert loop.time() - asked_at <= 0.030
    assert not behind(trio, everyone[:1], wanted)[0]


@on_trio
async def test_a_new_leader_begins_with_all_of_it_applied(trio: Trio) -> None:
    everyone, wanted = await one_that_passes(trio)
    trio.cut(everyone[0])
    await until(lambda: any(trio.node(server).proposals.resolving for server in everyone[1:]), 10)
    (leader,) = [server for server in everyone[1:] if trio.node(server).proposals.resolving]
    assert not behind(trio, [leader], wanted)[0]


@on_trio
async def test_no_timer_is_asked_when_it_is_due(trio: Trio) -> None:
    """uvloop gives a handle without `when` for a timer that is due within a millisecond."""

    def refuse(_self: asyncio.TimerHandle) -> float:
        raise AttributeError("when")

    with patch.object(asyncio.TimerHandle, "when", refuse):
        everyone, wanted = await one_that_passes(trio)
        await trio.put(everyone[0], b"k")
        await until(lambda: not any(behind(trio, everyone, wanted + 1)), 1)
