"""Why nothing is taken, told once in a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kvnode.base import limits
from kvnode.node.push.outcomes import Outcomes

INTERVAL_S = 0.02


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(limits, "PUSH_NOTE_INTERVAL_MS", INTERVAL_S * 1_000)
    return []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(INTERVAL_S / 4)


async def test_the_outcomes_of_an_interval_are_told_together(told: list[str]) -> None:
    outcomes = Outcomes(told.append)
    for number in range(100):
        outcomes.failed(f"failure {number}")
    assert told == []
    await until(lambda: told == ["failure 99"])
    outcomes.failed("again")
    await until(lambda: told == ["failure 99", "again"])


async def test_a_receiver_that_takes_some_is_no_trouble(told: list[str]) -> None:
    outcomes = Outcomes(told.append)
    outcomes.failed("now and then")
    outcomes.succeeded()
    await until(lambda: told == [""])
    await asyncio.sleep(3 * INTERVAL_S)
    assert told == [""]


async def test_a_failure_right_behind_a_success_is_told_though_nothing_follows(told: list[str]) -> None:
    outcomes = Outcomes(told.append)
    outcomes.succeeded()
    outcomes.failed("it is gone now")
    await until(lambda: told == ["", "it is gone now"])


async def test_what_is_forgotten_is_not_told(told: list[str]) -> None:
    outcomes = Outcomes(told.append)
    outcomes.succeeded()
    outcomes.forget()
    outcomes.failed("after it")
    await until(lambda: told == ["after it"])
    outcomes.failed("before the end")
    outcomes.forget()
    await asyncio.sleep(3 * INTERVAL_S)
    assert told == ["after it"]
