"""A leader answers writers when their entry is committed, and applies it when somebody waits for it, or soon after."""

from __future__ import annotations

import asyncio
from typing import Any

from kvnode.base import limits
from kvnode.codec.entry import Entry, EntryKind
from kvnode.machine.keyspace import SYSTEM_DATABASE
from kvnode.node.calls import Call
from kvnode.node.ports import Origin
from kvnode.node.proposals import PendingEntry, Proposals
from kvnode.node.stats import Stats
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import MessageKind
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Asked, Trio, add_one, number_of, on_trio, put, read, until, value_of, write


async def committed_while_more_comes(trio: Trio, leader: Server, number: int, origin: Origin) -> tuple[Asked, Asked]:
    """A sum in an entry that is committed, and another write behind it whose acknowledgements are held."""
    node = trio.node(leader)
    index = node.raft.last_index + 1

    def acknowledges_more(source: int, target: int, batch: peer_pb2.PeerBatch) -> bool:
        return any(message.kind == MessageKind.APPEND_RESPONSE and message.index > index for message in batch.messages)

    trio.wire.holds = acknowledges_more
    first = trio.ask(leader, write(add_one(b"n"), number=number), origin)
    await until(lambda: node.raft.last_index == index, 1)
    behind = trio.ask(leader, write(put(b"behind")))
    await until(lambda: node.raft.commit == index, 1)
    return first, behind


async def session(trio: Trio, leader: Server) -> Origin:
    return Origin(await trio.within(leader, trio.node(leader).open_session()), 1)


@on_trio
async def test_writers_do_not_wait_for_the_apply(trio: Trio) -> None:
    leader = await trio.leading()
    node, origin = trio.node(leader), await session(trio, leader)
    first, behind = await committed_while_more_comes(trio, leader, 1, origin)
    assert first.done and not behind.done
    assert node.applied_index < node.raft.commit
    await asyncio.sleep((limits.APPLY_DELAY_MS + 1) / 1_000)
    assert node.applied_index == node.raft.commit, "what is gathered is applied soon"
    trio.wire.release()
    await behind.write()
    assert len(first.results) == 1


@on_trio
async def test_a_strong_read_sees_what_was_answered_and_not_yet_applied(trio: Trio) -> None:
    leader = await trio.leading()
    node, origin = trio.node(leader), await session(trio, leader)
    first, _ = await committed_while_more_comes(trio, leader, 1, origin)
    assert first.done and node.applied_index < node.raft.commit
    trio.wire.holds = None
    found = await trio.ask(leader, read(b"n")).read()
    assert number_of(value_of(found)) == 1


@on_trio
async def test_a_resend_between_answer_and_apply_has_the_first_answer(trio: Trio) -> None:
    leader = await trio.leading()
    node, origin = trio.node(leader), await session(trio, leader)
    first, behind = await committed_while_more_comes(trio, leader, 1, origin)
    again = trio.ask(leader, write(add_one(b"n"), number=1, resend=True), origin)
    await until(lambda: again.done, limits.APPLY_DELAY_MS / 2_000, "its first copy is committed")
    assert node.applied_index < node.raft.commit
    trio.wire.release()
    await behind.write()
    assert (await again.write()).versionstamp == (await first.write()).versionstamp
    assert number_of(await trio.get(leader, b"n")) == 1


@on_trio
async def test_a_write_to_the_system_database_is_answered_when_it_is_applied(trio: Trio) -> None:
    """This node judges tokens and databases by what it has applied: whoever was told must find it so, and soon."""
    leader = await trio.leading()
    node = trio.node(leader)
    first, behind = await committed_while_more_comes(trio, leader, 1, Origin(b"", 0, SYSTEM_DATABASE))
    await until(lambda: first.done, limits.APPLY_DELAY_MS / 4_000, "it gathered with what is not waited for")
    assert node.applied_index == node.raft.commit and not behind.done
    trio.wire.release()
    await behind.write()


def test_an_entry_that_waits_for_its_apply_is_answered_then() -> None:
    nothing: Any = None
    proposals = Proposals(
        nothing, nothing, nothing, Stats(), nothing, lambda: 0, lambda *_: None, lambda: None, nothing
    )
    results: list[kv_pb2.OperationResult] = []
    body = kv_pb2.OperationResult(id=1)
    for at, is_late in enumerate((False, True), 5):
        call = Call(write(number=at), Origin(b"c", 1), results.append, None, 0, 1_000)
        proposals._pending[at] = PendingEntry(1, 10, [(call, body)], is_late)
    entries = [Entry(1, at, EntryKind.DATA, b"") for at in (5, 6)]
    proposals.committed(entries, 0)
    assert len(results) == 1 and proposals.awaits_apply
    proposals.applied(entries[0], 0)
    assert len(results) == 1 and proposals.awaits_apply
    proposals.applied(entries[1], 0)
    assert len(results) == 2 and not proposals.awaits_apply and not proposals.pending_count


@on_trio
async def test_a_loaded_leader_applies_several_entries_at_once(trio: Trio) -> None:
    leader = await trio.leading()
    node = trio.node(leader)
    entries, transactions = node.raft.last_index, node.stats.apply_ms.count

    async def writer(name: bytes) -> None:
        for number in range(40):
            await trio.ask(leader, write(put(name, b"%d" % number))).write()
            await asyncio.sleep(0.0003 * len(name))

    await asyncio.gather(*[writer(b"w" * (number + 1)) for number in range(4)])
    entries = node.raft.last_index - entries
    transactions = node.stats.apply_ms.count - transactions
    assert transactions <= entries * 2 // 3, f"{entries} entries in {transactions} transactions"
