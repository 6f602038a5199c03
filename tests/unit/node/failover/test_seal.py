"""The seal of a planned move, and the leader that writes it: committed, overwritten, or not known yet."""

from __future__ import annotations

import asyncio
import random

from kvnode.base.errors import OutcomeUnknown, Unavailable
from kvnode.node.failover.participant import question
from kvnode.node.failover.plan import Wishes
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_regions, until
from tests.unit.node.failover.test_failover import in_epoch, ready, regions, vouch


def slow_disk(server: Server, sync_s: float) -> None:
    def seconds(_source: random.Random) -> float:
        return sync_s

    server.disk.sync_seconds = seconds


def keep_the_seal(trio: Trio, leader: Server) -> None:
    """From the moment it has sealed, no other voter hears of it."""
    own_id, raft = leader.member.node_id, trio.node(leader).raft
    trio.wire.holds = lambda source, _target, _batch: source == own_id and raft.sealed


def lose_what_was_kept(trio: Trio) -> None:
    trio.wire.held.clear()
    trio.wire.release()


async def seal(trio: Trio, leader: Server) -> BaseException | None:
    """Have it seal its epoch for r2; what it raises."""
    _, replicas = regions(trio)
    node = trio.node(leader)
    plan = await trio.within(replicas[0], trio.node(replicas[0]).coordinator.prepare_move("r2"))
    request = question(node.settings, node.node_id, plan.epoch, plan.ballot, "r2")
    request.seal.voter_ids.extend(server.member.node_id for server in replicas)
    try:
        await trio.within(leader, node.failover.answer(request))
    except (OutcomeUnknown, Unavailable) as error:
        return error
    return None


@on_regions
async def test_a_leader_whose_disk_is_slower_than_the_next_epoch_is_elected_has_sealed(trio: Trio) -> None:
    """The others commit the seal and go on behind it before this node may apply it: no loss of leadership."""
    primary, replicas = await ready(trio)
    leader = primary[0]  # the replicas take the changelog from others
    await trio.within(leader, trio.node(await trio.leading()).transfer_leadership(leader.member.node_id))
    await trio.everywhere()
    assert trio.node(leader).is_leader
    slow_disk(leader, 1.5)
    plan, _ = await trio.within(leader, trio.node(leader).coordinator.move("r2"))
    assert plan.epoch == 2
    await in_epoch(trio, [*primary, *replicas], 2)


@on_regions
async def test_a_seal_that_another_leader_overwrites_has_changed_nothing(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    leader = await trio.leading()
    others = [server for server in primary if server is not leader]
    keep_the_seal(trio, leader)
    asked = asyncio.ensure_future(seal(trio, leader))
    await until(lambda: any(trio.node(server).is_leader for server in others), 10, "nobody else was elected")
    lose_what_was_kept(trio)
    error = await asked
    assert isinstance(error, Unavailable) and error.code == "LEADERSHIP_LOST" and error.not_applied, error
    assert "nothing was changed" in error.message
    await trio.put(others[0], b"still")
    await in_epoch(trio, [*primary, *replicas], 1)


@on_regions
async def test_a_seal_that_nobody_confirms_may_still_be_committed(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    leader = await trio.leading()
    for server in primary:
        if server is not leader:
            trio.crash(server)
    error = await seal(trio, leader)
    assert isinstance(error, OutcomeUnknown) and error.code == "FAILOVER_INCOMPLETE", error
    for server in primary:
        if server is not leader:
            trio.start(server)
    await in_epoch(trio, [*primary, *replicas], 2)


@on_regions
async def test_a_move_whose_leader_is_replaced_before_its_seal_is_committed_goes_on_with_the_next_one(
    trio: Trio,
) -> None:
    primary, replicas = await ready(trio)
    leader = await trio.leading()
    others = [server for server in primary if server is not leader]
    keep_the_seal(trio, leader)
    asked = asyncio.ensure_future(trio.within(replicas[0], trio.node(replicas[0]).coordinator.move("r2")))
    await until(lambda: any(trio.node(server).is_leader for server in others), 10, "nobody else was elected")
    assert trio.node(leader).raft.sealed
    lose_what_was_kept(trio)
    plan, _ = await asked
    assert plan.epoch == 2 and plan.source.node_id in [server.member.node_id for server in others]
    await in_epoch(trio, [*primary, *replicas], 2)


@on_regions
async def test_a_move_whose_leader_was_cut_off_by_a_failover_does_not_move_what_that_made(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    leader = await trio.leading()
    keep_the_seal(trio, leader)
    mover = next(server for server in primary if server is not leader)
    asked = asyncio.ensure_future(trio.refused(mover, trio.node(mover).coordinator.move("r2")))
    await until(lambda: trio.node(leader).raft.sealed, 10, "it does not seal")
    for server in primary:
        trio.cut(server)
    vouch(trio)
    forced = Wishes("r2", primary_is_down=True)
    await trio.within(replicas[1], trio.node(replicas[1]).coordinator.execute(forced))
    trio.heal()
    lose_what_was_kept(trio)
    error = await asked
    assert error.code == "FAILOVER_SUPERSEDED", error
    await in_epoch(trio, [*primary, *replicas])


@on_regions
async def test_what_another_leader_puts_in_its_place_counts_once_it_is_committed(trio: Trio) -> None:
    """Till then a third one, which holds the seal, might be elected by those who have heard of neither."""
    primary, replicas = await ready(trio)
    leader = await trio.leading()
    raft, own_id = trio.node(leader).raft, leader.member.node_id
    keep_the_seal(trio, leader)
    asked = asyncio.ensure_future(seal(trio, leader))
    await until(lambda: raft.sealed, 10, "it does not seal")
    index, term = raft.history.sealed_at, raft.term
    trio.wire.holds = lambda source, _target, _batch: source == own_id
    others = [server for server in primary if server is not leader]
    await until(lambda: any(trio.node(server).is_leader for server in others), 10, "nobody else was elected")
    follower = next(server for server in others if not trio.node(server).is_leader)
    trio.crash(follower)
    await until(lambda: raft.log.term(index) != term, 5, "the seal is not overwritten")
    await asyncio.sleep(0.2)
    assert raft.log.commit < index and not asked.done()
    lose_what_was_kept(trio)
    trio.start(follower)
    error = await asked
    assert isinstance(error, Unavailable) and error.code == "LEADERSHIP_LOST", error
    await in_epoch(trio, [*primary, *replicas], 1)
