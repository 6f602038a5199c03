"""Operations gather while messages are unanswered, and never for long."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.base import limits
from kvnode.client.gathering import Gathering


async def test_a_lone_caller_never_waits() -> None:
    gathering = Gathering()
    for operation_id in range(1, 100):
        turn = asyncio.ensure_future(gathering.turn())
        await asyncio.sleep(0)
        assert turn.done()
        gathering.sent(operation_id)
        gathering.answered(operation_id)


async def test_an_answer_lets_the_next_message_go() -> None:
    gathering = _crowded()
    turn = asyncio.ensure_future(gathering.turn())
    await asyncio.sleep(0)
    assert not turn.done()
    gathering.answered(1)
    await asyncio.sleep(0)
    assert turn.done()


async def test_without_an_answer_the_wait_is_bounded() -> None:
    gathering = _crowded()
    async with asyncio.timeout(1):
        await gathering.turn()


async def test_what_comes_more_seldom_than_the_bound_never_waits() -> None:
    """Over a long way everything is unanswered for long, and nothing is gained by waiting for it."""
    gathering = _crowded()
    for operation_id in range(10, 13):
        await asyncio.sleep(2 * limits.CLIENT_GATHER_MS / 1_000)
        turn = asyncio.ensure_future(gathering.turn())
        await asyncio.sleep(0)
        assert turn.done()
        gathering.sent(operation_id)


async def test_the_bound_counts_from_the_message_before_and_not_from_the_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CLIENT_GATHER_MS", 600)
    loop = asyncio.get_running_loop()
    gathering = _crowded()
    left_s = loop.time()
    await asyncio.sleep(0.4)
    asked_s = loop.time()
    await gathering.turn()
    assert loop.time() - left_s >= 0.599
    assert loop.time() - asked_s < 0.6


async def test_an_answer_to_a_later_message_covers_those_before_it() -> None:
    gathering = _crowded()
    gathering.answered(limits.MAX_CLIENT_FLIGHTS_COUNT + 5)
    turn = asyncio.ensure_future(gathering.turn())
    await asyncio.sleep(0)
    assert turn.done()


async def test_a_new_stream_owes_nothing_to_the_old_one() -> None:
    gathering = _crowded()
    turn = asyncio.ensure_future(gathering.turn())
    await asyncio.sleep(0)
    gathering.restart()
    await asyncio.sleep(0)
    assert turn.done()


def _crowded() -> Gathering:
    gathering = Gathering()
    for operation_id in range(1, limits.MAX_CLIENT_FLIGHTS_COUNT + 1):
        gathering.sent(operation_id)
    return gathering
