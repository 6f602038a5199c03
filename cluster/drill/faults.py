"""What befalls the cluster: each lasts as long as its block, and is healed behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from cluster.drill.stage import Stage

Fault = Callable[[Stage], AbstractAsyncContextManager[None]]
Choose = Callable[[Stage], Sequence[str]]


def leader(stage: Stage) -> list[str]:
    """The leader's data center."""
    return [stage.cluster.wait_leader()]


def follower(stage: Stage) -> list[str]:
    """A data center of the primary region that does not lead."""
    return [_beside(stage, stage.cluster.wait_leader())]


def node(region: int, number: int) -> Choose:
    """A replica's data center: `number` in the replica region `region`, both from 0."""
    return lambda stage: [stage.nodes_in(stage.away[region])[number]]


def region(number: int) -> Choose:
    """All data centers of a replica region."""
    return lambda stage: stage.nodes_in(stage.away[number])


def all_replicas(stage: Stage) -> list[str]:
    """Every data center outside the primary region."""
    return [name for away in stage.away for name in stage.nodes_in(away)]


def primary(stage: Stage) -> list[str]:
    """All data centers of the primary region."""
    return stage.nodes_in(stage.home)


def majority(stage: Stage) -> list[str]:
    """Two data centers of the primary region, the leader's among them."""
    leading = stage.cluster.wait_leader()  # one look: after two the same node might be named twice
    return [leading, _beside(stage, leading)]


def _beside(stage: Stage, leading: str) -> str:
    return next(name for name in stage.nodes_in(stage.home) if name != leading)


@asynccontextmanager
async def nothing(stage: Stage) -> AsyncIterator[None]:
    """Nothing befalls it."""
    del stage
    yield


def killed(choose: Choose) -> Fault:
    """kill -9."""

    @asynccontextmanager
    async def fault(stage: Stage) -> AsyncIterator[None]:
        names = await asyncio.to_thread(choose, stage)
        for name in names:
            await asyncio.to_thread(stage.cluster.kill, name)
        try:
            yield
        finally:
            await asyncio.to_thread(stage.cluster.restart_elsewhere, names)

    return fault


def frozen(choose: Choose) -> Fault:
    """SIGSTOP: connections stay open and nobody answers."""

    @asynccontextmanager
    async def fault(stage: Stage) -> AsyncIterator[None]:
        names = await asyncio.to_thread(choose, stage)
        for name in names:
            stage.cluster.pause(name)
        try:
            yield
        finally:
            for name in names:
                stage.cluster.resume(name)

    return fault


def cut_off(choose: Choose) -> Fault:
    """Nothing passes to or from these data centers, neither nodes nor clients."""

    @asynccontextmanager
    async def fault(stage: Stage) -> AsyncIterator[None]:
        names = await asyncio.to_thread(choose, stage)
        pairs = await asyncio.to_thread(stage.cluster.wan.isolate, *names)
        try:
            yield
        finally:
            await asyncio.to_thread(stage.cluster.wan.heal, pairs)

    return fault


def cut_between(one: int, other: int) -> Fault:
    """Nothing passes between two regions (0 = the primary one)."""

    @asynccontextmanager
    async def fault(stage: Stage) -> AsyncIterator[None]:
        some, others = (_sites(stage, number) for number in (one, other))
        pairs = await asyncio.to_thread(stage.cluster.wan.cut_between, some, others)
        try:
            yield
        finally:
            await asyncio.to_thread(stage.cluster.wan.heal, pairs)

    return fault


def flapping(one: int, other: int, period_s: float = 0.5) -> Fault:
    """The way between two regions is cut and healed in turn."""
    cut = cut_between(one, other)

    async def flap(stage: Stage, over: asyncio.Event) -> None:
        while not over.is_set():
            async with cut(stage):
                await _within(over, period_s)
            await _within(over, period_s)

    @asynccontextmanager
    async def fault(stage: Stage) -> AsyncIterator[None]:
        over = asyncio.Event()
        task = asyncio.ensure_future(flap(stage, over))
        try:
            yield
        finally:
            over.set()  # not cancelled: a cut that is being made in its thread would never be healed
            await task

    return fault


async def _within(event: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until the event."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _sites(stage: Stage, number: int) -> list[str]:
    name = (stage.home, *stage.away)[number]
    return [*stage.nodes_in(name), stage.cluster.clients_site(name)]
