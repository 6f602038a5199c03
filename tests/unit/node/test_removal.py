"""Who was removed from the cluster is fed no more, serves nothing strong, and says so; nobody else is taken for one."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.codec.membership import Member, MemberRole, Membership, decode_membership, encode_membership
from kvnode.node.removal import Removal
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_regions, on_trio, put, read, until, write
from tests.unit.node.queue.test_delivery import Listener
from tests.unit.node.test_members import added, newcomer

FOUR = Membership(tuple(Member(n, f"n{n}", "r", "d", f"h:{n}") for n in (1, 2, 3, 4)))


async def removed(trio: Trio, server: Server) -> None:
    """Have the leader remove it."""
    leader = await trio.leading()
    await trio.within(leader, trio.node(leader).members.remove(server.member.node_id, force=True))


async def says_so(trio: Trio, server: Server) -> None:
    """It comes to know of its removal, and refuses what is strong."""
    await until(lambda: "MEMBER_REMOVED" in trio.node(server).ready[1], 20, "it takes itself for a member")
    ready, why = trio.node(server).ready
    assert not ready and "empty data directory" in why and why in trio.node(server).status().problems
    for operation in (write(put(b"late")), read(b"k")):
        error = await trio.ask(server, operation).error()
        assert (error.code, error.not_applied) == ("MEMBER_REMOVED", True)


def replicas(trio: Trio) -> list[Server]:
    return [server for server in trio.servers.values() if server.member.role is MemberRole.REPLICA]


def test_a_membership_remembers_who_was_removed() -> None:
    left = FOUR.without(4).without(2)
    assert [member.node_id for member in left.members] == [1, 3] and left.removed_ids == (4, 2)
    assert decode_membership(encode_membership(left)) == left


def test_a_membership_remembers_the_latest_removals_only() -> None:
    left = FOUR
    for node_id in range(10, 10 + limits.MAX_REMOVED_MEMBERS_COUNT + 3):
        left = left.without(node_id)
    assert left.removed_ids == tuple(range(13, 13 + limits.MAX_REMOVED_MEMBERS_COUNT))


def test_a_membership_that_says_nothing_of_removals_had_none() -> None:
    encoded = encode_membership(FOUR)
    assert "removed_ids" not in json.loads(encoded)
    assert decode_membership(encoded).removed_ids == ()


def test_a_removal_holds_for_the_epoch_in_which_it_was_told_or_applied() -> None:
    epochs: Any = SimpleNamespace(established=1, latest=1)
    told, applied = Removal(4, epochs, FOUR), Removal(4, epochs, FOUR.without(4))
    assert not told.own and applied.own
    told.hear(peer_pb2.Hello(established_epoch=1, removed=True))
    told.hear(peer_pb2.Hello(established_epoch=1))
    assert told.own, "who has not applied it yet knows less"
    epochs.latest = 2
    assert not told.own and not applied.own, "the failover may have lost it"


@on_regions
async def test_a_removed_replica_is_fed_no_more_and_says_so(trio: Trio) -> None:
    leader = await trio.leading()
    await trio.put(leader, b"k")
    await trio.everywhere()
    stays, leaves = replicas(trio)
    await removed(trio, leaves)
    await says_so(trio, leaves)
    await trio.put(leader, b"after")
    await until(lambda: trio.node(stays).applied_index == trio.node(leader).applied_index, 10)
    assert not (await trio.ask(leaves, read(b"after", eventual=True)).read()).ranges[0].entries
    assert leaves.member.node_id not in {
        source.node_id for server in trio.serving for source in trio.node(server).changelog.following
    }
    assert trio.node(stays).ready == (True, "ok")


@on_regions
async def test_who_watches_or_listens_at_a_removed_member_is_sent_elsewhere(trio: Trio) -> None:
    """Its streams are open, and nothing would ever come on them."""
    await trio.put(await trio.leading(), b"k")
    await trio.everywhere()
    leaves = replicas(trio)[0]
    node, request = trio.node(leaves), kv_pb2.WatchRequest(keys=[b"k"])
    watch = leaves.process.context.run(node.watches.watch, request)
    listener = Listener(trio, leaves, credit=1)
    await removed(trio, leaves)
    await says_so(trio, leaves)
    await until(lambda: not watch.open, 10, "the watch is told nothing")
    with pytest.raises(Unavailable, match="was removed from the cluster"):
        node.watches.watch(request)
    await until(lambda: bool(listener.errors), 60, "the listener is told nothing")
    assert [error.code for error in listener.errors] == ["NODE_CUT_OFF"], "it takes its leases along"
    assert "removed" in listener.errors[0].message
    listener.leave(give_back=False)


@on_regions
async def test_a_member_that_was_away_when_it_was_removed_is_told(trio: Trio) -> None:
    leader = await trio.leading()
    voter = next(server for server in trio.others(leader) if server.member.role is MemberRole.VOTER)
    replica = replicas(trio)[0]
    await trio.put(leader, b"k")
    await trio.everywhere()
    for server in (voter, replica):
        trio.kill(server)
        await removed(trio, server)
    for server in (voter, replica):
        trio.start(server)
        await until(lambda server=server: server.serving, 10)  # type: ignore[misc]
        await says_so(trio, server)
    assert not any(trio.node(server).introductions for server in trio.serving), "they are no strangers"


@on_regions
async def test_a_removed_member_knows_it_after_a_restart(trio: Trio) -> None:
    leaves = replicas(trio)[0]
    await trio.put(await trio.leading(), b"k")
    await removed(trio, leaves)
    await says_so(trio, leaves)
    trio.kill(leaves)
    trio.start(leaves)
    await until(lambda: leaves.serving, 10)
    await says_so(trio, leaves)


@on_trio
async def test_who_joins_and_replays_memberships_without_itself_was_not_removed(trio: Trio) -> None:
    first, second = newcomer(trio, 4), newcomer(trio, 5)
    await asyncio.sleep(0.1)
    await added(trio, first)
    await removed(trio, first)
    said = set()

    async def watch() -> None:
        while True:
            if second.node is not None:
                said.add(second.node.removal.own)
            await asyncio.sleep(0.001)

    watching = asyncio.ensure_future(watch())
    await added(trio, second)
    await until(lambda: trio.node(second).ready[0], 10)
    watching.cancel()
    assert said == {""}
    assert trio.node(second).membership.removed_ids == (4,)
