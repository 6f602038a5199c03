"""Strong reads under the leader lease: when nobody need be asked, and when everybody must."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kvnode.base import limits
from kvnode.codec.membership import MemberRole
from kvnode.node.failover.participant import question
from kvnode.node.failover.plan import Wishes
from kvnode.node.leader_lease import LeaderLease, usable_ms
from kvnode.node.reads import Reads
from kvnode.proto.kv.internal.v1 import failover_pb2
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.cluster import ELECTION_TICKS, Server
from tests.simulation.tuning import STANDARD
from tests.unit.node.cluster import (
    SUCCESS,
    Trio,
    absent,
    on_leased_regions,
    on_trio,
    put,
    read,
    until,
    value_of,
    write,
)

ELECTION_S = ELECTION_TICKS * STANDARD.tick_ms / 1_000


class CoreOfALeader:
    """What the lease looks at."""

    class History:
        latest_index = 3

    def __init__(self) -> None:
        self.may_lease = True
        self.term = 5
        self.history = self.History()
        self.quorum_round_acknowledged = 0
        self.quorum_hold_ms = 1_000


class Bench:
    """A lease and its clock."""

    def __init__(self) -> None:
        self.raft = CoreOfALeader()
        self.now_ms = 10_000.0
        self.lease = LeaderLease(self.raft, lambda: self.now_ms)  # type: ignore[arg-type]

    def round(self, number: int, took_ms: float = 0.0) -> None:
        """Send a round, and have it answered after a time."""
        self.lease.round_sent(number, self.raft.term)
        self.now_ms += took_ms
        self.raft.quorum_round_acknowledged = number


def test_it_is_counted_from_the_sending_and_ends_early_by_the_margin() -> None:
    bench = Bench()
    bench.round(1, took_ms=400)
    assert bench.lease.remaining_ms() == usable_ms(1_000) - 400 == 550
    bench.now_ms += 549
    assert bench.lease.holds()
    bench.now_ms += 1
    assert not bench.lease.holds()


def test_it_is_counted_from_the_first_of_a_rounds_messages() -> None:
    bench = Bench()
    bench.lease.round_sent(1, 5)
    bench.now_ms += 300
    bench.round(1)
    assert bench.lease.remaining_ms() == 650


def test_a_later_round_prolongs_it_and_a_round_without_holds_does_not_end_it() -> None:
    bench = Bench()
    bench.round(1)
    bench.now_ms += 500
    bench.round(2)
    assert bench.lease.remaining_ms() == 950
    bench.raft.quorum_hold_ms = 0
    bench.now_ms += 100
    bench.round(3)
    assert bench.lease.remaining_ms() == 850


def test_another_membership_or_term_has_no_part_in_it() -> None:
    bench = Bench()
    bench.round(1)
    bench.raft.history.latest_index = 4
    assert not bench.lease.holds()
    bench.round(2)
    assert bench.lease.holds()
    bench.lease.round_sent(3, 5)
    bench.raft.history.latest_index = 5  # between the sending and the answer
    bench.raft.quorum_round_acknowledged = 3
    assert not bench.lease.holds()
    bench.round(4)
    bench.raft.term = 7
    assert not bench.lease.holds()


def test_it_is_none_as_long_as_the_core_says_so() -> None:
    bench = Bench()
    bench.round(1)
    bench.raft.may_lease = False
    assert bench.lease.remaining_ms() == 0


def test_the_margin_covers_clocks_that_run_apart_by_five_percent() -> None:
    assert limits.LEADER_LEASE_MARGIN_PARTS == 20
    for hold_ms in (1, 19, 20, 950, 9_999):
        assert usable_ms(hold_ms) * 1.05 <= hold_ms + 1


# On three nodes.


async def leading(trio: Trio) -> Server:
    """The leader, once it holds its lease."""
    leader = await trio.leading()
    await until(trio.node(leader).operations.lease.holds, 5, "no lease")
    return leader


@on_leased_regions
async def test_reads_and_failed_checks_need_no_round(trio: Trio) -> None:
    leader = await leading(trio)
    await trio.put(leader, b"k", b"value")
    stats = trio.node(leader).stats
    rounds = stats.read_rounds
    assert value_of(await trio.ask(leader, read(b"k")).read()) == b"value"
    answer = await trio.ask(leader, write(put(b"l"), checks=[absent(b"k")])).write()
    assert list(answer.failed_checks) == [0]
    assert stats.read_rounds == rounds and stats.reads_leased >= 2


@on_leased_regions
async def test_a_cut_leader_reads_until_its_lease_ends_and_nobody_is_elected_before(trio: Trio) -> None:
    old = await leading(trio)
    one, other = [server for server in trio.others(old) if server.member.role is MemberRole.VOTER]
    await trio.put(old, b"k", b"value")
    trio.cut(old)
    began = trio.loop.time()
    assert value_of(await trio.ask(old, read(b"k")).read()) == b"value"
    await until(lambda: not trio.node(old).operations.lease.holds(), 5)
    ended = trio.loop.time()
    assert ended - began < ELECTION_S
    reading = trio.ask(old, read(b"k"))
    await until(lambda: trio.leader() in (one, other), 20)
    assert trio.loop.time() > ended
    new = await trio.leading()
    assert (await trio.ask(new, write(put(b"k", b"newer"))).write()).status == SUCCESS
    assert not reading.done
    trio.heal()
    assert value_of(await reading.read()) == b"newer"


@contextmanager
def standing_still_before_answers(trio: Trio, server: Server, standstill_s: float) -> Iterator[list[float]]:
    """The process stands still once between its look at the rows and its answer."""
    finish_one, read_batch = Reads._finish, Reads._read_batch
    clock = server.clock
    jumps: list[float] = []

    def stand_still(reads: Reads) -> None:
        if reads is trio.node(server).reads and not jumps:
            jumps.append(standstill_s)
            clock._uptime_ms += standstill_s * 1_000

    def finish(self: Reads, *args: Any, **named: Any) -> None:
        if named["strong"]:
            stand_still(self)
        finish_one(self, *args, **named)

    def read_all(self: Reads, *args: Any) -> Any:
        found = read_batch(self, *args)
        stand_still(self)
        return found

    with patch.object(Reads, "_finish", finish), patch.object(Reads, "_read_batch", read_all):
        yield jumps


@on_leased_regions
async def test_a_freeze_between_the_rows_and_the_answer_is_noticed(trio: Trio) -> None:
    leader = await leading(trio)
    await trio.put(leader, b"k", b"value")
    large = kv_pb2.ReadRange(start=b"k", end=b"l", limit=limits.MAX_INLINE_READ_ENTRIES_COUNT + 1)
    for operation in (read(b"k"), kv_pb2.Operation(id=1, read=kv_pb2.ReadRequest(ranges=[large]))):
        await until(trio.node(leader).operations.lease.holds)
        rounds = trio.node(leader).stats.read_rounds
        with standing_still_before_answers(trio, leader, 2 * ELECTION_S) as jumps:
            answer = await trio.ask(leader, operation).read()
        assert jumps, "the test is about a standstill"
        assert value_of(answer) == b"value"
        assert trio.node(leader).stats.read_rounds > rounds, "answered on the word of a lease that had run out"


@on_leased_regions
async def test_a_change_of_members_and_a_handover_end_it(trio: Trio) -> None:
    leader = await leading(trio)
    target = trio.others(leader)[0]
    node = trio.node(leader)
    node.raft.transfer_leadership(target.member.node_id)
    assert not node.operations.lease.holds()
    await until(lambda: trio.leader() is target, 10)
    await until(trio.node(target).operations.lease.holds, 5, "the new leader has none")
    assert not node.operations.lease.holds()


@on_leased_regions
async def test_a_failovers_promise_is_given_when_the_hold_has_run_out(trio: Trio) -> None:
    """Between the promise and the new epoch the old leader answers strong reads under its lease, which must end."""
    leader = await leading(trio)
    one, other = [server for server in trio.others(leader) if server.member.role is MemberRole.VOTER]
    plan = await trio.within(one, trio.node(one).coordinator.prepare(Wishes("r2", force=True)))
    trio.cut(leader)
    lease = trio.node(leader).operations.lease
    assert lease.holds()
    for server in (one, other):
        node = trio.node(server)
        request = question(node.settings, node.node_id, plan.epoch, plan.ballot, plan.region)
        request.promise.CopyFrom(failover_pb2.FailoverPromise(voter_ids=[4, 5]))
        await trio.within(server, node.failover.answer(request))
        assert node.raft.fenced and not node.raft.holds_vote
    assert not lease.holds(), "a majority is fenced, and the old leader reads on"


@on_leased_regions
async def test_a_failover_of_a_living_primary_loses_nothing_under_a_lease(trio: Trio) -> None:
    leader = await leading(trio)
    await trio.put(leader, b"k", b"value")
    one = trio.servers[4]
    await until(lambda: trio.node(one).raft.last_index >= trio.node(leader).raft.commit, 10)
    await trio.within(one, trio.node(one).coordinator.execute(Wishes("r2", force=True)))
    await until(lambda: trio.node(one).epoch > 1 and trio.node(one).leader_id != 0, 20)
    assert not trio.node(leader).operations.lease.holds()
    assert value_of(await trio.ask(one, read(b"k", timeout_ms=30_000)).read()) == b"value"


@on_leased_regions
async def test_status_says_how_long_it_lasts(trio: Trio) -> None:
    leader = await leading(trio)
    assert trio.node(leader).status().leader_lease.remaining_ms > 0
    assert not trio.node(trio.others(leader)[0]).status().HasField("leader_lease")


@on_trio
async def test_without_the_setting_there_is_none(trio: Trio) -> None:
    leader = await trio.leading()
    await asyncio.sleep(ELECTION_S)
    assert not trio.node(leader).status().HasField("leader_lease")
    rounds = trio.node(leader).stats.read_rounds
    await trio.ask(leader, read(b"k")).read()
    assert trio.node(leader).stats.read_rounds > rounds and not trio.node(leader).stats.reads_leased
