"""Writes: batches, resends, deadlines, and a loss of leadership at every station of their way."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

from kvnode.base import limits
from kvnode.codec.entry import Entry, EntryKind
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.keyspace import DEFAULT_DATABASE
from kvnode.machine.sessions import NODES_OWN
from kvnode.node.calls import Call
from kvnode.node.ports import Origin
from kvnode.node.proposals import MAX_PENDING_ENTRIES_COUNT, PendingEntry, Proposals
from kvnode.node.stats import Stats
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.raft.messages import MessageKind
from tests.simulation.cluster import Server
from tests.unit.node.cluster import (
    CHECK_FAILED,
    SUCCESS,
    Asked,
    Trio,
    absent,
    add_one,
    delete,
    number_of,
    on_trio,
    put,
    until,
    write,
)


def acknowledgements(source: int, target: int, batch: peer_pb2.PeerBatch) -> bool:
    """The followers' answers to appends: while they are held, nothing commits."""
    return any(message.kind == MessageKind.APPEND_RESPONSE for message in batch.messages)


def appends(source: int, target: int, batch: peer_pb2.PeerBatch) -> bool:
    """The leader's entries."""
    return any(message.kind == MessageKind.APPEND and message.entries for message in batch.messages)


async def client_of(trio: Trio, server: Server) -> bytes:
    """A fresh session."""
    return await trio.within(server, trio.node(server).open_session())


def sums(trio: Trio, server: Server, client: bytes, count: int, first: int = 1) -> list[Asked]:
    """That many sums of one under a session."""
    origin = Origin(client, 1)
    return [trio.ask(server, write(add_one(b"n"), number=n), origin) for n in range(first, first + count)]


async def settled_once(trio: Trio, asked: list[Asked]) -> None:
    """All are acknowledged, each once, and each was applied once."""
    stamps = [(await each.write()).versionstamp for each in asked]
    await asyncio.sleep(1)  # a second answer would come by now
    assert all(len(each.results) == 1 for each in asked)
    assert len(set(stamps)) == len(stamps)
    leader = await trio.leading()
    assert number_of(await trio.get(leader, b"n")) == len(asked)
    assert not trio.node(leader).proposals.pending_count


async def takes_over(trio: Trio, old: Server) -> Server:
    """The leader that the others elect."""
    await until(lambda: trio.leader() not in (None, old), 20)
    return await trio.leading()


def test_what_a_snapshot_has_skipped_may_have_been_applied() -> None:
    """Its entry was never seen here: only a resend under the same request id can tell."""
    taken: list[tuple[list[Call], bool]] = []
    nothing: Any = None
    proposals = Proposals(
        nothing,
        nothing,
        nothing,
        Stats(),
        nothing,
        lambda: 0,
        lambda calls, unknown: taken.append((calls, unknown)),
        lambda: None,
        nothing,
    )
    calls = [Call(write(add_one(b"n"), number=n), Origin(b"c", 1), None, None, 0, 1_000) for n in range(3)]
    for at, call in enumerate(calls, 5):
        proposals._pending[at] = PendingEntry(1, 10, [(call, None)])
    proposals.skipped_to(6)
    assert taken == [([calls[0]], True), ([calls[1]], True)]
    proposals.applied(Entry(2, 7, EntryKind.NOOP, b""), 0)
    assert taken[2:] == [([calls[2]], False)], "an entry of another term took its place: it is gone for good"
    assert not proposals.pending_count


@on_trio
async def test_all_that_wait_become_one_entry(trio: Trio) -> None:
    leader = await trio.leading()
    before = trio.node(leader).raft.last_index
    asked = [trio.ask(leader, write(put(b"k%d" % n), number=n)) for n in range(300)]
    stamps = [(await each.write()).versionstamp for each in asked]
    assert len({stamp[:8] for stamp in stamps}) == 1
    assert stamps == sorted(stamps) and len(set(stamps)) == 300
    assert trio.node(leader).raft.last_index == before + 1


@on_trio
async def test_few_entries_are_on_their_way_at_once(trio: Trio) -> None:
    leader = await trio.leading()
    trio.wire.holds = acknowledgements
    asked = []
    for n in range(12):
        asked.append(trio.ask(leader, write(put(b"k%d" % n), number=n)))
        await asyncio.sleep(0.02)
    proposals = trio.node(leader).proposals
    assert proposals.pending_count == MAX_PENDING_ENTRIES_COUNT
    assert proposals.queued_count == 12 - MAX_PENDING_ENTRIES_COUNT
    assert not any(each.done for each in asked)
    trio.wire.release()
    for each in asked:
        assert (await each.write()).status == SUCCESS


@on_trio
async def test_a_resend_joins_the_copy_in_flight(trio: Trio) -> None:
    leader = await trio.leading()
    client = await client_of(trio, leader)
    trio.wire.holds = acknowledgements
    first = trio.ask(leader, write(add_one(b"n"), number=1), Origin(client, 1))
    same_batch = trio.ask(leader, write(add_one(b"n"), number=1, resend=True), Origin(client, 1))
    await asyncio.sleep(0.1)
    again = trio.ask(leader, write(add_one(b"n"), number=1, resend=True), Origin(client, 1))
    await asyncio.sleep(0.1)
    assert not first.done and not again.done and not same_batch.done
    trio.wire.release()
    stamp = (await first.write()).versionstamp
    assert (await again.write()).versionstamp == stamp
    assert (await same_batch.write()).versionstamp == stamp
    assert number_of(await trio.get(leader, b"n")) == 1


@on_trio
async def test_a_full_queue_does_not_refuse_what_may_have_been_applied(trio: Trio) -> None:
    """A refusal says that nothing was applied, and a client without request ids then writes anew."""
    leader = await trio.leading()
    client = await client_of(trio, leader)
    first = await trio.ask(leader, write(add_one(b"n"), number=1), Origin(client, 1)).write()
    with patch.object(limits, "MAX_PROPOSAL_QUEUE_COUNT", 0):
        refused = await trio.ask(leader, write(add_one(b"n"), number=2), Origin(client, 1)).error()
        again = await trio.ask(leader, write(add_one(b"n"), number=1, resend=True), Origin(client, 1)).write()
    assert refused.code == "OVERLOADED" and refused.not_applied
    assert again.versionstamp == first.versionstamp
    assert number_of(await trio.get(leader, b"n")) == 1


@on_trio
async def test_a_limit_that_was_lowered_since_says_nothing_of_the_first_copy(trio: Trio) -> None:
    """Those of this node's own session were judged before; a client only says that it sends again."""
    leader = await trio.leading()
    client = await client_of(trio, leader)
    large = put(b"k", b"v" * 1_000)
    await trio.ask(leader, write(large, number=1), Origin(client, 1)).write()
    own = await trio.within(leader, trio.node(leader).operations.own_session.open(NODES_OWN))
    origin = Origin(own, 1, DEFAULT_DATABASE, own_session=True)
    first = await trio.ask(leader, write(large, number=1), origin).write()
    with patch.object(DirectoryView, "max_value_bytes", lambda view, database: 10):
        refused = await trio.ask(leader, write(large, number=2), Origin(client, 1)).error()
        unknown = await trio.ask(leader, write(large, number=1, resend=True), Origin(client, 1)).error()
        again = await trio.ask(leader, write(large, number=1, resend=True), origin).write()
    assert refused.code == unknown.code == "VALUE_TOO_LARGE"
    assert refused.not_applied and not unknown.not_applied
    assert again.versionstamp == first.versionstamp


@on_trio
async def test_a_resend_of_a_settled_write_is_answered_from_the_session(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    client = await client_of(trio, one)
    answer = await trio.ask(one, write(add_one(b"n"), number=1), Origin(client, 1)).write()
    again = await trio.ask(one, write(add_one(b"n"), number=1, resend=True), Origin(client, 1)).write()
    assert again.versionstamp == answer.versionstamp
    trio.kill(leader)
    new = await takes_over(trio, leader)
    elsewhere = await trio.ask(new, write(add_one(b"n"), number=1, resend=True), Origin(client, 1)).write()
    assert elsewhere.versionstamp == answer.versionstamp
    assert number_of(await trio.get(new, b"n")) == 1


@on_trio
async def test_a_resend_below_the_lowest_unanswered_is_refused_not_executed(trio: Trio) -> None:
    leader = await trio.leading()
    client = await client_of(trio, leader)
    for n in (1, 2, 3):
        await trio.ask(leader, write(add_one(b"n"), number=n), Origin(client, n)).write()
    error = await trio.ask(leader, write(add_one(b"n"), number=1, resend=True), Origin(client, 3)).error()
    assert error.code == "SEQUENCE_ANSWERED" and not error.not_applied
    error = await trio.ask(leader, write(add_one(b"n"), number=9, resend=True), Origin(b"no such id", 9)).error()
    assert not error.not_applied, "it may have been applied while its session lived"
    assert number_of(await trio.get(leader, b"n")) == 3


@on_trio
async def test_a_negative_outcome_of_a_resend_is_kept(trio: Trio) -> None:
    leader = await trio.leading()
    client = await client_of(trio, leader)
    await trio.put(leader, b"k")
    judged = write(put(b"l"), checks=[absent(b"k")], number=5, resend=True)
    assert (await trio.ask(leader, judged, Origin(client, 1)).write()).status == CHECK_FAILED
    await trio.ask(leader, write(delete(b"k"))).write()
    again = await trio.ask(leader, judged, Origin(client, 1)).write()
    assert again.status == CHECK_FAILED and list(again.failed_checks) == [0]


# Leadership is lost.


@on_trio
async def test_proposed_writes_survive_a_lost_leadership_once(trio: Trio) -> None:
    old = await trio.leading()
    client = await client_of(trio, old)
    trio.cut(old)
    asked = sums(trio, old, client, 5)
    await asyncio.sleep(0.05)
    assert trio.node(old).proposals.pending_count
    await takes_over(trio, old)
    trio.heal()
    await settled_once(trio, asked)


@on_trio
async def test_writes_that_the_successor_holds_are_answered_with_their_own_stamp(trio: Trio) -> None:
    """The entries reached a follower, the acknowledgements never came back: the new leader commits them."""
    old = await trio.leading()
    client = await client_of(trio, old)
    trio.wire.holds = acknowledgements
    asked = sums(trio, old, client, 5)
    await asyncio.sleep(0.05)
    index = trio.node(old).raft.last_index
    trio.cut(old)
    trio.wire.held.clear()
    trio.wire.holds = None
    await takes_over(trio, old)
    trio.heal()
    await settled_once(trio, asked)
    assert all(int.from_bytes(each.results[0].write.versionstamp[2:8], "big") == index for each in asked)


@on_trio
async def test_queued_writes_move_on_when_leadership_is_handed_over(trio: Trio) -> None:
    old, one, _ = await trio.leader_and_followers()
    client = await client_of(trio, old)
    node = trio.node(old)
    old.process.context.run(node.raft.transfer_leadership, one.member.node_id)
    asked = sums(trio, old, client, 5)
    assert node.proposals.queued_count == 5
    old.process.context.run(node.wake)
    await settled_once(trio, asked)
    assert await trio.leading() is one
    assert not node.proposals.queued_count


@on_trio
async def test_forwarded_writes_survive_the_leader(trio: Trio) -> None:
    old, one, _ = await trio.leader_and_followers()
    client = await client_of(trio, one)
    trio.wire.holds = acknowledgements
    asked = sums(trio, one, client, 5)
    await asyncio.sleep(0.05)
    assert trio.node(old).proposals.pending_count
    trio.kill(old)
    trio.wire.release()
    await takes_over(trio, old)
    await settled_once(trio, asked)


@on_trio
async def test_forwarded_writes_survive_a_leader_that_is_cut_off_and_returns(trio: Trio) -> None:
    old, one, _ = await trio.leader_and_followers()
    client = await client_of(trio, one)
    trio.wire.holds = appends
    asked = sums(trio, one, client, 5)
    await asyncio.sleep(0.05)
    assert trio.node(old).proposals.pending_count
    trio.cut(old)
    trio.wire.held.clear()
    trio.wire.holds = None
    await takes_over(trio, old)
    for each in asked:
        await each.write()
    trio.heal()
    await settled_once(trio, asked)


@on_trio
async def test_writes_that_a_snapshot_skipped_are_settled_by_their_request_ids(trio: Trio) -> None:
    old, one, other = await trio.leader_and_followers()
    client = await client_of(trio, old)
    trio.wire.holds = lambda source, target, batch: (
        target == other.member.node_id or acknowledgements(source, target, batch)
    )
    known = sums(trio, old, client, 3)  # reaches `one`, who will commit it
    await asyncio.sleep(0.05)
    trio.cut(old)
    lost = sums(trio, old, client, 3, first=4)  # reaches nobody
    await asyncio.sleep(0.05)
    assert trio.node(old).proposals.pending_count == 2
    trio.wire.held.clear()
    trio.wire.holds = None
    new = await takes_over(trio, old)
    for n in range(60):
        await trio.put(new, b"filler%d" % n, b"x" * 1_000)
    for server in (one, other):
        await trio.within(server, trio.node(server).snapshot_now())
    node = trio.node(old)
    assert trio.node(new).log.first_index() > node.raft.last_index, "the log would do; the test wants a snapshot"
    trio.heal()
    await settled_once(trio, known + lost)
    assert node.stats.snapshots_installed == 1


# Bounds and deadlines.


@on_trio
async def test_past_its_deadline_a_proposed_write_is_unknown_and_a_queued_one_was_not_applied(trio: Trio) -> None:
    leader = await trio.leading()
    client = await client_of(trio, leader)
    trio.wire.holds = acknowledgements
    asked = []
    for n in range(1, MAX_PENDING_ENTRIES_COUNT + 2):
        asked.append(trio.ask(leader, write(add_one(b"n"), number=n, timeout_ms=300), Origin(client, 1)))
        await asyncio.sleep(0.02)
    proposed, queued = await asked[0].error(), await asked[-1].error()
    assert proposed.code == queued.code == "DEADLINE_EXCEEDED"
    assert not proposed.not_applied and "send it again under the same request id" in proposed.message
    assert queued.not_applied and "no leader could take" in queued.message
    trio.wire.release()
    again = trio.ask(leader, write(add_one(b"n"), number=1, resend=True), Origin(client, 1))
    assert (await again.write()).status == SUCCESS
    await asyncio.sleep(0.5)
    assert number_of(await trio.get(leader, b"n")) == MAX_PENDING_ENTRIES_COUNT
    assert all(len(each.results) == 1 for each in asked)


@on_trio
async def test_a_full_queue_refuses_and_says_so(trio: Trio) -> None:
    leader = await trio.leading()
    trio.wire.holds = acknowledgements
    kept, limits.MAX_PROPOSAL_QUEUE_COUNT = limits.MAX_PROPOSAL_QUEUE_COUNT, 3
    try:
        asked = [trio.ask(leader, write(put(b"k"), number=n)) for n in range(5)]
    finally:
        limits.MAX_PROPOSAL_QUEUE_COUNT = kept
    assert [each.done for each in asked] == [False, False, False, True, True]
    error = await asked[4].error()
    assert error.code == "OVERLOADED" and error.not_applied
    trio.wire.release()
    for each in asked[:3]:
        await each.write()
