from __future__ import annotations

import itertools
from random import Random

import pytest

from kvnode.base.errors import InvalidRequest, KvError, OutcomeUnknown, Unavailable
from kvnode.client import Admin
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2
from tests.unit.client.fake_server import FakeServer, free_port


def members(*servers: FakeServer) -> list[admin_pb2.Member]:
    return [
        admin_pb2.Member(node_id=number, name=server.name, address=server.address, role="voter")
        for number, server in enumerate(servers, 1)
    ]


async def test_reads_of_the_cluster_go_to_any_node() -> None:
    async with FakeServer() as server, Admin([f"127.0.0.1:{free_port()}", server.address]) as admin:
        server.status.members.extend(members(server))
        server.cluster_status.summary = "healthy"
        assert (await admin.members()).members[0].name == "a"
        assert (await admin.cluster_status()).summary == "healthy"
        assert (await admin.snapshot()).index == 9
        assert (await admin.digest(scrub=True)).matches
        assert admin.endpoint == server.address


async def test_a_change_goes_to_the_leader() -> None:
    async with FakeServer(name="a") as follower, FakeServer(name="b") as leader:
        for server in (follower, leader):
            server.status.members.extend(members(follower, leader))
            server.status.leader_id = 2
        async with Admin([follower.address]) as admin:
            await admin.add(admin_pb2.Member(address="127.0.0.1:1"))
            await admin.promote(3)
            await admin.remove(3, force=True)
            await admin.replace(3, admin_pb2.Member(address="127.0.0.1:1"))
            assert (await admin.transfer_leadership(2)).term == 7
        assert [type(request).__name__ for request in leader.admin_requests] == [
            "MemberAddRequest",
            "MemberPromoteRequest",
            "MemberRemoveRequest",
            "MemberReplaceRequest",
            "TransferLeadershipRequest",
        ]
        assert {type(request).__name__ for request in follower.admin_requests} == {"StatusRequest"}


async def test_a_change_waits_while_leadership_moves() -> None:
    async with FakeServer() as server, Admin([server.address], random=Random(1)) as admin:
        server.status.members.extend(members(server))
        server.status.leader_id = 1
        moved = kv_pb2.Error(code="NOT_LEADER", message="not the leader", phase="leader", not_applied=True)
        server.faults.errors = []
        original = server._misbehave

        async def misbehave(context: object) -> None:
            if len(server.admin_requests) == 1:
                server.faults.errors = [moved]
                server.admin_requests.append(None)
            await original(context)

        server._misbehave = misbehave  # type: ignore[method-assign]
        await admin.promote(1)
        kinds = [type(request).__name__ for request in server.admin_requests]
    assert kinds == ["StatusRequest", "NoneType", "StatusRequest", "MemberPromoteRequest"]


async def test_a_change_finds_the_leader_that_the_first_node_does_not_know() -> None:
    """A node with a damaged log, or cut off, answers and knows of no leader: all the time of the call went to it."""
    async with FakeServer(name="a") as lonely, FakeServer(name="b") as leader:
        for server in (lonely, leader):
            server.status.members.extend(members(lonely, leader))
        leader.status.leader_id = 2
        original = lonely._misbehave
        calls = itertools.count()

        async def misbehave(context: object) -> None:
            if next(calls) % 2:  # a change, after a look at its status
                error = kv_pb2.Error(code="NOT_LEADER", message="no leader is known", phase="leader", not_applied=True)
                lonely.faults.errors = [error]
            await original(context)

        lonely._misbehave = misbehave  # type: ignore[method-assign]
        async with Admin([lonely.address, leader.address], timeout_ms=2_000) as admin:
            await admin.promote(1)
        assert isinstance(leader.admin_requests[-1], admin_pb2.MemberPromoteRequest)


async def test_a_refused_change_is_not_repeated() -> None:
    async with FakeServer() as server, Admin([server.address]) as admin:
        refusal = kv_pb2.Error(code="MEMBER_UNKNOWN", message="nobody", phase="validate", not_applied=True)
        server.faults.errors = [refusal]
        with pytest.raises(InvalidRequest):
            await admin.status()


async def test_a_change_that_was_not_answered_is_of_unknown_outcome() -> None:
    async with FakeServer() as server:
        server.status.members.extend(members(server))
        server.status.leader_id = 1
        async with Admin([server.address], timeout_ms=400) as admin:
            original = server._misbehave

            async def misbehave(context: object) -> None:
                server.faults.hang = len(server.admin_requests) == 1
                await original(context)

            server._misbehave = misbehave  # type: ignore[method-assign]
            with pytest.raises(OutcomeUnknown, match="look before"):
                await admin.promote(1)


async def test_nobody_there() -> None:
    async with Admin([f"127.0.0.1:{free_port()}"]) as admin:
        with pytest.raises(Unavailable, match="could not connect") as caught:
            await admin.status()
    assert caught.value.phase == "dial"
    assert isinstance(caught.value, KvError)
