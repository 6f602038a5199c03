"""The first election of a cluster: the founder's, and without a wait."""

from __future__ import annotations

import asyncio

from kvnode.raft.types import Role
from tests.unit.node.cluster import Trio, on_trio, until


@on_trio
async def test_the_founder_leads_at_once(trio: Trio) -> None:
    founder = list(trio.servers.values())[1]
    began_s = trio.loop.time()
    await trio.within(founder, trio.node(founder).elect_first())
    await until(lambda: trio.node(founder).is_leader, 1.0, "the founder does not lead")
    assert trio.loop.time() - began_s < 0.3, "an election timeout is a second"
    assert trio.node(founder).raft.term == 1
    await trio.put(founder, b"first")


@on_trio
async def test_it_asks_again_until_a_majority_can_be_reached(trio: Trio) -> None:
    founder = next(iter(trio.servers.values()))
    trio.cut(founder)
    asked = asyncio.ensure_future(trio.within(founder, trio.node(founder).elect_first()))
    await asyncio.sleep(0.4)
    assert not asked.done() and trio.node(founder).raft.term == 0
    trio.heal()
    await until(lambda: trio.node(founder).is_leader, 0.4, "the founder does not lead")
    await asked


@on_trio
async def test_where_there_has_been_a_leader_nobody_is_hurried(trio: Trio) -> None:
    leader, follower, _ = await trio.leader_and_followers()
    term = trio.node(leader).raft.term
    await trio.within(follower, trio.node(follower).elect_first())
    assert trio.node(leader).is_leader and trio.node(leader).raft.term == term
    for server in trio.servers.values():
        trio.crash(server)
    for server in trio.servers.values():
        trio.start(server)
    await until(lambda: all(server.node is not None for server in trio.servers.values()), 5.0, "no start")
    await trio.within(follower, trio.node(follower).elect_first())
    assert trio.node(follower).raft.role is Role.FOLLOWER
