"""Small strong reads that share a call: which do, and what becomes of each."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from unittest.mock import patch

import pytest

from kvnode.base import limits
from kvnode.base.errors import StorageFailed
from kvnode.node.barriers import Barriers, Item
from kvnode.node.ports import Origin
from kvnode.node.proposals import deadline_error
from kvnode.node.read_batch import BatchedRead, ReadBatch, ReadBatches, apart
from kvnode.node.reads import Reads
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import NO_SESSION, Trio, on_leased_regions, on_regions, on_trio, read, until, value_of
from tests.unit.node.fakes import FakeRaft, KeptCall


class NoLease:
    """Nobody holds it."""

    def holds(self) -> bool:
        return False


class Bench:
    """Batches at the barrier of a leader."""

    def __init__(self) -> None:
        self.raft = FakeRaft()
        self.served: list[Item] = []
        self.lost: list[Item] = []
        self.nudged = 0
        self.results: list[kv_pb2.OperationResult] = []
        self.barriers = Barriers(
            self.raft,  # type: ignore[arg-type]
            NoLease(),  # type: ignore[arg-type]
            Stats(),
            self.served.extend,
            self.lost.extend,
            self.nudge,
        )
        self.batches = ReadBatches(self.barriers, self.nudge)

    def nudge(self) -> None:
        self.nudged += 1

    def join(self, number: int, at_ms: float = 0.0, timeout_ms: int = 1_000, *, forwarded: bool = False) -> None:
        one = BatchedRead(read(b"k", number=number), Origin(b"", number), self.results.append, at_ms)
        self.batches.join(one, timeout_ms, forwarded=forwarded)

    def groups(self) -> list[list[int]]:
        """The ids of what waits, call by call."""
        found = []
        for item in [*self.barriers._unsent, *(item for items in self.barriers._rounds.values() for item in items)]:
            assert isinstance(item.call, ReadBatch)
            found.append([each.operation.id for each in item.call.reads])
        return found


def test_what_comes_together_is_one_call_and_wakes_the_driver_once() -> None:
    bench = Bench()
    for number in range(5):
        bench.join(number)
    assert bench.groups() == [[0, 1, 2, 3, 4]] and bench.nudged == 1


def test_a_read_does_not_join_a_round_that_was_sent() -> None:
    """A quorum may have answered it before the read came, and a newer leader have been elected since."""
    bench = Bench()
    bench.join(1)
    bench.barriers.flush()
    bench.join(2)
    bench.barriers.confirmed(1, 0)
    bench.barriers.applied(0)
    (item,) = bench.served
    assert isinstance(item.call, ReadBatch) and [each.operation.id for each in item.call.reads] == [1]
    assert bench.groups() == [[2]]


@pytest.mark.parametrize(
    ("at_ms", "timeout_ms", "forwarded"), [(2.5, 1_000, False), (0.0, 900, False), (0.0, 1_000, True)]
)
def test_only_reads_with_one_deadline_and_one_origin_share_it(at_ms: float, timeout_ms: int, forwarded: bool) -> None:
    bench = Bench()
    bench.join(1)
    bench.join(2, at_ms, timeout_ms, forwarded=forwarded)
    assert bench.groups() == [[1], [2]]


def test_a_full_batch_is_followed_by_another() -> None:
    bench = Bench()
    for number in range(limits.MAX_READ_BATCH_COUNT + 1):
        bench.join(number)
    assert list(map(len, bench.groups())) == [limits.MAX_READ_BATCH_COUNT, 1]


def test_past_the_deadline_each_is_told_once() -> None:
    bench = Bench()
    bench.join(1)
    bench.join(2)
    for now_ms in (999.0, 1_000.0, 1_001.0):
        bench.barriers.sweep(now_ms, deadline_error)
    assert [(result.id, result.error.code) for result in bench.results] == [
        (1, "DEADLINE_EXCEEDED"),
        (2, "DEADLINE_EXCEEDED"),
    ]
    assert not bench.lost


def test_with_the_leadership_it_is_taken_apart_into_calls_with_their_own_deadlines() -> None:
    bench = Bench()
    other = KeptCall(read(b"k"))
    bench.barriers.add(other)
    bench.join(1, 10.0, forwarded=True)
    bench.join(2, 11.5, forwarded=True)
    bench.barriers.drop_rounds()
    bench.join(3, 11.6, forwarded=True)
    calls = apart(item.call for item in bench.lost)
    assert calls[0] is other
    assert [(call.origin.lowest_unanswered, call.deadline_ms, call.forwarded) for call in calls[1:]] == [
        (1, 1_010.0, True),
        (2, 1_011.5, True),
    ]
    assert bench.groups() == [[3]], "it joined a batch that had been taken apart"
    assert apart(item.call for item in bench.lost) == [other], "taken apart twice"
    bench.lost[1].call.fail(deadline_error(calls[1]))
    assert not bench.results, "the calls answer now"


@on_trio
async def test_only_what_is_answered_on_the_loop_joins_a_batch(trio: Trio) -> None:
    def asks(number: int, *limits_and_counts: tuple[int, bool]) -> kv_pb2.Operation:
        ranges = [kv_pb2.ReadRange(start=b"a", end=b"b", limit=n, count_only=count) for n, count in limits_and_counts]
        return kv_pb2.Operation(id=number, read=kv_pb2.ReadRequest(ranges=ranges))

    most = limits.MAX_INLINE_READ_ENTRIES_COUNT
    operations = [
        asks(1, (1, False)),
        asks(2, (most - 1, False), (1, False)),
        asks(3, (most, False), (1, False)),
        asks(4, (1, True)),
    ]
    leader = await trio.leading()
    joined: list[int] = []
    results: list[kv_pb2.OperationResult] = []
    join = ReadBatches.join

    def noted(batches: ReadBatches, one: BatchedRead, timeout_ms: int, *, forwarded: bool) -> None:
        joined.append(one.operation.id)
        join(batches, one, timeout_ms, forwarded=forwarded)

    with patch.object(ReadBatches, "join", noted):
        leader.process.context.run(trio.node(leader).submit, operations, NO_SESSION, results.append)
    await until(lambda: len(results) == 4)
    assert joined == [1, 2]
    assert sorted((result.id, result.error.code) for result in results) == [(n, "") for n in (1, 2, 3, 4)]


@on_trio
async def test_reads_of_one_message_are_answered_from_one_state_and_each_counts(trio: Trio) -> None:
    leader = await trio.leading()
    node = trio.node(leader)
    await trio.put(leader, b"k", b"value")
    before = node.stats.reads_strong, node.stats.read_latency_ms.count
    results: list[kv_pb2.OperationResult] = []
    operations = [read(b"k" if number % 2 else b"absent", number=number) for number in range(300)]
    leader.process.context.run(node.submit, operations, NO_SESSION, results.append)
    await until(lambda: len(results) == 300)
    assert [result.id for result in results] == list(range(300))
    assert [value_of(result.read) for result in results] == [None, b"value"] * 150
    assert all(result.read.strongly_consistent for result in results)
    assert all(one.read.versionstamp == other.read.versionstamp for one, other in pairwise(results))
    assert (node.stats.reads_strong, node.stats.read_latency_ms.count) == (before[0] + 300, before[1] + 300)


@on_trio
async def test_an_invalid_read_is_refused_alone(trio: Trio) -> None:
    leader = await trio.leading()
    results: list[kv_pb2.OperationResult] = []
    wrong = kv_pb2.Operation(id=2, read=kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=b"a", end=b"b", limit=0)]))
    operations = [read(b"k", number=1), wrong, read(b"k", number=3)]
    leader.process.context.run(trio.node(leader).submit, operations, NO_SESSION, results.append)
    await until(lambda: len(results) == 3)
    assert sorted((result.id, result.error.code) for result in results) == [(1, ""), (2, "LIMIT_NOT_POSITIVE"), (3, "")]


@on_trio
async def test_whoever_asked_a_leader_that_was_cut_off_hears_the_next_one(trio: Trio) -> None:
    old, one, other = await trio.leader_and_followers()
    await trio.put(old, b"k", b"stale")
    trio.cut(old)
    asked = [trio.ask(old, read(b"k", number=number)) for number in range(10)]
    await until(lambda: trio.leader() in (one, other), 20)
    new = await trio.leading()
    await trio.put(new, b"k", b"fresh")
    await asyncio.sleep(1)
    assert not any(each.done for each in asked), "answered by a leader whom nobody confirmed"
    trio.heal()
    for each in asked:
        assert value_of(await each.read()) == b"fresh"


@on_regions
async def test_what_other_nodes_send_on_is_gathered_too(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.put(leader, b"k", b"value")
    replica = next(server for server in trio.others(leader) if trio.node(server).is_replica)
    for asked in [trio.ask(replica, read(b"k", number=number)) for number in range(10)]:
        assert value_of(await asked.read()) == b"value"


@on_leased_regions
async def test_under_a_lease_each_is_counted_as_such(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.put(leader, b"k", b"value")
    node = trio.node(leader)
    await until(node.operations.lease.holds)
    before = node.stats.reads_leased
    for asked in [trio.ask(leader, read(b"k", number=number)) for number in range(10)]:
        assert value_of(await asked.read()) == b"value"
    assert node.stats.reads_leased == before + 10


@on_trio
async def test_answers_that_have_a_gate_to_pass_are_given_there_one_by_one(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.put(leader, b"k", b"value")
    passed: list[int] = []

    class Gated:
        are_direct = False

        def answer(self, call: KeptCall, result: kv_pb2.OperationResult) -> None:
            passed.append(result.id)
            call.answer(result)

    reads: Reads = trio.node(leader).reads
    reads._answers = Gated()  # type: ignore[assignment]
    for asked in [trio.ask(leader, read(b"k", number=number)) for number in range(1, 4)]:
        assert value_of(await asked.read()) == b"value"
    assert passed == [1, 2, 3]


@on_trio
async def test_a_state_that_cannot_be_read_is_said_to_each_and_is_fatal(trio: Trio) -> None:
    leader = await trio.leading()
    trio.may_stop.add(leader.member.node_id)
    node = trio.node(leader)
    error = StorageFailed("the disk is gone")
    with patch.object(node.state, "get", side_effect=error):
        for each in [trio.ask(leader, read(b"k", number=number)) for number in range(2)]:
            assert (await each.error()).code == error.code
    assert node.failed.done() and node.failed.result() is error
