"""A follower lets what is committed gather while entries come, and applies it when somebody waits for it."""

from __future__ import annotations

import asyncio

from kvnode.base import limits
from tests.unit.node.cluster import Trio, on_trio, put, read, until, value_of, write

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
