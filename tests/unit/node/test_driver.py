"""The order of things between core, disk, state and network."""

from __future__ import annotations

import asyncio

from tests.unit.node.cluster import SUCCESS, Trio, on_trio, put, until, write


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
