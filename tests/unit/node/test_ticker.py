"""What a tick does, and what it makes of a gap."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.node.ticker import Ticker
from tests.unit.node.fakes import HandClock

TICK_MS, ELECTION_TICKS = 50, 10


async def ticked(monkeypatch: pytest.MonkeyPatch, *pauses_ms: int, damage: str | None = None) -> list[str]:
    """What is called, in order, by the ticks of a node that wakes after these pauses."""
    clock = HandClock()
    called: list[str] = []
    left = list(pauses_ms)

    async def sleep(seconds: float) -> None:
        assert seconds == TICK_MS / 1_000
        if not left:
            raise asyncio.CancelledError
        clock.pass_ms(left.pop(0))

    def note(name: str) -> Any:
        return lambda *_: called.append(name)

    raft = SimpleNamespace(tick=note("tick"), clock_gap=note("gap"), own_term_committed=False)
    settings = SimpleNamespace(tick_ms=TICK_MS, election_ticks=ELECTION_TICKS)
    lags = SimpleNamespace(observe=lambda _: None)
    context: Any = SimpleNamespace(
        settings=settings,
        clock=clock,
        stats=SimpleNamespace(loop_lag_ms=lags),
        log=SimpleNamespace(damage=damage),
        raft=raft,
        wake=lambda: None,
    )
    nothing: Any = SimpleNamespace(sweep=lambda: None, tick=lambda: None, tell_held=lambda: None)
    timekeeper: Any = SimpleNamespace(judge=note("judge"))
    operations: Any = SimpleNamespace(sweep=note("sweep"), proposals=SimpleNamespace(tick=lambda: None))
    ticker = Ticker(context, timekeeper, nothing, operations, nothing, nothing, nothing, lambda: None)
    monkeypatch.setattr("kvnode.node.ticker.asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        await ticker.run()
    return called


async def test_a_frozen_node_knows_it_before_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap is looked at before the tick and before anything is answered; the next tick begins anew."""
    election_ms = TICK_MS * ELECTION_TICKS
    usual = ["judge", "tick", "sweep"]
    assert await ticked(monkeypatch, TICK_MS, election_ms) == usual * 2
    assert await ticked(monkeypatch, election_ms + 1, TICK_MS) == ["gap", *usual, *usual]


async def test_with_a_damaged_log_it_takes_no_part_and_answers_what_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await ticked(monkeypatch, TICK_MS, 10_000, damage="by the test") == ["sweep", "sweep"]
