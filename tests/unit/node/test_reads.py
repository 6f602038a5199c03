"""Reads: strong ones wait for a round begun after them, eventual ones say how old they may be."""

from __future__ import annotations

import asyncio
import gc
import sys

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.codec.versionstamp import split, versionstamp
from kvnode.machine.epochs import EpochRow
from kvnode.node import reads
from kvnode.node.ports import BoundedDeliver
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import MessageKind
from tests.unit.node.cluster import (
    CHECK_FAILED,
    NO_SESSION,
    SUCCESS,
    Trio,
    absent,
    delete,
    on_trio,
    put,
    read,
    until,
    value_of,
    write,
)


def epoch_row(epoch: int, fork_index: int) -> EpochRow:
    return EpochRow(epoch, fork_index, 1, "europe", False, 2)


def answers_to_rounds(source: int, target: int, batch: peer_pb2.PeerBatch) -> bool:
    """The followers' acknowledgements of heartbeat rounds."""
    return any(message.kind == MessageKind.HEARTBEAT_RESPONSE for message in batch.messages)


@on_trio
async def test_a_strong_read_waits_for_a_round_begun_after_it(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.put(leader, b"k")
    trio.wire.holds = answers_to_rounds
    first = trio.ask(leader, read(b"k"))
    await asyncio.sleep(0.05)
    late = trio.ask(leader, read(b"k"))
    earlier_rounds = list(trio.wire.held)
    assert earlier_rounds and not first.done and not late.done
    trio.wire.held.clear()
    for source, target, arrive in earlier_rounds:
        trio.wire._arrive(source, target, arrive)
    await asyncio.sleep(0.05)
    assert first.done, "the round that was sent for it was acknowledged"
    assert not late.done, "answered by a round that was on its way before it came"
    trio.wire.release()
    assert value_of(await late.read()) == b"v"


@on_trio
async def test_a_large_read_leaves_the_loop_and_sees_one_state(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.ask(leader, write(*(put(b"k%03d" % n) for n in range(300)))).write()
    await trio.everywhere()
    for server, consistency in ((leader, kv_pb2.CONSISTENCY_STRONG), (one, kv_pb2.CONSISTENCY_EVENTUAL)):
        wanted = kv_pb2.ReadRange(start=b"k", end=b"l", limit=limits.MAX_INLINE_READ_ENTRIES_COUNT + 1)
        request = kv_pb2.ReadRequest(ranges=[wanted], consistency=consistency)
        asked = trio.ask(server, kv_pb2.Operation(id=1, read=request))
        assert not asked.done, "it was answered on the loop"
        answer = await asked.read()
        assert [entry.key for entry in answer.ranges[0].entries] == [b"k%03d" % n for n in range(wanted.limit)]
        assert answer.versionstamp >= answer.ranges[0].entries[0].versionstamp
        assert answer.strongly_consistent == (server is leader)
    small = kv_pb2.ReadRange(start=b"k", end=b"l", limit=limits.MAX_INLINE_READ_ENTRIES_COUNT)
    request = kv_pb2.ReadRequest(ranges=[small], consistency=kv_pb2.CONSISTENCY_EVENTUAL)
    assert trio.ask(one, kv_pb2.Operation(id=1, read=request)).done


@on_trio
async def test_a_large_read_whose_turn_comes_too_late_is_not_made(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    one.disk_factor = 2_000.0  # a second at least, and the time of a large read beside it
    wanted = kv_pb2.ReadRange(start=b"k", end=b"l", limit=1_000)
    request = kv_pb2.ReadRequest(ranges=[wanted], consistency=kv_pb2.CONSISTENCY_EVENTUAL)
    asked = trio.ask(one, kv_pb2.Operation(id=1, read=request, timeout_ms=100))
    error = await asked.error()
    assert error.code == "DEADLINE_EXCEEDED" and error.not_applied


class Narrow:
    """Takes results of at most so many bytes (ports.Receiver)."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.looked_at: list[int] = []
        self.taken: list[kv_pb2.OperationResult] = []

    def cannot_take(self, size_bytes: int) -> KvError | None:
        self.looked_at.append(size_bytes)
        return KvError("NARROW", "by the test", phase="read") if size_bytes > self.most_bytes else None

    def take(self, result: kv_pb2.OperationResult) -> None:
        self.taken.append(result)


@on_trio
async def test_what_cannot_be_taken_is_not_read_and_not_sent(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.ask(leader, write(*(put(b"k%03d" % n, bytes(100)) for n in range(300)))).write()
    await trio.everywhere()
    wanted = kv_pb2.ReadRange(start=b"k", end=b"l", limit=300)
    keys = kv_pb2.ReadRange(start=b"k", end=b"l", limit=300, keys_only=True)
    for server, consistency in ((leader, kv_pb2.CONSISTENCY_STRONG), (one, kv_pb2.CONSISTENCY_EVENTUAL)):
        for ranges, most_bytes, looked_at, code in (
            ([wanted], -1, [0], "NARROW"),  # nothing was read
            ([wanted, wanted], 59_999, [0, 60_000], "NARROW"),
            ([wanted, wanted], 60_000, [0, 60_000], ""),
            ([keys], 0, [0, 0], ""),
        ):
            request = kv_pb2.ReadRequest(ranges=ranges, consistency=consistency)
            narrow = Narrow(most_bytes)
            deliver = BoundedDeliver(Narrow.take, narrow)
            operation = kv_pb2.Operation(id=1, read=request)
            server.process.context.run(trio.node(server).submit, [operation], NO_SESSION, deliver)
            await until(lambda narrow=narrow: bool(narrow.taken), 30.0, "it was not answered")  # type: ignore[misc]
            (result,) = narrow.taken
            assert (narrow.looked_at, result.error.code, result.HasField("error")) == (looked_at, code, bool(code))
            assert sum(len(found.entries) for found in result.read.ranges) == (0 if code else 300 * len(ranges))
        assert not trio.node(server).failed.done()


@on_trio
async def test_an_answer_that_cannot_be_taken_is_not_kept(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    wanted = kv_pb2.ReadRange(start=b"k", end=b"l", limit=300)
    request = kv_pb2.ReadRequest(ranges=[wanted], consistency=kv_pb2.CONSISTENCY_EVENTUAL)
    narrow = Narrow(0)
    made: list[kv_pb2.OperationResult] = []
    make, measure = kv_pb2.OperationResult, reads.values_bytes

    def kept(**fields: object) -> kv_pb2.OperationResult:
        made.append(make(**fields))  # type: ignore[arg-type]
        return made[-1]

    gc.disable()  # what is in a cycle stays
    kv_pb2.OperationResult, reads.values_bytes = kept, lambda response, enough_bytes: 1  # type: ignore[misc, assignment]
    try:
        operation = kv_pb2.Operation(id=1, read=request)
        deliver = BoundedDeliver(Narrow.take, narrow)
        one.process.context.run(trio.node(one).submit, [operation], NO_SESSION, deliver)
        await until(lambda: bool(narrow.taken), 30.0, "it was not answered")
        assert narrow.taken[0].error.code == "NARROW"
        references_count = sys.getrefcount(made[0])
        assert len(made) == 2 and references_count == 2, "something keeps the answer"
    finally:
        kv_pb2.OperationResult, reads.values_bytes = make, measure  # type: ignore[misc]
        gc.enable()


@on_trio
async def test_a_strong_read_that_has_to_wait_wakes_nobody_within_a_read_transaction(trio: Trio) -> None:
    """Whoever is woken may have something to apply, and a state cannot be written while it is read."""
    leader = await trio.leading()
    node = trio.node(leader)
    woken: list[bool] = []

    def wake() -> None:
        woken.append(node.state._tables.connection.in_transaction)  # type: ignore[attr-defined]
        node.wake()

    node.reads._wake = wake
    ahead = versionstamp(node.state.meta.epoch, node.applied_index + 3, 0)
    asked = [trio.ask(leader, read(b"k", min_versionstamp=ahead, number=n)) for n in range(5)]
    await until(lambda: bool(woken))
    assert not any(woken)
    for _ in range(5):
        await trio.put(leader, b"k")
    for each in asked:
        assert value_of(await each.read()) == b"v"


@on_trio
async def test_many_reads_share_a_round(trio: Trio) -> None:
    leader = await trio.leading()
    rounds = trio.node(leader).stats.read_rounds
    asked = [trio.ask(leader, read(b"k", number=n)) for n in range(500)]
    for each in asked:
        await each.read()
    assert trio.node(leader).stats.read_rounds - rounds <= 2


@on_trio
async def test_a_cut_leader_answers_neither_reads_nor_failed_checks(trio: Trio) -> None:
    old, one, other = await trio.leader_and_followers()
    await trio.put(old, b"k", b"stale")
    trio.cut(old)
    reading = trio.ask(old, read(b"k"))
    judging = trio.ask(old, write(put(b"mark"), checks=[absent(b"k")]))  # its own state says: fails
    await until(lambda: trio.leader() in (one, other), 20)
    new = await trio.leading()
    assert (await trio.ask(new, write(delete(b"k"))).write()).status == SUCCESS
    await asyncio.sleep(1)
    assert not reading.done and not judging.done, "answered by a leader whom nobody confirmed"
    trio.heal()
    assert value_of(await reading.read()) is None
    assert (await judging.write()).status == SUCCESS
    assert trio.node(old).stats.check_failures == 1, "the test is about a check that failed at the old leader"


@on_trio
async def test_a_failed_check_names_the_check_once_it_is_confirmed(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    stamp = await trio.put(leader, b"k")
    checks = [kv_pb2.Check(key=b"k", versionstamp=stamp), absent(b"k")]
    trio.wire.holds = answers_to_rounds
    asked = trio.ask(leader, write(put(b"l"), checks=checks))
    await asyncio.sleep(0.3)
    assert not asked.done
    trio.wire.release()
    answer = await asked.write()
    assert answer.status == CHECK_FAILED and list(answer.failed_checks) == [1]
    assert await trio.get(one, b"l") is None


@on_trio
async def test_an_eventual_read_is_answered_where_it_arrives(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    await trio.everywhere()
    await asyncio.sleep(0.5)
    trio.cut(one)
    answer = trio.ask(one, read(b"k", eventual=True))
    assert answer.done, "it must not leave the node"
    response = await answer.read()
    assert value_of(response) == b"v" and not response.strongly_consistent
    assert 0 <= response.age_ms < 2_000
    stats = trio.node(one).stats
    assert (stats.eventual_latency_ms.count, stats.read_latency_ms.count) == (1, 0)


@on_trio
async def test_an_eventual_read_waits_for_its_versionstamp(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    trio.cut(one)
    stamp = await trio.put(leader, b"k")
    behind = trio.ask(one, read(b"k", eventual=True))
    waiting = trio.ask(one, read(b"k", eventual=True, min_versionstamp=stamp))
    impatient = trio.ask(one, read(b"k", eventual=True, min_versionstamp=stamp, timeout_ms=500))
    assert value_of(await behind.read()) is None
    error = await impatient.error()
    assert error.code == "DEADLINE_EXCEEDED" and error.not_applied
    assert not waiting.done
    trio.heal()
    response = await waiting.read()
    assert value_of(response) == b"v" and response.versionstamp >= stamp
    assert trio.ask(leader, read(b"k", eventual=True, min_versionstamp=stamp)).done, "reached already"


@on_trio
async def test_the_age_grows_on_a_deposed_leader(trio: Trio) -> None:
    old, one, other = await trio.leader_and_followers()
    await trio.put(old, b"k")
    await asyncio.sleep(0.5)

    async def age_ms() -> int:
        return (await trio.ask(old, read(b"k", eventual=True)).read()).age_ms

    assert 0 <= await age_ms() < 500
    trio.cut(old)
    await asyncio.sleep(0.4)
    still_leading = await age_ms()
    assert trio.node(old).is_leader and still_leading >= 300, "its own word alone does not make it fresh"
    await until(lambda: trio.leader() in (one, other), 20)
    await asyncio.sleep(5)
    assert await age_ms() >= 5_000
    trio.heal()
    await asyncio.sleep(2)
    assert await age_ms() < 2_000


@on_trio
async def test_the_age_is_unknown_before_a_leader_was_confirmed(trio: Trio) -> None:
    server = trio.servers[1]
    trio.cut(server)
    response = await trio.ask(server, read(b"k", eventual=True)).read()
    assert response.age_ms == -1


@on_trio
async def test_a_count_is_alone_in_its_read(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    for n in range(5):
        await trio.put(leader, b"k%d" % n)
    counted = kv_pb2.ReadRange(start=b"k1", end=b"k4", count_only=True)
    answer = trio.ask(one, kv_pb2.Operation(id=1, read=kv_pb2.ReadRequest(ranges=[counted])))
    assert (await answer.read()).ranges[0].count == 3
    both = kv_pb2.ReadRequest(ranges=[counted, kv_pb2.ReadRange(start=b"k", end=b"l", limit=1)])
    error = await trio.ask(one, kv_pb2.Operation(id=1, read=both)).error()
    assert error.code == "COUNT_NOT_ALONE"
    assert not trio.node(one).failed.done()


@on_trio
async def test_a_read_that_may_not_be_so_old_goes_on_to_the_leader(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    await trio.everywhere()
    await asyncio.sleep(1)
    near = await trio.ask(one, read(b"k", eventual=True, max_staleness_ms=2_000)).read()
    assert 0 <= near.age_ms <= 2_000 and trio.node(one).stats.reads_onward == 0, "fresh enough here"
    bound_ms = limits.MAX_CLOCK_OFFSET_MS - 1  # no follower can be so sure: the clocks may differ by more
    far = await trio.ask(one, read(b"k", eventual=True, max_staleness_ms=bound_ms)).read()
    assert value_of(far) == b"v" and 0 <= far.age_ms <= bound_ms and not far.strongly_consistent
    assert trio.node(one).stats.reads_onward == 1 and trio.node(leader).stats.forwarded_served == 1


@on_trio
async def test_a_read_that_no_node_is_fresh_enough_for_says_so(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    await trio.everywhere()
    trio.cut(one)
    await asyncio.sleep(5)
    error = await trio.ask(one, read(b"k", eventual=True, max_staleness_ms=2_000)).error()
    assert error.code == "TOO_STALE" and error.not_applied and error.phase == "read"
    assert "2000 ms" in error.message and trio.node(one).stats.reads_too_stale == 1
    assert value_of(await trio.ask(one, read(b"k", eventual=True)).read()) == b"v", "without a bound it answers"
    trio.heal()
    await until(lambda: 0 <= trio.node(one).freshness.age_ms() <= 2_000)
    assert value_of(await trio.ask(one, read(b"k", eventual=True, max_staleness_ms=2_000)).read()) == b"v"


@on_trio
async def test_a_deposed_leader_does_not_answer_what_must_be_fresh(trio: Trio) -> None:
    old, one, other = await trio.leader_and_followers()
    await trio.put(old, b"k", b"stale")
    trio.cut(old)
    await until(lambda: trio.leader() in (one, other), 20)
    new = await trio.leading()
    await trio.put(new, b"k", b"newer")
    await asyncio.sleep(2)
    error = await trio.ask(old, read(b"k", eventual=True, max_staleness_ms=1_500)).error()
    assert error.code == "TOO_STALE"
    for server in (one, other):
        answer = await trio.ask(server, read(b"k", eventual=True, max_staleness_ms=1_500)).read()
        assert value_of(answer) == b"newer"


@on_trio
async def test_a_read_that_waits_long_for_its_versionstamp_is_answered_by_another(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    trio.wire.holds = lambda source, target, batch: target == one.member.node_id  # it hears nothing of the log
    stamp = await trio.put(leader, b"k")
    asked = trio.ask(one, read(b"k", eventual=True, min_versionstamp=stamp))
    assert not asked.done
    response = await asked.read()
    assert value_of(response) == b"v" and response.versionstamp >= stamp
    assert trio.node(one).applied_index < trio.node(leader).applied_index
    trio.wire.release()


@on_trio
async def test_a_versionstamp_from_the_future_is_waited_for_until_the_deadline(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    future = versionstamp(1, 1 << 40, 0)
    for server, eventual in ((one, True), (leader, True), (leader, False), (one, False)):
        asked = trio.ask(server, read(b"k", eventual=eventual, min_versionstamp=future, timeout_ms=3_000))
        await asyncio.sleep(2.5)
        assert not asked.done
        error = await asked.error()
        assert error.code == "DEADLINE_EXCEEDED" and error.not_applied
        assert future.hex() in error.message or server is one, "the node that waits says for what"


@on_trio
async def test_who_waits_for_a_versionstamp_in_vain_hears_how_far_the_node_is_before_the_deadline(trio: Trio) -> None:
    """Whoever sent the read has a timer for the same deadline, which knows nothing."""
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    future = versionstamp(1, 1 << 40, 0)
    for server, eventual in ((one, True), (leader, True), (leader, False), (one, False)):
        asked = trio.ask(server, read(b"k", eventual=eventual, min_versionstamp=future, timeout_ms=3_000))
        await asyncio.sleep(2.9)
        assert asked.done
        assert "it is at" in (await asked.error()).message, (server, eventual)


@on_trio
async def test_a_versionstamp_that_a_failover_lost_is_said_to_be_lost(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    kept = await trio.put(leader, b"k")
    await trio.everywhere()
    _, index, _ = split(kept)
    for server in (leader, one):
        trio.node(server).reads._epochs = lambda: (epoch_row(2, index),)
    lost = versionstamp(1, index + 1, 0)
    for server, eventual in ((one, True), (leader, True), (leader, False), (one, False)):
        error = await trio.ask(server, read(b"k", eventual=eventual, min_versionstamp=lost)).error()
        assert error.code == "VERSIONSTAMP_LOST", (server, eventual)
        assert value_of(await trio.ask(server, read(b"k", eventual=eventual, min_versionstamp=kept)).read()) == b"v"


@on_trio
async def test_a_read_that_waits_learns_of_the_failover_that_lost_its_stamp(trio: Trio) -> None:
    leader = await trio.leading()
    last = await trio.put(leader, b"k")
    await trio.everywhere()
    _, index, _ = split(last)
    reads = trio.node(leader).reads
    waiting = trio.ask(leader, read(b"k", eventual=True, min_versionstamp=versionstamp(1, index + 50, 0)))
    assert not waiting.done
    reads._epochs = lambda: (epoch_row(2, index),)
    await trio.put(leader, b"l")
    assert (await waiting.error()).code == "VERSIONSTAMP_LOST"


@on_trio
async def test_the_age_of_a_large_read_is_that_of_the_state_it_saw(trio: Trio) -> None:
    """The state moves on while a read is away from the loop; what it brings back does not get younger by that."""
    _, one, _ = await trio.leader_and_followers()
    await trio.everywhere()
    await asyncio.sleep(1)
    one.disk_factor = 200.0  # the read is away for a tenth of a second and more
    wanted = kv_pb2.ReadRange(start=b"k", end=b"l", limit=1_000)
    request = kv_pb2.ReadRequest(ranges=[wanted], consistency=kv_pb2.CONSISTENCY_EVENTUAL)
    loop = asyncio.get_running_loop()
    began, age_before = loop.time(), trio.node(one).freshness.age_ms()
    answer = await trio.ask(one, kv_pb2.Operation(id=1, read=request)).read()
    away_ms = (loop.time() - began) * 1_000
    assert away_ms > 20, "the test is about a read that takes time"
    assert answer.age_ms >= age_before + away_ms - 5
