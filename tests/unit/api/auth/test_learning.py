"""Rounds of catching up are shared, and none is joined late."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.api.auth.learning import Learning
from kvnode.base.errors import Unavailable


class Leader:
    def __init__(self) -> None:
        self.known = 0
        self.rounds = 0
        self.answer = asyncio.Event()
        self.error: Unavailable | None = None
        self.seen: list[int] = []

    async def learn(self) -> None:
        self.rounds += 1
        asked = self.known
        await self.answer.wait()
        if self.error is not None:
            raise self.error
        self.seen.append(asked)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_round_under_way_is_not_joined() -> None:
    leader = Leader()
    learning = Learning(leader.learn)
    early = [asyncio.ensure_future(learning.round()) for _ in range(3)]
    await settle()
    leader.known = 1
    late = [asyncio.ensure_future(learning.round()) for _ in range(3)]
    await settle()
    assert leader.rounds == 1
    leader.answer.set()
    await asyncio.gather(*early, *late)
    assert leader.seen == [0, 1]


async def test_an_error_reaches_all_who_wait_and_the_next_round_is_fresh() -> None:
    leader = Leader()
    leader.error = Unavailable("no leader")
    leader.answer.set()
    learning = Learning(leader.learn)
    results = await asyncio.gather(*(learning.round() for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3
    assert leader.rounds == 1
    leader.error = None
    await learning.round()
    gone = asyncio.ensure_future(learning.round())
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await settle()
    await learning.round()
