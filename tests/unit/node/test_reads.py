"""Reads: strong ones wait for a round begun after them, eventual ones say how old they may be."""

from __future__ import annotations

import asyncio

from kvnode.base import limits
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import MessageKind
from tests.unit.node.cluster import (
    CHECK_FAILED,
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
