"""Failovers that are started at the same time: one goes through, and the others are told why they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kvnode.base.errors import KvError
from kvnode.codec.epoch import epoch_entry
from kvnode.node.failover.coordinator import Coordinator
from kvnode.node.failover.participant import entry_to_wire
from kvnode.node.failover.plan import Plan, Report, Wishes
from kvnode.proto.kv.internal.v1 import failover_pb2
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_regions, until
from tests.unit.node.failover.test_failover import DOWN, UNFENCED, in_epoch, lose_the_primary, ready, tell

WAN_MS = (5.0, 60.0)  # so that the questions of two coordinators overtake one another
DELAYS_S = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the second one
REFUSALS = {"FAILOVER_IN_PROGRESS", "FAILOVER_SUPERSEDED"}

Work = Callable[[Coordinator], Coroutine[Any, Any, Any]]
Outcome = Plan | tuple[Plan, int] | KvError


def force(region: str) -> Work:
    return lambda coordinator: coordinator.execute(Wishes(region, force=True))


def move(region: str) -> Work:
    return lambda coordinator: coordinator.move(region)


async def outcome(trio: Trio, server: Server, work: Work, delay_s: float) -> Outcome:
    """What becomes of one failover, begun after so long."""
    await asyncio.sleep(delay_s)
    try:
        return await trio.within(server, work(trio.node(server).coordinator))  # type: ignore[no-any-return]
    except KvError as error:
        return error


async def both(trio: Trio, first: tuple[Server, Work], second: tuple[Server, Work], delay_s: float) -> list[Outcome]:
    """What becomes of two that are started at almost the same time."""
    return list(await asyncio.gather(outcome(trio, *first, 0.0), outcome(trio, *second, delay_s)))


def refusals(outcomes: list[Outcome]) -> list[KvError]:
    return [found for found in outcomes if isinstance(found, KvError)]


def with_delay(delay_s: float, story: Callable[[Trio, float], Awaitable[None]], directory: Path) -> None:
    async def told(trio: Trio) -> None:
        await story(trio, delay_s)

    on_regions(told)(directory)


async def _to_one_region(trio: Trio, delay_s: float) -> None:
    primary, (one, other) = await ready(trio)
    trio.wire.weather.latency_ms = WAN_MS
    outcomes = await both(trio, (one, force("r2")), (other, force("r2")), delay_s)
    await _one_went_through(trio, outcomes, [*primary, one, other])


async def _to_two_regions(trio: Trio, delay_s: float) -> None:
    primary, (one, other) = await ready(trio)
    leader = await trio.leading()
    voter = next(server for server in primary if server is not leader)
    trio.cut(leader)  # so that the primary region may be named as well
    await asyncio.sleep(3)
    trio.wire.weather.latency_ms = WAN_MS
    before = trio.leader()
    region = "r1" if before is None else "r2"
    outcomes = await both(trio, (one, force("r2")), (voter, force(region)), delay_s)
    trio.heal()
    await _one_went_through(trio, outcomes, [*primary, one, other])


async def _one_went_through(trio: Trio, outcomes: list[Outcome], servers: list[Server]) -> None:
    refused = refusals(outcomes)
    assert len(refused) == 1, outcomes
    assert refused[0].code in REFUSALS and refused[0].not_applied, repr(refused[0])
    plan = next(found for found in outcomes if isinstance(found, Plan))
    await in_epoch(trio, servers, plan.epoch)
    await trio.put(servers[0], b"together")


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_of_two_failovers_to_one_region_one_goes_through_and_the_other_changes_nothing(
    delay_s: float, tmp_path: Path
) -> None:
    with_delay(delay_s, _to_one_region, tmp_path)


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_of_two_failovers_from_two_regions_one_goes_through_and_the_other_changes_nothing(
    delay_s: float, tmp_path: Path
) -> None:
    with_delay(delay_s, _to_two_regions, tmp_path)


async def _two_moves(trio: Trio, delay_s: float) -> None:
    primary, (one, other) = await ready(trio)
    trio.wire.weather.latency_ms = WAN_MS
    outcomes = await both(trio, (one, move("r2")), (other, move("r2")), delay_s)
    refused = refusals(outcomes)
    assert len(refused) == 1 and refused[0].code in {*REFUSALS, "REGION_IS_PRIMARY"}, outcomes
    assert refused[0].not_applied
    await in_epoch(trio, [*primary, one, other], 2)


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_of_two_planned_moves_one_goes_through_and_the_other_changes_nothing(delay_s: float, tmp_path: Path) -> None:
    with_delay(delay_s, _two_moves, tmp_path)


@on_regions
async def test_who_is_refused_after_the_first_promise_asks_nobody_further_and_says_so(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    coordinator = trio.node(replicas[0]).coordinator
    others = await trio.within(replicas[0], coordinator.prepare(Wishes("r2", force=True)))
    survey = coordinator.survey

    async def then_another_begins() -> list[Report]:
        reports = await survey()
        await tell(trio, primary[1], others, promise=failover_pb2.FailoverPromise(voter_ids=[4, 5]))
        return reports

    coordinator.survey = then_another_begins  # type: ignore[method-assign]
    refused = await trio.refused(replicas[0], coordinator.execute(Wishes("r2", force=True)))
    assert refused.code == "FAILOVER_IN_PROGRESS" and not refused.not_applied
    assert "promised epoch 2 to it" in refused.message and "whether they follow" in refused.message
    assert [trio.node(server).raft.promised_epoch for server in (*primary, *replicas)] == [2, 2, 0, 0, 0]


@on_regions
async def test_a_coordinator_that_is_slow_and_not_dead_begins_nothing_beside_another(trio: Trio) -> None:
    """Those who were to vote for it keep its promise, and are not to be reached by the second one any more."""
    primary, replicas = await ready(trio)
    plan = await trio.within(replicas[0], trio.node(replicas[0]).coordinator.prepare(Wishes("r2", force=True)))
    for server in (*primary, *replicas):
        await tell(trio, server, plan, promise=failover_pb2.FailoverPromise(voter_ids=[4, 5]))
    await asyncio.sleep(11)
    coordinator = trio.node(primary[0]).coordinator
    survey = coordinator.survey

    async def then_cut() -> list[Report]:
        reports = await survey()
        for server in replicas:
            trio.cut(server)
        for one, other in (replicas, replicas[::-1]):
            trio.wire.cuts.discard((one.member.node_id, other.member.node_id))
        return reports

    coordinator.survey = then_cut  # type: ignore[method-assign]
    refused = await trio.refused(primary[0], coordinator.execute(Wishes("r1", force=True)))
    assert refused.code == "FAILOVER_NOT_FENCED" and "'node4', 'node5'" in refused.message
    entry = epoch_entry(plan.start, trio.node(replicas[0]).raft.last_index + 1)
    for server in replicas:
        await tell(trio, server, plan, begin=failover_pb2.FailoverBegin(entry=entry_to_wire(entry), campaign=True))
    await in_epoch(trio, replicas, plan.epoch)
    await trio.put(replicas[0], b"in the first one's epoch")
    trio.heal()


@on_regions
async def test_who_has_only_heard_of_an_epoch_is_no_fence_against_it(trio: Trio) -> None:
    """The old primary comes back, hears of the epoch, and is cut off before it has any of it: it does not take over."""
    primary, replicas = await ready(trio)
    await lose_the_primary(trio, primary)
    await trio.within(replicas[0], trio.node(replicas[0]).coordinator.execute(DOWN))
    await trio.put(replicas[0], b"new")
    trio.wire.cuts |= {(far.member.node_id, near.member.node_id) for far in replicas for near in primary}
    for server in primary:
        trio.start(server)
    await until(lambda: all(server.node is not None for server in primary), 10)
    for server in primary:
        trio.node(server).epochs.heard(UNFENCED, 0, "node4")
    trio.wire.cuts |= {(near, far) for far, near in trio.wire.cuts}
    await asyncio.sleep(3)
    one = primary[0]
    refused = await trio.refused(one, trio.node(one).coordinator.execute(Wishes("r1", force=True)))
    assert refused.code == "FAILOVER_NOT_FENCED" and "'node4', 'node5'" in refused.message
    assert refused.not_applied


async def _move_and_force(trio: Trio, delay_s: float) -> None:
    primary, (one, other) = await ready(trio)
    trio.wire.weather.latency_ms = WAN_MS
    ways = [(one, move("r2")), (other, force("r2"))]
    first, second = ways if delay_s >= 0 else ways[::-1]
    outcomes = await both(trio, first, second, abs(delay_s))
    assert len(refusals(outcomes)) < 2, outcomes
    servers = [*primary, one, other]
    await until(lambda: len({trio.node(server).epoch for server in servers}) == 1)
    assert all(trio.node(server).raft.promised_epoch == trio.node(server).epoch > 1 for server in servers)
    await trio.put(servers[0], b"together")


@pytest.mark.parametrize("delay_s", [*DELAYS_S, *(-delay_s for delay_s in DELAYS_S[1:])])
def test_a_move_and_a_forced_failover_leave_nobody_behind(delay_s: float, tmp_path: Path) -> None:
    """The forced one may take the seal back, and then comes behind it."""
    with_delay(delay_s, _move_and_force, tmp_path)
