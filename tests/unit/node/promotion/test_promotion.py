"""The primary lease and ballots on production nodes in virtual time: three regions, of three, two and two nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from kvnode.codec.membership import MemberRole
from kvnode.node.node import Node
from tests.simulation.cluster import Server
from tests.simulation.failover_observer import EpochObserver
from tests.simulation.promotion import answers_watched
from tests.unit.node.cluster import Trio, on_three_regions, put, read, until, write

LEASE_MS = 2_000


@contextmanager
def watched(trio: Trio) -> Iterator[EpochObserver]:
    assert isinstance(trio.observer, EpochObserver)
    with answers_watched(trio.observer, lambda: list(trio.servers.values())):
        yield trio.observer


def regions(trio: Trio) -> tuple[list[Server], list[Server], list[Server]]:
    servers = list(trio.servers.values())
    return servers[:3], servers[3:5], servers[5:]


def cut(trio: Trio, ones: list[Server]) -> None:
    """Cut these off from all others, not from one another."""
    own = {server.member.node_id for server in ones}
    others = set(trio.servers) - own
    trio.wire.cuts |= {pair for a in own for b in others for pair in ((a, b), (b, a))}


async def held(trio: Trio) -> Node:
    """The leader, once it holds the lease."""
    leader = trio.node(await trio.leading())
    await until(lambda: leader.promotion.is_held, 5, "the lease is not granted")
    return leader


async def promoted(trio: Trio, servers: list[Server], within_s: float = 20) -> Node:
    """The leader of a later epoch, among these, once it may answer."""

    def found() -> Node | None:
        nodes = [server.node for server in servers if server.node is not None]
        leading = [n for n in nodes if n.is_leader and n.epoch > 1 and n.promotion.is_held]
        return leading[0] if leading else None

    await until(lambda: found() is not None, within_s, "no region was promoted")
    node = found()
    assert node is not None
    return node


@on_three_regions(LEASE_MS)
async def test_the_lease_is_granted_by_all_and_renewed(trio: Trio) -> None:
    leader = await held(trio)
    await trio.put(await trio.leading(), b"k")
    await asyncio.sleep(10)
    assert leader.promotion.remaining_ms > LEASE_MS / 2 and leader.is_leader and leader.epoch == 1
    status = leader.status()
    assert status.primary_lease.lease_ms == LEASE_MS and not status.problems, status.problems


@on_three_regions(LEASE_MS)
async def test_the_primary_region_falls_and_another_is_promoted_by_itself(trio: Trio) -> None:
    primary, europe, asia = regions(trio)
    with watched(trio) as observer:
        await held(trio)
        await trio.put(primary[0], b"kept")
        await trio.everywhere()
        waiting = None
        for server in primary:
            trio.crash(server)
        waiting = trio.ask(asia[1], write(put(b"held"), timeout_ms=60_000))
        began = asyncio.get_running_loop().time()
        node = await promoted(trio, [*europe, *asia])
        assert asyncio.get_running_loop().time() - began < 3 * LEASE_MS / 1_000 + 2
        assert (await waiting.write()).versionstamp[:2] == node.epoch.to_bytes(2, "big")
        assert await trio.get(europe[0], b"kept") == b"v"
        assert len(observer.balloted & observer.begun) == 1
        for server in primary:
            trio.start(server)
        back = [trio.servers[s.member.node_id] for s in primary]
        await until(lambda: all(_epoch(s) == node.epoch for s in back), 30, "not back")
        assert {node.membership.get(s.member.node_id).role for s in back} == {MemberRole.REPLICA}  # type: ignore[union-attr]
        await until(lambda: not node.status().problems, 10, str(node.status().problems))
        assert node.membership.primary_lease_ms == LEASE_MS


@on_three_regions(LEASE_MS)
async def test_a_primary_that_is_cut_off_stops_within_the_lease(trio: Trio) -> None:
    primary, europe, asia = regions(trio)
    with watched(trio):
        leader = await held(trio)
        server = trio.servers[leader.node_id]
        await trio.put(server, b"k")
        await trio.everywhere()
        cut(trio, primary)
        await asyncio.sleep(LEASE_MS / 1_000)
        assert leader.is_leader and not leader.promotion.is_held and leader.raft.own_term_committed
        late = trio.ask(server, write(put(b"late"), timeout_ms=3_000))
        strong = trio.ask(server, read(b"k", timeout_ms=3_000))
        fresh = trio.ask(server, read(b"k", eventual=True))
        assert (await late.error()).code == "PRIMARY_LEASE_LOST" and (await strong.error()).code == "PRIMARY_LEASE_LOST"
        assert (await late.error()).not_applied
        assert (await fresh.read()).age_ms >= 0
        assert any("lease has run out" in problem for problem in leader.status().problems)
        node = await promoted(trio, [*europe, *asia])
        await trio.put(europe[0], b"new")
        old = await trio.ask(server, read(b"k", eventual=True)).read()
        assert old.age_ms > 1_000, "an old state does not claim to be fresh"
        trio.heal()
        await until(lambda: all(_epoch(s) == node.epoch for s in primary), 30, "the old side does not follow")
        assert await trio.get(primary[2], b"new") == b"v"


@on_three_regions(LEASE_MS)
async def test_what_was_committed_is_not_answered_after_the_lease_and_is_when_it_is_held_again(trio: Trio) -> None:
    _, europe, asia = regions(trio)
    leader = await held(trio)
    server = trio.servers[leader.node_id]
    for other in (*europe, *asia):
        trio.crash(other)
    await until(lambda: not leader.promotion.is_held, 5)
    leader.gateway._unleased = lambda: ""  # as if they had been taken in a moment before
    asked = trio.ask(server, write(put(b"k"), timeout_ms=20_000))
    strong = trio.ask(server, read(b"k", timeout_ms=20_000))
    brief = trio.ask(server, write(put(b"brief"), timeout_ms=1_000))
    await asyncio.sleep(3)
    assert not asked.done and not strong.done, (asked.results, strong.results)
    assert leader.promotion.gate.waiting_count == 2
    error = await brief.error()
    assert error.code == "DEADLINE_EXCEEDED" and not error.not_applied, "its outcome is unknown"
    for other in (*europe, *asia):
        trio.start(other)
    await until(lambda: leader.promotion.is_held, 5)
    assert (await asked.write()).versionstamp and (await strong.read()).strongly_consistent
    assert leader.epoch == 1


def _epoch(server: Server) -> int:
    return 0 if server.node is None else server.node.epoch


@on_three_regions(LEASE_MS)
async def test_one_other_region_is_enough_for_the_primary_and_none_is_promoted(trio: Trio) -> None:
    _, _, asia = regions(trio)
    with watched(trio) as observer:
        leader = await held(trio)
        cut(trio, asia)
        await asyncio.sleep(10)
        assert leader.promotion.is_held and leader.epoch == 1 and not observer.balloted
        trio.heal()
        await trio.everywhere()
        assert not any(trio.node(server).raft.promised_epoch for server in trio.servers.values())


@on_three_regions(LEASE_MS)
async def test_a_node_that_starts_waits_before_it_votes(trio: Trio) -> None:
    _, europe, _ = regions(trio)
    await held(trio)
    trio.crash(europe[0])
    trio.cut(europe[0])
    trio.start(europe[0])
    again = trio.servers[europe[0].member.node_id]
    await until(lambda: again.node is not None)
    wait_ms = trio.node(again).promotion.ballot_wait_ms()
    assert LEASE_MS * 0.9 < wait_ms <= LEASE_MS
    await asyncio.sleep(LEASE_MS / 1_000 * 1.05)
    assert trio.node(again).promotion.ballot_wait_ms() == 0


@on_three_regions(LEASE_MS)
async def test_a_node_that_has_granted_refuses_an_automatic_promise(trio: Trio) -> None:
    _, europe, _ = regions(trio)
    await held(trio)
    node = trio.node(europe[0])
    reports = await trio.within(europe[0], node.coordinator.survey())
    refused = await trio.refused(europe[0], node.coordinator.promote(reports))
    assert refused.code == "FAILOVER_PRIMARY_ALIVE"
    for report in reports:
        report.leads = False
    refused = await trio.refused(europe[0], node.coordinator.promote(reports))
    assert refused.code == "BALLOT_REFUSED" and "lease" in refused.message
    assert not any(trio.node(server).raft.promised_epoch for server in trio.servers.values())


@on_three_regions(LEASE_MS)
async def test_the_setting_ends_when_the_leader_is_told_so_and_comes_back_when_all_agree(trio: Trio) -> None:
    await held(trio)
    for server in trio.servers.values():
        await _restart(trio, server, 0)
    await until(lambda: all(n.membership.primary_lease_ms == 0 for n in _nodes(trio)), 30, "the lease does not end")
    await trio.put(await trio.leading(), b"without")
    servers = list(trio.servers.values())
    for server in servers[:-1]:
        await _restart(trio, server, LEASE_MS)
    await asyncio.sleep(5)
    leader = trio.node(await trio.leading())
    assert leader.membership.primary_lease_ms == 0
    assert any("node7' is configured with automatic_promotion off" in p for p in leader.status().problems)
    await _restart(trio, servers[-1], LEASE_MS)
    await until(lambda: all(n.membership.primary_lease_ms == LEASE_MS for n in _nodes(trio)), 30, "it does not begin")
    await held(trio)
    await trio.put(await trio.leading(), b"with")


async def _restart(trio: Trio, server: Server, lease_ms: int) -> None:
    trio.crash(server)
    server.wished_lease_ms = lease_ms
    trio.start(server)
    await until(lambda: server.node is not None and server.node.leader_id > 0, 20, "no leader")


def _nodes(trio: Trio) -> list[Node]:
    return [trio.node(server) for server in trio.servers.values()]


@on_three_regions(LEASE_MS)
async def test_a_second_change_of_members_waits_until_the_first_is_known(trio: Trio) -> None:
    primary, europe, asia = regions(trio)
    leader = await held(trio)
    server = trio.servers[leader.node_id]
    cut(trio, primary)
    await trio.within(server, leader.members.remove(asia[1].member.node_id, force=False))
    refused = await trio.refused(server, leader.members.remove(asia[0].member.node_id, force=False))
    assert refused.code == "MEMBERSHIP_NOT_SPREAD"
    for other in (asia[0], europe[0], europe[1]):  # an operator vouches that they are gone
        await trio.within(server, leader.members.remove(other.member.node_id, force=True))
    await until(lambda: not leader.promotion.is_required, 10, "one region alone needs no lease")
    await trio.put(server, b"alone")


@on_three_regions(LEASE_MS)
async def test_a_ballot_that_was_lost_half_way_is_ended_by_the_leader(trio: Trio) -> None:
    """Nodes that have promised an epoch which nobody began come back with the next one, which the primary begins."""
    _, _, asia = regions(trio)
    await held(trio)
    await trio.put(await trio.leading(), b"kept")
    for server in asia:
        server.process.context.run(trio.node(server).raft.promise, 7, 99)
    await until(lambda: all(trio.node(s).raft.durable_promise[0] == 7 for s in asia), 5)
    await until(lambda: all(n.epoch == 8 and n.leader_id for n in _nodes(trio)), 60, "they do not come back")
    leader = await held(trio)
    assert leader.member.region == "r1" and len(leader.membership.voters) == 3
    assert await trio.get(asia[1], b"kept") == b"v"


@on_three_regions(LEASE_MS)
async def test_a_ballot_lost_by_so_many_that_the_primary_has_no_lease_is_followed_by_another(trio: Trio) -> None:
    primary, europe, asia = regions(trio)
    with watched(trio):
        await held(trio)
        await trio.put(primary[0], b"kept")
        await trio.everywhere()
        for server in (*europe, *asia):
            server.process.context.run(trio.node(server).raft.promise, 7, 99)
        node = await promoted(trio, [*europe, *asia], 40)
        assert node.epoch > 7 and await trio.get(primary[1], b"kept") == b"v"


@on_three_regions(LEASE_MS)
async def test_a_planned_move_takes_the_lease_along(trio: Trio) -> None:
    primary, europe, asia = regions(trio)
    with watched(trio) as observer:
        await held(trio)
        await trio.put(primary[0], b"kept")
        plan, _ = await trio.within(europe[0], trio.node(europe[0]).coordinator.move("r2"))
        node = await promoted(trio, europe)
        assert node.epoch == plan.epoch == 2 and not observer.balloted
        assert await trio.get(primary[1], b"kept") == b"v" and node.membership.primary_lease_ms == LEASE_MS
        for server in europe:
            trio.crash(server)
        again = await promoted(trio, [*primary, *asia])
        assert again.epoch > 2 and await trio.get(asia[0], b"kept") == b"v"
