"""Failovers on production nodes in virtual time: what breaks off, who comes back, what is asked in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.codec.epoch import epoch_entry
from kvnode.codec.membership import MemberRole
from kvnode.codec.versionstamp import split
from kvnode.node.failover.numbers import BLOCK
from kvnode.node.failover.participant import entry_to_wire, question
from kvnode.node.failover.plan import Plan, Wishes
from kvnode.node.node import Node
from kvnode.proto.kv.internal.v1 import failover_pb2
from kvnode.storage.fork_file import read_fork
from tests.simulation.cluster import Server
from tests.simulation.failover_observer import EpochObserver
from tests.unit.node.cluster import Trio, on_regions, on_regions_apart, put, read, until, write

DOWN = Wishes("r2", primary_is_down=True)
UNFENCED = 19  # the first epoch without a fence of two voters of r2, behind three nodes of r1


def regions(trio: Trio) -> tuple[list[Server], list[Server]]:
    servers = list(trio.servers.values())
    return servers[:3], servers[3:]


async def ready(trio: Trio) -> tuple[list[Server], list[Server]]:
    """Both regions, with a key that everybody has."""
    await trio.put(await trio.leading(), b"kept")
    await trio.everywhere()
    return regions(trio)


def vouch(trio: Trio, epoch: int = UNFENCED) -> None:
    assert isinstance(trio.observer, EpochObserver)
    trio.observer.vouched.add(epoch)


async def lose_the_primary(trio: Trio, primary: list[Server]) -> None:
    vouch(trio)
    for server in primary:
        trio.crash(server)


async def lose_what_nobody_else_has(trio: Trio) -> tuple[list[Server], list[Server]]:
    """The other region has taken over without the last five keys of the primary one, which is down."""
    primary, replicas = await ready(trio)
    for server in replicas:
        trio.cut(server)
    for number in range(5):
        await trio.put(primary[0], b"lost %d" % number)
    await lose_the_primary(trio, primary)
    trio.heal()
    await trio.within(replicas[0], trio.node(replicas[0]).coordinator.execute(DOWN))
    return primary, replicas


@contextmanager
def fork_log() -> Iterator[list[str]]:
    """What nodes write to their logs about what they save and give up."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("kvnode.node.failover.fork")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


async def in_epoch(trio: Trio, servers: list[Server], epoch: int = UNFENCED) -> None:
    def there() -> bool:
        nodes = [server.node for server in servers]
        return all(node is not None and node.epoch == epoch and node.leader_id for node in nodes)

    await until(there, 30, f"not all are in epoch {epoch}")


async def tell(trio: Trio, server: Server, plan: Plan, **ask: object) -> failover_pb2.FailoverResponse:
    """One question of a coordinator."""
    node = trio.node(server)
    request = question(node.settings, node.node_id, plan.epoch, plan.ballot, plan.region)
    for name, value in ask.items():
        getattr(request, name).CopyFrom(value)
    return await trio.within(server, node.failover.answer(request))


@on_regions
async def test_the_other_region_takes_over_and_the_old_one_follows(trio: Trio) -> None:
    primary, (one, other) = await ready(trio)
    await lose_the_primary(trio, primary)
    held = trio.ask(other, write(put(b"held"), timeout_ms=60_000))
    plan = await trio.within(one, trio.node(one).coordinator.execute(DOWN))
    await in_epoch(trio, [one, other])
    for server in (one, other):
        epochs = trio.node(server).failover.report().epochs
        assert [(began.epoch, began.fork_index) for began in epochs] == [(UNFENCED, plan.end[1])]
    assert split((await held.write()).versionstamp)[:1] == (UNFENCED,) and plan.epoch == UNFENCED
    assert await trio.get(other, b"kept") == b"v"
    for server in primary:
        trio.start(server)
    await in_epoch(trio, primary)
    assert await trio.get(primary[0], b"held") == b"v"
    assert {m.role for m in trio.node(one).membership.members if m.region == "r1"} == {MemberRole.REPLICA}


@on_regions
async def test_what_only_the_old_primary_had_is_saved_and_it_begins_anew(trio: Trio) -> None:
    primary, replicas = await lose_what_nobody_else_has(trio)
    await trio.put(replicas[0], b"new")
    for server in primary:
        trio.start(server)
    await in_epoch(trio, primary)
    await trio.everywhere()
    assert await trio.get(primary[1], b"lost 0") is None and await trio.get(primary[1], b"new") == b"v"
    saved = 0
    for server in primary:
        if server.disk.exists("data/forks"):
            for name in server.disk.list_directory("data/forks"):
                file = server.disk.open(f"data/forks/{name}")
                header, entries = read_fork(file.read(0, file.size()), name)
                saved += sum(b"lost" in entry.data for entry in entries)
                assert header.epoch == 1 and header.first_index > header.fork_index
    assert saved >= 5
    digests = {trio.node(server).state.meta.digest for server in trio.servers.values()}
    await until(lambda: len({trio.node(s).state.meta.digest for s in trio.servers.values()}) == 1, 30, str(digests))


@on_regions
async def test_what_the_log_no_longer_has_of_a_fork_is_said_to_be_lost(trio: Trio) -> None:
    """The state has it, and is given up."""
    primary, replicas = await ready(trio)
    for server in replicas:
        trio.cut(server)
    lost = [await trio.put(primary[0], b"lost %d" % number, b"v" * 2_000) for number in range(30)]
    fork_index = split(lost[0])[1] - 1
    await until(lambda: all(trio.node(s).raft.log.first_index() > fork_index + 1 for s in primary), 30, "all is kept")
    await lose_the_primary(trio, primary)
    trio.heal()
    await trio.within(replicas[0], trio.node(replicas[0]).coordinator.execute(DOWN))
    with fork_log() as messages:
        for server in primary:
            trio.start(server)
        await in_epoch(trio, primary)
    said = [message for message in messages if "is not saved" in message]
    assert len(said) == len(primary)
    assert all(message.startswith(f"of what is given up, entries {fork_index + 1} to ") for message in said)


@on_regions
async def test_without_a_fence_nothing_goes_on_that_may_never_have_been_committed(trio: Trio) -> None:
    """A survivor holds another entry under the versionstamp of one that was acknowledged, and that nobody else has."""
    primary, replicas = await ready(trio)
    survivor = await trio.leading()
    others = [server for server in primary if server is not survivor]
    for server in (survivor, *replicas):
        trio.cut(server)
    trio.ask(survivor, write(put(b"never committed"), timeout_ms=1_000))
    acknowledged = await trio.put(others[0], b"acknowledged")
    vouch(trio)
    for server in others:
        trio.crash(server)
    trio.heal()
    one = replicas[0]
    plan = await trio.within(one, trio.node(one).coordinator.execute(DOWN))
    assert split(acknowledged)[1] > plan.end[1], "told to be lost, by its versionstamp"
    await trio.put(one, b"new")
    for server in others:
        trio.start(server)
    await in_epoch(trio, primary)
    await trio.everywhere()
    for key in (b"never committed", b"acknowledged"):
        assert await trio.get(one, key) is None
    assert await trio.get(survivor, b"new") == b"v"
    assert any(b"never committed" in data for data in saved_in(survivor))
    assert any(b"acknowledged" in data for data in saved_in(others[0]))


@on_regions
async def test_a_lone_survivor_that_takes_over_itself_saves_what_it_leaves_behind(trio: Trio) -> None:
    primary, _ = await ready(trio)
    survivor = await trio.leading()
    trio.cut(survivor)
    trio.ask(survivor, write(put(b"never committed"), timeout_ms=1_000))
    for server in primary:
        if server is not survivor:
            trio.crash(server)
    await asyncio.sleep(3)  # until it knows that it is alone
    vouch(trio, 2)
    trio.heal()
    wishes = Wishes("r1", force=True, primary_is_down=True)
    await trio.within(survivor, trio.node(survivor).coordinator.execute(wishes))
    assert await trio.get(survivor, b"kept") == b"v" and await trio.get(survivor, b"never committed") is None
    assert any(b"never committed" in data for data in saved_in(survivor))


@on_regions
async def test_a_node_that_begins_anew_answers_no_stamp_from_its_empty_state(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    stamp = await trio.put(primary[0], b"also kept")
    await trio.everywhere()
    for server in replicas:
        trio.cut(server)
    for number in range(5):
        await trio.put(primary[0], b"lost %d" % number)  # each append makes the commit of the one before durable
    await lose_the_primary(trio, primary)
    trio.heal()
    await trio.within(replicas[0], trio.node(replicas[0]).coordinator.execute(DOWN))
    returning = primary[0]
    let_go = trio.observer.let_go

    def cut_then(node_id: int) -> None:
        let_go(node_id)
        trio.cut(returning)

    trio.observer.let_go = cut_then  # type: ignore[method-assign]
    trio.start(returning)
    await until(lambda: returning.node is not None and returning.node.applied_index == 0)
    asked = trio.ask(returning, read(b"also kept", eventual=True, min_versionstamp=stamp, timeout_ms=30_000))
    await asyncio.sleep(0.5)
    assert not asked.done
    trio.heal()
    assert (await asked.read()).ranges[0].entries


@on_regions
async def test_a_region_that_begins_anew_does_not_take_over_with_nothing(trio: Trio) -> None:
    """The second disaster comes before it has caught up: what the dead nodes hold is all that there is."""
    primary, replicas = await lose_what_nobody_else_has(trio)
    let_go = trio.observer.let_go

    def cut_then(node_id: int) -> None:
        let_go(node_id)
        for server in primary:
            trio.cut(server)

    trio.observer.let_go = cut_then  # type: ignore[method-assign]
    one = primary[0]
    trio.start(one)
    await until(lambda: one.node is not None and one.node.applied_index == 0 and one.node.epoch == 1)
    for server in replicas:
        trio.crash(server)
    wishes = Wishes("r1", force=True, primary_is_down=True)
    with pytest.raises(InvalidRequest) as caught:
        await trio.within(one, trio.node(one).coordinator.execute(wishes))
    assert caught.value.code == "FAILOVER_NOTHING_HELD" and caught.value.not_applied
    trio.observer.let_go = let_go  # type: ignore[method-assign]
    trio.heal()
    for server in (*replicas, *primary[1:]):
        trio.start(server)
    await in_epoch(trio, primary)
    assert await trio.get(one, b"kept") == b"v"


@on_regions
async def test_the_epoch_in_which_a_node_was_taken_in_is_not_begun_again(trio: Trio) -> None:
    primary, (one, other) = await ready(trio)
    await lose_the_primary(trio, primary)
    trio.crash(other)
    trio.node(one).epochs.adopted_in = 7  # as of one that has applied nothing yet
    plan = await trio.within(one, trio.node(one).coordinator.prepare(Wishes("r2", force=True, primary_is_down=True)))
    assert plan.epoch > 7


def saved_in(server: Server) -> list[bytes]:
    """The data of every entry that a node has saved before it let go of it."""
    found: list[bytes] = []
    if server.disk.exists("data/forks"):
        for name in server.disk.list_directory("data/forks"):
            file = server.disk.open(f"data/forks/{name}")
            found += [entry.data for entry in read_fork(file.read(0, file.size()), name)[1]]
    return found


async def _two_sides(trio: Trio, lost_count: int) -> None:
    """Two failovers on two sides of a cut, the one that is given up behind an earlier entry than the other."""
    primary, (one, other) = await ready(trio)
    leader = await trio.leading()
    behind, third = (server for server in primary if server is not leader)
    trio.cut(behind)
    for number in range(20):
        await trio.put(leader, b"went on %d" % number)
    await until(lambda: trio.node(one).applied_index >= trio.node(leader).applied_index)
    await lose_the_primary(trio, [leader, third])
    alone = Wishes("r1", force=True, primary_is_down=True)
    ended = await trio.within(behind, trio.node(behind).coordinator.execute(alone))
    for number in range(lost_count):
        await trio.put(behind, b"lost %d" % number)
    plan = await trio.within(one, trio.node(one).coordinator.execute(DOWN))
    assert plan.epoch > ended.epoch and plan.end[1] > ended.end[1] + 10
    trio.heal()
    await in_epoch(trio, [behind, one, other], plan.epoch)
    saved = saved_in(behind)
    assert all(any(b"lost %d" % number in data for data in saved) for number in range(lost_count))
    assert await trio.get(behind, b"lost 0") is None and await trio.get(behind, b"went on 19") == b"v"
    await trio.everywhere()
    assert len({trio.node(server).state.meta.digest for server in (behind, one, other)}) == 1


@on_regions_apart
async def test_what_another_failover_began_and_ended_early_is_saved(trio: Trio) -> None:
    await _two_sides(trio, lost_count=2)


@on_regions_apart
async def test_what_another_failover_began_and_ended_late_is_saved(trio: Trio) -> None:
    await _two_sides(trio, lost_count=60)


@on_regions
async def test_a_fenced_failover_loses_nothing_and_two_sides_never_acknowledge(trio: Trio) -> None:
    primary, (one, _) = await ready(trio)
    leader = await trio.leading()
    trio.cut(leader)
    late = trio.ask(leader, write(put(b"late"), timeout_ms=5_000))
    await trio.within(one, trio.node(one).coordinator.execute(Wishes("r2", force=True)))
    await trio.put(one, b"new")
    error = await late.error()
    assert not error.not_applied, "its outcome is unknown, and it was not acknowledged"
    assert leader in primary
    trio.heal()
    await in_epoch(trio, primary, 2)
    assert await trio.get(leader, b"late") is None


@on_regions
async def test_too_few_old_voters_are_no_fence(trio: Trio) -> None:
    primary, (one, _) = await ready(trio)
    for server in primary[:2]:
        trio.crash(server)
    await asyncio.sleep(3)  # until the third knows that it is alone
    refused = await trio.refused(one, trio.node(one).coordinator.execute(Wishes("r2")))
    assert refused.code == "FAILOVER_NOT_FENCED" and "'node1', 'node2'" in refused.message
    assert trio.node(one).raft.promised_epoch == 0, "nothing was changed"


@on_regions
async def test_one_that_promised_takes_part_in_nothing_until_it_is_repeated(trio: Trio) -> None:
    """The coordinator dies after the promises; a node restarts; a repeat takes the next epoch."""
    primary, (one, other) = await ready(trio)
    await lose_the_primary(trio, primary)
    plan = await trio.within(one, trio.node(one).coordinator.prepare(DOWN))
    ask = failover_pb2.FailoverPromise(voter_ids=[4, 5])
    for server in (one, other):
        await tell(trio, server, plan, promise=ask)
    trio.crash(one)
    trio.start(one)
    await until(lambda: one.node is not None)
    assert (trio.node(one).raft.promised_epoch, trio.node(one).raft.promised_ballot) == (UNFENCED, plan.ballot)
    assert (await trio.ask(one, read(b"kept", eventual=True)).read()).ranges[0].entries
    assert any(f"has promised epoch {UNFENCED}" in problem for problem in trio.node(one).status().problems)
    strong = trio.ask(other, read(b"kept", timeout_ms=60_000))
    refused = await trio.refused(one, trio.node(one).coordinator.execute(DOWN))
    assert refused.code == "FAILOVER_IN_PROGRESS", "the other one remembers that it promised a moment ago"
    await asyncio.sleep(11)
    assert not strong.done
    vouch(trio, UNFENCED + BLOCK)
    await trio.within(one, trio.node(one).coordinator.execute(DOWN))
    await in_epoch(trio, [one, other], UNFENCED + BLOCK)
    assert (await strong.read()).ranges[0].entries


@on_regions
async def test_an_epoch_that_was_begun_on_one_node_comes_about_where_the_others_have_promised(trio: Trio) -> None:
    primary, (one, other) = await ready(trio)
    await lose_the_primary(trio, primary)
    plan = await trio.within(one, trio.node(one).coordinator.prepare(DOWN))
    for server in (one, other):
        await tell(trio, server, plan, promise=failover_pb2.FailoverPromise(voter_ids=[4, 5]))
    entry = epoch_entry(plan.start, trio.node(one).raft.last_index + 1)
    await tell(trio, one, plan, begin=failover_pb2.FailoverBegin(entry=entry_to_wire(entry)))
    await in_epoch(trio, [one, other])
    assert trio.node(other).raft.log.term(entry.index) == entry.term


@on_regions
async def test_an_epoch_that_was_begun_on_one_node_is_found_by_the_repeat(trio: Trio) -> None:
    primary, (one, other) = await ready(trio)
    await lose_the_primary(trio, primary)
    plan = await trio.within(one, trio.node(one).coordinator.prepare(DOWN))
    await tell(trio, one, plan, promise=failover_pb2.FailoverPromise(voter_ids=[4, 5]))
    entry = epoch_entry(plan.start, trio.node(one).raft.last_index + 1)
    await tell(trio, one, plan, begin=failover_pb2.FailoverBegin(entry=entry_to_wire(entry)))
    again = await trio.within(other, trio.node(other).coordinator.execute(DOWN))
    assert (again.epoch, again.source.last_index) == (BLOCK, entry.index), "what was begun is the most advanced log"
    await in_epoch(trio, [one, other], BLOCK)


@on_regions
async def test_who_promised_what_never_began_comes_back_by_a_move_to_the_living_primary(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    leader = await trio.leading()
    plan = await trio.within(leader, trio.node(replicas[0]).coordinator.prepare(Wishes("r2", force=True)))
    await tell(trio, replicas[1], plan, promise=failover_pb2.FailoverPromise(voter_ids=[4, 5]))
    await asyncio.sleep(11)  # nobody goes on with it
    problems = trio.node(replicas[1]).status().problems
    assert any("`kvnode failover --plan --to` that region" in problem for problem in problems), problems
    await trio.within(leader, trio.node(leader).coordinator.move("r1"))
    await trio.put(leader, b"together")
    await in_epoch(trio, [*primary, *replicas], plan.epoch + 1)
    await trio.everywhere()


@on_regions
async def test_another_coordinator_gets_no_promise_for_the_same_epoch(trio: Trio) -> None:
    _, (one, other) = await ready(trio)
    coordinator = trio.node(one).coordinator
    plan = await trio.within(one, coordinator.prepare(Wishes("r2", force=True)))
    ask = failover_pb2.FailoverPromise(voter_ids=[4, 5])
    await tell(trio, other, plan, promise=ask)
    node = trio.node(other)
    request = question(node.settings, node.node_id, plan.epoch, plan.ballot + 2, plan.region)
    request.promise.CopyFrom(ask)
    refused = await trio.refused(other, node.failover.answer(request))
    assert refused.code == "FAILOVER_IN_PROGRESS"
    await asyncio.sleep(11)
    refused = await trio.refused(other, node.failover.answer(request))
    assert refused.code == "EPOCH_PROMISED"


@on_regions
async def test_leadership_goes_to_no_replica_and_the_refusal_says_how_the_primary_moves(trio: Trio) -> None:
    _, (one, _) = await ready(trio)
    leader = await trio.leading()
    error = await trio.refused(leader, trio.node(leader).transfer_leadership(one.member.node_id))
    assert error.code == "TRANSFER_TARGET_INVALID" and f"'{one.member.name}'" in error.message
    assert "`kvnode failover --plan --to r2`" in error.message


@on_regions
async def test_a_planned_move_loses_nothing_and_is_quick(trio: Trio) -> None:
    primary, (one, other) = await ready(trio)
    leader = await trio.leading()
    asked = [trio.ask(leader, write(put(b"w%d" % number), timeout_ms=30_000)) for number in range(20)]
    plan, pause_ms = await trio.within(one, trio.node(one).coordinator.move("r2"))
    assert pause_ms < 2_000 and plan.epoch == 2
    asked += [trio.ask(leader, write(put(b"x%d" % number), timeout_ms=30_000)) for number in range(20)]
    for each in asked:
        await each.write()
    await in_epoch(trio, [*primary, one, other], 2)
    assert await trio.get(primary[2], b"w19") == b"v"
    assert not any(server.disk.exists("data/forks") for server in primary)
    await trio.within(leader, trio.node(leader).coordinator.move("r1"))
    await in_epoch(trio, [*primary, one, other], 3)
    assert len(trio.node(leader).membership.voters) == 3 and trio.node(leader).membership.min_commit_dcs == 2


async def sealed(trio: Trio) -> tuple[Server, Node]:
    """The leader, after its seal is committed and while nobody of the other region hears of it."""
    _, replicas = regions(trio)
    leader = await trio.leading()
    node = trio.node(leader)
    coordinator = trio.node(replicas[0]).coordinator
    plan = await trio.within(replicas[0], coordinator.prepare_move("r2"))
    for server in replicas:
        trio.cut(server)
    request = question(node.settings, node.node_id, plan.epoch, plan.ballot, "r2")
    request.seal.voter_ids.extend([4, 5])
    await trio.within(leader, node.failover.answer(request))
    return leader, node


@on_regions
async def test_behind_the_seal_the_old_group_serves_nothing_strong(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    leader, node = await sealed(trio)
    assert node.raft.sealed and node.is_leader
    strong = [trio.ask(server, read(b"kept", timeout_ms=60_000)) for server in primary]
    late = trio.ask(leader, write(put(b"late"), timeout_ms=60_000))
    trio.crash(leader)  # a successor is not served by either
    await asyncio.sleep(5)
    assert not any(asked.done for asked in strong[1:]) and not late.done
    trio.heal()
    await in_epoch(trio, replicas, 2)
    trio.start(leader)
    for asked, server in zip(strong, primary, strict=True):
        if server is not leader:
            assert (await asked.read()).ranges[0].entries


@on_regions
async def test_a_move_that_is_stuck_behind_its_seal_is_taken_back_by_force(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    await sealed(trio)
    for server in replicas:
        trio.crash(server)
    trio.heal()
    one = primary[0]
    refused = await trio.refused(one, trio.node(one).coordinator.execute(Wishes("r1")))
    assert refused.code == "FAILOVER_NOT_FENCED", "the new voters may have begun the next epoch already"
    vouch(trio, 16)  # of the first node of r1
    await trio.within(one, trio.node(one).coordinator.execute(Wishes("r1", primary_is_down=True)))
    await in_epoch(trio, primary, 16)
    await trio.put(one, b"again")
    for server in replicas:
        trio.start(server)
    await in_epoch(trio, replicas, 16)


@on_regions
async def test_a_replica_of_the_new_primary_region_can_be_promoted(trio: Trio) -> None:
    primary, (one, other) = await ready(trio)
    await lose_the_primary(trio, primary)
    trio.crash(other)
    wishes = Wishes("r2", force=True, primary_is_down=True)
    await trio.within(one, trio.node(one).coordinator.execute(wishes))
    await trio.put(one, b"alone")
    trio.start(other)
    await in_epoch(trio, [other])
    assert trio.node(other).is_replica
    await trio.within(one, trio.node(one).members.promote(5))
    await until(lambda: trio.node(other).member.role is MemberRole.VOTER)
    await trio.put(other, b"together")
    await until(lambda: trio.node(other).raft.commit == trio.node(one).raft.commit)


@on_regions
async def test_a_renewal_in_a_region_of_two_data_centers_ends_with_a_leader(trio: Trio) -> None:
    """The remedy of docs/howto/failover.md, behind a move: the primary region has two voters, and both must know."""
    primary, replicas = await ready(trio)
    one, other = replicas
    await trio.within(one, trio.node(one).coordinator.move("r2"))
    await in_epoch(trio, [one, other, *primary], 2)
    stuck = primary[0]
    epoch = 3
    plan = Plan("r1", epoch, 5, trio.node(one).failover.report(), trio.node(one).membership, ())
    await tell(trio, stuck, plan, promise=failover_pb2.FailoverPromise())
    await asyncio.sleep(11)  # nobody goes on with it
    await trio.within(one, trio.node(one).coordinator.move("r2"))
    await in_epoch(trio, [one, other, *primary], 4)
    await trio.put(other, b"after")
    assert await trio.get(stuck, b"after") == b"v"
