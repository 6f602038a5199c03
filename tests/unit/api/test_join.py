"""Before a node belongs to a cluster."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from kvnode.api import join
from kvnode.api.join import Joining, adopt_initial_members, plan_bootstrap, wait_for_adoption
from kvnode.base.errors import ConfigError, InvalidRequest, KvError, Unavailable
from kvnode.codec.membership import Member, MemberRole, Membership, encode_membership
from kvnode.node import peer_calls
from kvnode.node.member_wire import member_to_wire
from kvnode.proto.kv.internal.v1 import peer_pb2


def voter(node_id: int, name: str = "", address: str = "") -> Member:
    return Member(node_id, name or f"n{node_id}", "r", "abc"[node_id % 3], address or f"h{node_id}:1")


ME = voter(1)


def request(node_id: int = 1, cluster_id: str = "c1") -> peer_pb2.AdoptRequest:
    membership = encode_membership(Membership((ME,), 1))
    return peer_pb2.AdoptRequest(cluster_id=cluster_id, epoch=3, node_id=node_id, membership=membership)


class Peers:
    """Nodes that wait to be joined, each at its address; some are not up yet."""

    def __init__(self, *members: Member) -> None:
        self.waiting = {member.address: Joining(member) for member in members}
        self.absent: dict[str, int] = {}  # address: how often it is still not reached
        self.adoptions: list[str] = []

    async def identify(self, address: str) -> peer_pb2.IdentifyResponse:
        if self.absent.get(address, 0):
            self.absent[address] -= 1
            raise Unavailable("not up", code="PEER_UNREACHABLE", phase="dial")
        return self.waiting[address].identify()

    async def adopt(self, address: str, wanted: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
        self.adoptions.append(address)
        return await self.waiting[address].adopt(wanted)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "IDENTIFY_RETRY_S", 0.0)


async def plan(peers: Peers, *addresses: str) -> tuple[str, Membership]:
    return await plan_bootstrap(ME, list(addresses), 2, peers.identify, random.Random(1))


# Adoption.


async def test_adoption_is_taken_once_and_may_be_repeated() -> None:
    joining = Joining(ME)
    assert not joining.identify().joined
    await joining.adopt(request())
    await joining.adopt(request())
    assert joining.adopted.result() == ("c1", 3, request().membership)
    assert joining.identify().joined and joining.identify().cluster_id == "c1"


async def test_another_cluster_or_another_id_is_refused() -> None:
    joining = Joining(ME)
    with pytest.raises(InvalidRequest) as wrong_id:
        await joining.adopt(request(node_id=2))
    assert wrong_id.value.code == "MEMBER_ID_MISMATCH" and not joining.adopted.done()
    await joining.adopt(request())
    with pytest.raises(InvalidRequest) as foreign:
        await joining.adopt(request(cluster_id="c2"))
    assert foreign.value.code == "MEMBER_OF_ANOTHER_CLUSTER" and "empty data directory" in foreign.value.message
    assert joining.cluster_id == "c1"
    with pytest.raises(InvalidRequest):
        await Joining(ME, "c2").adopt(request())


async def test_a_waiting_node_is_adopted_over_the_network(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    waiting = asyncio.ensure_future(wait_for_adoption(Joining(ME), address))
    async with asyncio.timeout(10):
        while True:
            try:
                seen = await peer_calls.identify(address)
                break
            except KvError:
                await asyncio.sleep(0.05)
        assert seen.member.name == ME.name and not seen.joined
        with pytest.raises(KvError) as refused:
            await peer_calls.adopt(address, request(node_id=5))
        assert refused.value.code == "MEMBER_ID_MISMATCH" and not waiting.done()
        await peer_calls.adopt(address, request())
        assert await waiting == ("c1", 3, request().membership)


# Bootstrap.


async def test_initial_voters_that_place_a_data_center_in_two_regions_are_refused() -> None:
    other = replace(voter(4), region="elsewhere")  # in the data center of ME
    with pytest.raises(ConfigError, match=r"'n1' says r/b, .* region elsewhere: correct --region or --dc"):
        await plan(Peers(other, voter(2)), "h4:1", "h2:1")


async def test_the_plan_names_every_voter_at_its_address() -> None:
    peers = Peers(voter(2), voter(3))
    peers.absent = {"h2:1": 3}
    cluster_id, membership = await plan(peers, ME.address, "h2:1", "h3:1")
    assert [(m.node_id, m.address, m.role) for m in membership.members] == [
        (1, "h1:1", MemberRole.VOTER),
        (2, "h2:1", MemberRole.VOTER),
        (3, "h3:1", MemberRole.VOTER),
    ]
    assert membership.min_commit_dcs == 2 and len(cluster_id) == 32
    other_id, _ = await plan_bootstrap(ME, [], 1, peers.identify, random.Random(2), allow_unsafe=True)
    assert other_id != cluster_id


async def test_who_waits_for_a_voter_says_how_that_is_started(caplog: pytest.LogCaptureFixture) -> None:
    """Voters that all found the cluster wait for one another for ever, and none of them listens."""
    caplog.set_level("INFO")
    peers = Peers(voter(2), voter(3))
    peers.absent = {"h2:1": 3}
    await plan(peers, ME.address, "h2:1", "h3:1")
    assert caplog.text.count("waiting for the node at h2:1, which is to be started without bootstrap: not up") == 1


async def test_a_peer_that_belongs_to_a_cluster_refuses_the_bootstrap() -> None:
    peers = Peers(voter(2), voter(3))
    await peers.waiting["h3:1"].adopt(request(3, "other"))
    with pytest.raises(ConfigError, match=r"h3:1 belongs to cluster other already.*kvnode member add"):
        await plan(peers, "h2:1", "h3:1")
    assert not peers.adoptions


@pytest.mark.parametrize(
    ("second", "field"), [(voter(2, "n1"), "name"), (voter(1, "n2", "h2:1"), "node_id"), (voter(3, "n2"), "address")]
)
async def test_two_voters_that_cannot_be_told_apart_refuse_the_bootstrap(second: Member, field: str) -> None:
    peers = Peers(second)
    addresses = [second.address] * (2 if field == "address" else 1)
    if field == "address":
        with pytest.raises(ConfigError, match="two of the initial voters have the same"):
            await plan(peers, *addresses)
    else:
        with pytest.raises(ConfigError, match=f"the same {field}"):
            await plan(peers, *addresses)


async def test_all_initial_members_are_asked_until_they_have_joined() -> None:
    peers = Peers(voter(2), voter(3))
    peers.absent = {"h2:1": 2}
    initial = encode_membership(Membership((ME, voter(2), voter(3)), 2))
    async with asyncio.timeout(5):
        await adopt_initial_members(ME, "c1", 1, initial, peers.identify, peers.adopt)
    assert {joining.cluster_id for joining in peers.waiting.values()} == {"c1"}
    assert peers.adoptions == ["h2:1", "h3:1"]
    async with asyncio.timeout(5):
        await adopt_initial_members(ME, "c1", 1, initial, peers.identify, peers.adopt)
    assert peers.adoptions == ["h2:1", "h3:1"], "after a restart only those are asked who have not joined"


async def test_a_node_that_refuses_is_asked_again() -> None:
    peers = Peers(voter(2))
    refusals = 2

    async def adopt(address: str, wanted: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise Unavailable("busy")
        return await peers.adopt(address, wanted)

    initial = encode_membership(Membership((ME, voter(2)), 2))
    async with asyncio.timeout(5):
        await adopt_initial_members(ME, "c1", 1, initial, peers.identify, adopt)
    assert peers.waiting["h2:1"].identify().member == member_to_wire(voter(2))
    assert peers.waiting["h2:1"].cluster_id == "c1"
