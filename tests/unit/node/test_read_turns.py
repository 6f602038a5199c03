"""What comes at one moment and is too much for one pass of the loop: nobody else waits for it, nothing is lost."""

from __future__ import annotations

import asyncio
from functools import partial
from unittest.mock import patch

from kvnode.base import limits
from kvnode.base.errors import DeadlineExceeded, Unavailable
from kvnode.node.calls import Call
from kvnode.node.ports import Origin
from kvnode.node.read_turns import ReadTurns
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.cluster import Server
from tests.simulation.loop import SimulatedLoop
from tests.unit.node.cluster import (
    EVENTUAL,
    NO_SESSION,
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
from tests.unit.node.fakes import KeptCall

STRONG = kv_pb2.CONSISTENCY_STRONG
VALUE_BYTES = 20_000
READ_BYTES = 20 * VALUE_BYTES  # of one large read
MOST_IN_A_PASS = 2 * (limits.MAX_READ_TURN_BYTES // READ_BYTES + 1)  # what came just now, and what has waited


def large(number: int, consistency: int, limit: int = 20) -> kv_pb2.Operation:
    """A read of 400 KB, which is answered on the loop."""
    wanted = kv_pb2.ReadRange(start=b"big", end=b"bih", limit=limit)
    request = kv_pb2.ReadRequest(ranges=[wanted], consistency=consistency)  # type: ignore[arg-type]
    return kv_pb2.Operation(id=number, read=request)


class Flood:
    """Many large reads submitted at once, and in which pass of the loop each is answered."""

    def __init__(
        self, trio: Trio, server: Server, consistency: int, count: int = 60, *, forwarded: bool = False
    ) -> None:
        self.results: list[kv_pb2.OperationResult] = []
        self.passes: list[int] = []
        self.count = count
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        operations = [large(number, consistency) for number in range(count)]
        submit = trio.node(server).operations.intake.submit
        server.process.context.run(
            partial(submit, operations, NO_SESSION, self._deliver, forwarded=forwarded)  # type: ignore[arg-type]
        )

    def _deliver(self, result: kv_pb2.OperationResult) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self.results.append(result)
        self.passes.append(loop.callbacks_count)  # another with each pass
        if not self._begun.done():
            self._begun.set_result(None)

    async def begun(self) -> None:
        """Until some are answered, and others wait."""
        await self._begun
        assert 0 < len(self.results) < self.count

    async def answered(self) -> None:
        """Until all are, each once."""
        await until(lambda: len(self.results) >= self.count)
        await asyncio.sleep(0.1)
        assert sorted(result.id for result in self.results) == list(range(self.count))

    def assert_read(self) -> None:
        """All have what they asked for."""
        assert {len(result.read.ranges[0].entries) for result in self.results} == {20}

    @property
    def most_in_a_pass(self) -> int:
        """The most that were answered in one pass of the loop."""
        return max(map(self.passes.count, self.passes))


async def fill(trio: Trio, server: Server, count: int = 20) -> None:
    for number in range(count):
        await trio.put(server, b"big%03d" % number, bytes(VALUE_BYTES))
    await trio.put(server, b"small", b"v")
    await trio.everywhere()


async def test_the_first_deadline_counts_whoever_came_last() -> None:
    turns = ReadTurns(lambda: None)
    soon, later = (KeptCall(large(number, EVENTUAL), timeout_ms) for number, timeout_ms in ((1, 100), (2, 5_000)))
    turns.wait(soon, strong=False)
    turns.wait(later, strong=False)
    for now_ms in (99, 100):
        assert not soon.results
        turns.sweep(now_ms, lambda call: DeadlineExceeded("by the test", phase="read"))
    assert soon.error.code == "DEADLINE_EXCEEDED" and not later.results and len(turns) == 1
    turns.sweep(5_000, lambda call: DeadlineExceeded("by the test", phase="read"))
    assert later.error.code == "DEADLINE_EXCEEDED" and not len(turns)


@on_trio
async def test_of_what_one_message_asks_a_pass_of_the_loop_answers_a_bounded_part(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await fill(trio, leader)
    for server, consistency in ((one, EVENTUAL), (leader, STRONG)):
        flood = Flood(trio, server, consistency)
        assert len(flood.results) <= MOST_IN_A_PASS, "answered as they came"
        await flood.answered()
        flood.assert_read()
        assert flood.most_in_a_pass <= MOST_IN_A_PASS
        assert [result.id for result in flood.results] == list(range(flood.count)), "the first come first"
        assert {result.read.strongly_consistent for result in flood.results} == {consistency == STRONG}


@on_trio
async def test_neither_small_reads_nor_another_client_wait_behind_a_flood(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await fill(trio, leader)
    for server, consistency in ((one, EVENTUAL), (leader, STRONG)):
        is_eventual = consistency == EVENTUAL
        flood = Flood(trio, server, consistency, 200)
        beside = [
            trio.ask(server, read(b"small", eventual=is_eventual)),
            trio.ask(server, large(1, consistency), Origin(b"another id", 1)),
        ]
        await flood.begun()
        await asyncio.sleep(0)
        later = trio.ask(server, read(b"small", eventual=True))
        assert later.done, "it came in a pass of its own"
        for _ in range(10):
            await asyncio.sleep(0)
        assert all(each.done for each in beside)
        assert len(flood.results) < flood.count
        for each in beside:
            assert (await each.read()).ranges[0].entries
        await flood.answered()


@on_trio
async def test_small_reads_are_answered_in_one_pass(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"small", b"v")
    await trio.everywhere()
    for _ in range(20):  # what the passes before have read counts no more
        asked = [trio.ask(one, read(b"small", eventual=True, number=n)) for n in range(64)]
        assert all(each.done for each in asked)
        await asyncio.sleep(0)


@on_trio
async def test_point_reads_of_one_message_are_bounded_too(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"small", b"v")
    await trio.everywhere()
    asked = [trio.ask(one, read(b"small", eventual=True, number=n)) for n in range(1_024)]
    assert 64 < sum(each.done for each in asked) <= limits.MAX_READ_TURN_BYTES // limits.READ_RANGE_BYTES
    for each in asked:
        assert value_of(await each.read()) == b"v"


@on_trio
async def test_of_reads_that_leave_the_loop_a_bounded_part_does_in_one_pass(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"small", b"v")
    await trio.everywhere()
    wanted = kv_pb2.ReadRange(start=b"a", end=b"z", limit=limits.MAX_INLINE_READ_ENTRIES_COUNT + 1)
    request = kv_pb2.ReadRequest(ranges=[wanted], consistency=EVENTUAL)
    asked = [trio.ask(one, kv_pb2.Operation(id=n, read=request)) for n in range(1_024)]
    assert len(trio.node(one).reads._tasks) <= limits.MAX_READ_TURN_BYTES // limits.READ_RANGE_BYTES
    for each in asked:
        assert value_of(await each.read()) == b"v"


@on_trio
async def test_with_the_leadership_strong_reads_go_back_and_are_confirmed_anew(trio: Trio) -> None:
    leader = await trio.leading()
    await fill(trio, leader)
    node = trio.node(leader)
    flood, eventual = Flood(trio, leader, STRONG), Flood(trio, leader, EVENTUAL)
    await flood.begun()
    answered, rounds = len(flood.results), node.stats.read_rounds
    leader.process.context.run(node.operations.leader_changed)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(flood.results) == answered, "answered though they had been taken back"
    await flood.answered()
    await eventual.answered()
    assert node.stats.read_rounds > rounds
    flood.assert_read()


@on_trio
async def test_what_another_node_sent_is_told_to_ask_the_next_leader(trio: Trio) -> None:
    leader = await trio.leading()
    await fill(trio, leader)
    flood = Flood(trio, leader, STRONG, forwarded=True)
    await flood.begun()
    leader.process.context.run(trio.node(leader).operations.leader_changed)
    await flood.answered()
    codes = [(result.error.code, result.error.not_applied) for result in flood.results if result.HasField("error")]
    assert 0 < len(codes) < flood.count and set(codes) == {("LEADERSHIP_LOST", True)}


@on_leased_regions
async def test_the_lease_is_looked_at_again_in_each_pass(trio: Trio) -> None:
    leader = await trio.leading()
    await fill(trio, leader)
    node = trio.node(leader)
    await until(node.operations.lease.holds)
    flood = Flood(trio, leader, STRONG)
    await flood.begun()
    answered, rounds = len(flood.results), node.stats.read_rounds
    with patch.object(type(node.operations.lease), "holds", lambda lease: False):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(flood.results) == answered, "answered under a lease that had run out"
        await flood.answered()
        assert node.stats.read_rounds > rounds
    flood.assert_read()


@on_leased_regions
async def test_a_read_that_proves_to_be_large_leaves_the_loop_alone(trio: Trio) -> None:
    leader = await trio.leading()
    await fill(trio, leader, 80)
    await until(trio.node(leader).operations.lease.holds)
    asked = trio.ask(leader, large(1, EVENTUAL, 80))
    assert not asked.done, "it was answered on the loop"
    assert len((await asked.read()).ranges[0].entries) == 80
    results: list[kv_pb2.OperationResult] = []
    operations = [large(1, STRONG), large(2, STRONG, 80), large(3, STRONG), read(b"small", number=4)]
    leader.process.context.run(trio.node(leader).submit, operations, NO_SESSION, results.append)
    await until(lambda: len(results) == 4)
    assert results[-1].id == 2, "it was answered on the loop"
    assert [len(result.read.ranges[0].entries) for result in sorted(results, key=lambda r: r.id)] == [20, 80, 20, 1]
    assert all(result.read.strongly_consistent for result in results)


@on_trio
async def test_failed_checks_do_not_wait_behind_reads(trio: Trio) -> None:
    leader = await trio.leading()
    await fill(trio, leader)
    flood = Flood(trio, leader, STRONG, 200)
    asked = trio.ask(leader, write(put(b"k"), checks=[absent(b"small")]))
    await asked.write()
    await flood.answered()


@on_trio
async def test_at_the_end_each_is_told_once(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await fill(trio, leader)
    for server, consistency in ((one, EVENTUAL), (leader, STRONG)):
        flood = Flood(trio, server, consistency)
        await flood.begun()
        trio.node(server).reads.fail_waiting(Unavailable("the node is stopping", code="NODE_STOPPING"))
        assert len(flood.results) == flood.count
        await flood.answered()
        assert {result.error.code for result in flood.results} == {"", "NODE_STOPPING"}


def late(call: Call) -> DeadlineExceeded:
    del call
    return DeadlineExceeded("too late", phase="read")


async def test_past_its_deadline_what_waits_is_answered_so_a_part_with_each_sweep() -> None:
    turns = ReadTurns(lambda: None)
    calls = [KeptCall(read(b"k"), 100 if number % 2 else 1_000) for number in range(4_000)]
    for call in calls:
        turns.wait(call, strong=False)
    turns.sweep(99.0, late)
    assert not any(call.done for call in calls)
    turns.sweep(100.0, late)
    assert 0 < sum(call.done for call in calls) < 1_000, "thousands of answers in one piece"
    for _ in range(10):
        turns.sweep(101.0, late)
    assert [bool(call.results) for call in calls] == [False, True] * 2_000
    assert {call.error.code for call in calls if call.done} == {"DEADLINE_EXCEEDED"}
    assert len(turns) == 2_000
    turns.sweep(1_000.0, late)
    assert len(turns) < 2_000


async def test_an_error_of_one_costs_the_others_no_turn() -> None:
    served: list[Call] = []

    def go_on() -> None:
        while (waiting := turns.next()) is not None:
            served.append(waiting.call)
            if len(served) == 2:
                raise ValueError("of a receiver")

    turns = ReadTurns(go_on)
    calls = [KeptCall(read(b"k")) for _ in range(5)]
    for call in calls:
        turns.wait(call, strong=False)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    for _ in range(3):
        await asyncio.sleep(0)
    assert served == calls


async def test_a_pass_that_is_over_begins_anew() -> None:
    turns = ReadTurns(lambda: None)
    turns.took(limits.MAX_READ_TURN_BYTES - 1)
    assert not turns.is_over and turns.room_bytes == 1
    turns.took(1)
    assert turns.is_over
    await asyncio.sleep(0)
    assert not turns.is_over and turns.room_bytes == limits.MAX_READ_TURN_BYTES
