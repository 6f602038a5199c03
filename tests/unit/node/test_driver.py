"""The order of things between core, disk, state and network."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from kvnode.base import limits
from kvnode.node.ports import Origin
from kvnode.raft.messages import Message, MessageKind
from tests.simulation.cluster import Server
from tests.unit.node.cluster import SUCCESS, Asked, Trio, add_one, number_of, on_trio, put, until, write


@on_trio
async def test_what_was_acknowledged_survives_the_power_loss_of_all(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    for n in range(20):
        await trio.put(one, b"k%d" % n, b"%d" % n)
    for server in trio.servers.values():
        trio.crash(server)
    for server in trio.servers.values():
        trio.start(server)
    await until(lambda: all(server.node is not None for server in trio.servers.values()), 5)
    leader = await trio.leading()
    for n in range(20):
        assert await trio.get(leader, b"k%d" % n) == b"%d" % n


@on_trio
async def test_no_acknowledgement_before_the_followers_have_fsynced(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    one.disk_factor = other.disk_factor = 400.0  # 0.2 s at least
    started_s = asyncio.get_running_loop().time()
    asked = trio.ask(leader, write(put(b"k")))
    assert (await asked.write()).status == SUCCESS
    assert asyncio.get_running_loop().time() - started_s >= 0.2


@on_trio
async def test_the_leaders_own_fsync_runs_while_the_entry_travels(trio: Trio) -> None:
    leader = await trio.leading()
    leader.disk_factor = 400.0
    before = [trio.node(server).log.last_index() for server in trio.others(leader)]
    trio.ask(leader, write(put(b"k")))
    await asyncio.sleep(0.1)
    after = [trio.node(server).log.last_index() for server in trio.others(leader)]
    assert all(b > a for a, b in zip(before, after, strict=True)), "the append waited for the leader's disk"


@on_trio
async def test_the_slower_the_disk_the_larger_the_batches(trio: Trio) -> None:
    leader = await trio.leading()
    for server in trio.servers.values():
        server.disk_factor = 50.0
    before = trio.node(leader).raft.last_index
    asked = []
    for n in range(200):
        asked.append(trio.ask(leader, write(put(b"k%d" % n), number=n)))
        await asyncio.sleep(0.002)
    for each in asked:
        await each.write()
    assert trio.node(leader).raft.last_index - before < 40


@on_trio
async def test_an_error_in_the_apply_stops_the_node(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    trio.may_stop.add(one.member.node_id)
    node = trio.node(one)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("an entry that this node cannot apply")

    one.state.apply = broken  # type: ignore[method-assign, assignment]
    await trio.put(leader, b"k")
    await until(node.failed.done, 5)
    assert "cannot apply" in str(node.failed.result())
    assert await trio.get(other, b"k") == b"v"


class Passes:
    """What nodes do in one pass of the loop, from here to end()."""

    def __init__(self, trio: Trio) -> None:
        self.entries: Counter[tuple[str, int]] = Counter()
        self.rows: Counter[tuple[str, int]] = Counter()
        self.resends: Counter[tuple[str, int]] = Counter()
        self._pass = 0
        self._stats = {server.member.name: trio.node(server).stats for server in trio.servers.values()}
        self._loop: Any = asyncio.get_running_loop()
        self._run_ready = self._loop._run_ready
        self._loop._run_ready = self._count
        for server in trio.servers.values():
            self._watch(trio, server)

    def _count(self) -> None:
        before = {name: stats.conflicts_resent for name, stats in self._stats.items()}
        self._pass += 1
        self._run_ready()
        for name, stats in self._stats.items():
            self.resends[name, self._pass] = stats.conflicts_resent - before[name]

    def _watch(self, trio: Trio, server: Server) -> None:
        name, raft, apply = server.member.name, trio.node(server).raft, server.state.apply
        propose = raft.propose

        def proposed(data: bytes) -> int:
            self.entries[name, self._pass] += 1
            return propose(data)

        def applied(writes: dict[bytes, Any], **how: Any) -> None:
            self.rows[name, self._pass] += len(writes)
            apply(writes, **how)

        trio.node(server).operations.proposals._raft = _Proposing(raft, proposed)  # type: ignore[assignment]
        server.state.apply = applied  # type: ignore[method-assign, assignment]

    def end(self) -> None:
        self._loop._run_ready = self._run_ready


class _Proposing:
    """A core whose proposals are seen."""

    def __init__(self, raft: Any, propose: Any) -> None:
        self._raft = raft
        self.propose = propose

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raft, name)


@on_trio
async def test_thousands_of_writes_do_not_hold_the_loop_in_one_piece(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    passes = Passes(trio)
    asked = [trio.ask(one, write(put(b"k%d" % n, bytes(100)), number=n)) for n in range(3_000)]
    for each in asked:
        assert (await each.write()).status == SUCCESS
    await trio.everywhere()
    passes.end()
    assert max(passes.entries.values()) == 1, "more than one entry was made before the loop had its turn"
    assert max(passes.rows.values()) <= 1.5 * limits.MAX_BATCH_TRANSACTIONS_COUNT
    assert len(passes.rows) >= 3 * 3_000 // limits.MAX_BATCH_TRANSACTIONS_COUNT


@on_trio
async def test_thousands_of_resends_do_not_hold_the_loop_in_one_piece(trio: Trio) -> None:
    leader = await trio.leading()
    node = trio.node(leader)
    client = await trio.within(leader, node.open_session())
    trio.wire.holds = lambda _source, _target, batch: any(
        message.kind == MessageKind.APPEND_RESPONSE for message in batch.messages
    )

    def sent(*, resend: bool) -> list[Asked]:
        return [
            trio.ask(leader, write(add_one(b"n"), number=n, resend=resend), Origin(client, 1)) for n in range(1, 2_001)
        ]

    first = sent(resend=False)
    await asyncio.sleep(0.2)
    passes = Passes(trio)
    before = node.stats.conflicts_resent
    again = sent(resend=True)
    await until(lambda: node.stats.conflicts_resent == before + len(again), 5)
    passes.end()
    assert max(passes.resends.values()) <= limits.MAX_BATCH_TRANSACTIONS_COUNT
    trio.wire.release()
    stamps = [(await each.write()).versionstamp for each in first]
    assert [(await each.write()).versionstamp for each in again] == stamps, "a resend got another copy's answer"
    assert number_of(await trio.get(leader, b"n")) == len(first)


@on_trio
async def test_a_heartbeat_leaves_between_two_runs_that_are_applied(trio: Trio) -> None:
    leader = await trio.leading()
    driver, raft = trio.node(leader).driver, trio.node(leader).raft
    sent: list[Message] = []
    driver._send = sent.extend  # type: ignore[method-assign]
    turn = asyncio.ensure_future(driver._turn(True))
    await asyncio.sleep(0)
    raft.tick()
    raft.tick()
    trio.node(leader).wake()
    assert any(message.kind == MessageKind.HEARTBEAT for message in sent)
    await turn
