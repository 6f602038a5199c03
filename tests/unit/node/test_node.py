"""A node among nodes: the paths of a write and a read, time, life, and what makes it stop."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

from kvnode.base import limits
from kvnode.base.errors import StorageFailed
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.entry import EntryKind
from kvnode.node.node import Node
from kvnode.node.ports import Origin
from kvnode.node.stats import Stats
from kvnode.proto.kv.internal.v1 import log_pb2, peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message, MessageKind
from tests.simulation.clock import EPOCH_MS
from tests.simulation.cluster import CLUSTER_ID
from tests.unit.node.cluster import SUCCESS, Trio, add_one, number_of, on_trio, put, read, until, write

STORED = b"\x00\x00\x00\x01k"  # the key k of the default database


def true_ms() -> float:
    """The time that no clock shows."""
    return EPOCH_MS + asyncio.get_running_loop().time() * 1000


def log_times(trio: Trio) -> list[int]:
    """The log time of every committed entry that holds data, in order of the log."""
    entries = [trio.observer.committed[index] for index in sorted(trio.observer.committed)]
    return [
        log_pb2.EntryPayload.FromString(entry.data).log_time_ms for entry in entries if entry.kind is EntryKind.DATA
    ]


@on_trio
async def test_a_write_through_any_node_is_read_through_any_other(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    first = await trio.put(leader, b"k", b"1")
    assert await trio.get(one, b"k") == b"1"
    second = await trio.put(one, b"k", b"2")
    assert second > first
    assert await trio.get(leader, b"k") == b"2"
    assert await trio.get(other, b"k") == b"2"
    assert trio.node(one).stats.forwarded >= 2


@on_trio
async def test_doubled_and_late_messages_change_nothing(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    trio.wire.weather.doubling = 1.0
    trio.wire.weather.straggling = 0.3
    client = await trio.within(one, trio.node(one).open_session())
    asked = [trio.ask(one, write(add_one(b"n"), number=n), Origin(client, 1)) for n in range(1, 31)]
    stamps = {(await each.write()).versionstamp for each in asked}
    assert len(stamps) == 30
    assert number_of(await trio.get(one, b"n")) == 30


@on_trio
async def test_unary_calls_run_under_the_nodes_own_session(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    node = trio.node(one)
    answer = await trio.within(one, node.write(kv_pb2.AtomicWriteRequest(mutations=[put(b"k", b"x")])))
    assert answer.status == SUCCESS
    found = await trio.within(one, node.read(read(b"k").read))
    assert found.ranges[0].entries[0].value == b"x" and found.strongly_consistent
    assert found.versionstamp >= answer.versionstamp


@on_trio
async def test_a_malformed_operation_is_answered_and_hurts_nobody(trio: Trio) -> None:
    leader = await trio.leading()
    empty = trio.ask(leader, kv_pb2.Operation(id=7))
    assert (await empty.error()).code == "EMPTY_OPERATION"
    too_long = trio.ask(leader, write(put(b"k" * (limits.MAX_WRITE_KEY_BYTES + 1))))
    assert (await too_long.error()).code == "KEY_TOO_LARGE"
    await trio.put(leader, b"k")
    assert not trio.node(leader).failed.done()


@on_trio
async def test_an_expired_key_is_hidden_and_then_removed_by_a_tick(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    node = trio.node(leader)
    await trio.put(leader, b"k", expire_at_ms=int(true_ms()) + 2_000)
    assert await trio.get(one, b"k") == b"v"
    before = node.applied_index
    rows = [trio.node(server).state for server in trio.serving]
    await until(lambda: all(state.get(STORED) is None for state in rows), 4, "no tick came although nobody wrote")
    assert node.stats.expired_keys == 1
    assert node.applied_index > before
    for server in trio.serving:
        assert await trio.get(server, b"k") is None


@on_trio
async def test_log_time_does_not_follow_a_step_of_the_leaders_clock(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.put(leader, b"a")
    leader.clock.step(-450)
    await trio.put(leader, b"b")
    leader.clock.step(+450 + 450)
    for n in range(20):
        await trio.put(leader, b"c%d" % n)
    ahead_ms = trio.node(leader).state.meta.log_time_ms - true_ms()
    assert ahead_ms <= limits.MAX_CLOCK_OFFSET_MS + 60  # 40 ms: what the simulated clocks are off from the start
    assert log_times(trio) == sorted(log_times(trio))


@on_trio
async def test_a_leader_whose_clock_steps_too_far_gives_way_and_does_not_campaign(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    node = trio.node(leader)
    leader.clock.step(60_000)
    early = trio.ask(leader, write(put(b"k")))
    await until(lambda: not node.is_leader, 2)
    await until(lambda: trio.leader() in (one, other), 20)
    assert (await early.write()).status == SUCCESS
    assert not node.raft.campaign_allowed
    new = await trio.leading()
    await trio.put(new, b"l")
    assert max(log_times(trio)) <= true_ms() + limits.MAX_CLOCK_OFFSET_MS + 60
    assert log_times(trio) == sorted(log_times(trio))
    term = trio.node(new).raft.term
    trio.kill(new)
    await asyncio.sleep(10)
    assert trio.leader() is not leader, "a node with a wrong clock was elected"
    assert trio.node(one if new is other else other).raft.term >= term


@on_trio
async def test_no_clock_is_trusted_before_a_majority_bore_witness(trio: Trio) -> None:
    leader = await trio.leading()
    trio.wire.cuts |= {(s.member.node_id, o.member.node_id) for s in trio.servers.values() for o in trio.others(s)}
    trio.kill(leader)
    trio.start(leader)
    await asyncio.sleep(3)
    assert not trio.node(leader).raft.campaign_allowed
    trio.heal()
    await trio.leading()
    await until(lambda: trio.node(leader).raft.campaign_allowed, 5)


@on_trio
async def test_a_broken_invariant_in_an_arrival_stops_the_node(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    node = trio.node(leader)
    trio.may_stop.add(leader.member.node_id)
    sender = one.member.node_id
    claim = Message(MessageKind.APPEND, leader.member.node_id, sender, node.raft.term)  # a second leader of this term
    leader.process.context.run(node.peers.on_messages, sender, [claim], None)
    assert node.failed.done() and isinstance(node.failed.result(), InvariantViolation)
    ready, why = node.ready
    assert not ready and "failed" in why
    await until(lambda: trio.leader() not in (None, leader), 20)
    await trio.put(one, b"k")


@on_trio
async def test_a_failed_fsync_stops_the_node_and_acknowledges_nothing(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    trio.may_stop.add(leader.member.node_id)
    trio.wire.holds = lambda source, target, batch: True
    node = trio.node(leader)
    leader.disk.fail_next_sync("log")
    asked = trio.ask(leader, write(put(b"k")))
    await until(node.failed.done, 5)
    assert isinstance(node.failed.result(), StorageFailed)
    await asyncio.sleep(1)
    assert not asked.done or asked.results[0].HasField("error")
    trio.wire.release()
    await until(lambda: trio.leader() not in (None, leader), 20)
    await trio.put(one, b"l")


@on_trio
async def test_strangers_are_refused_by_their_hello(trio: Trio) -> None:
    node = trio.node(await trio.leading())
    hello = peer_pb2.Hello(cluster_id=CLUSTER_ID, epoch=1, node_id=9, name="x", to_node_id=node.node_id)
    assert node.peers.check_hello(hello) == ""

    def why(**fields: object) -> str:
        other = peer_pb2.Hello.FromString(hello.SerializeToString())
        for name, value in fields.items():
            setattr(other, name, value)
        return node.peers.check_hello(other)

    assert "is of cluster other" in why(cluster_id="other")
    assert "expects node 77 here" in why(to_node_id=77)
    assert "of epoch 0, which ended" in why(epoch=0)


@on_trio
async def test_stop_hands_leadership_over_and_settles_what_is_under_way(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    node = trio.node(leader)
    asked = [trio.ask(leader, write(put(b"k%d" % n))) for n in range(10)]
    started_s = asyncio.get_running_loop().time()
    await trio.within(leader, node.stop())
    assert asyncio.get_running_loop().time() - started_s < 1.0, "no leadership was handed over"
    for each in asked:
        await each.result()
    trio.kill(leader)
    await until(lambda: trio.leader() in (one, other), 1, "the group was left without a leader")


@on_trio
async def test_readiness_says_why_not(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    assert trio.node(one).ready == (True, "ok")
    trio.cut(one)
    await until(lambda: not trio.node(one).ready[0], 10)
    assert "no leader is known" in trio.node(one).ready[1]
    assert trio.node(leader).ready[0]


@on_trio
async def test_leadership_goes_where_it_is_sent(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    refusal = await trio.refused(one, trio.node(one).transfer_leadership(other.member.node_id))
    assert refusal.code == "NOT_LEADER" and leader.member.name in refusal.message
    unknown = await trio.refused(leader, trio.node(leader).transfer_leadership(99))
    assert unknown.code == "MEMBER_UNKNOWN" and "there is no member 99; see" in unknown.message
    await trio.within(leader, trio.node(leader).transfer_leadership(other.member.node_id))
    assert await trio.leading() is other
    trio.node(other)._transfer._best_successor = lambda: 0  # type: ignore[method-assign]
    alone = await trio.refused(other, trio.node(other).transfer_leadership(0))
    assert alone.message.startswith("no other voter answers that could lead")


@on_trio
async def test_a_node_whose_log_is_damaged_stays_up_says_so_and_takes_no_part(trio: Trio) -> None:
    """Also when what is left of the log does not reach to the applied state."""
    leader, one, _ = await trio.leader_and_followers()
    for n in range(5):
        await trio.put(leader, b"k%d" % n)
    await trio.everywhere()
    node = trio.node(one)
    rest: Any = SimpleNamespace(damage="by the test", hard_state=node.log.hard_state)
    rest.first_index, rest.last_index, rest.term = (lambda: 1), (lambda: 2), (lambda index: None)
    damaged = Node(node.settings, rest, node.state, node.clock, random.Random(1), lambda _: node.transport, Stats())
    await damaged.start()
    assert damaged.ready == (False, "by the test")
    assert damaged.status().problems == ["by the test"]
    assert damaged.raft.last_index == damaged.applied_index
    term = damaged.raft.term
    await asyncio.sleep(10)
    assert damaged.raft.term == term and not damaged.failed.done(), "it campaigned"
    for task in damaged._tasks:
        task.cancel()
