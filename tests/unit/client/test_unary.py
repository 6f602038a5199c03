"""Which errors of a node a single call takes for the last word."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from kvnode.base.errors import DeadlineExceeded, KvError, OutcomeUnknown
from kvnode.client import Admin, rpc
from kvnode.client.unary import UnaryCaller
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2
from tests.unit.client.fake_server import FakeServer, abort

GET = kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=b"k", end=b"l", limit=1)])


def error(code: str, phase: str, *, not_applied: bool = True) -> kv_pb2.Error:
    return kv_pb2.Error(code=code, message=f"{code} by the test", phase=phase, not_applied=not_applied)


async def test_a_node_that_waited_nearly_until_the_deadline_is_not_asked_again() -> None:
    """Its answer says why; another attempt would end with the client's own timer, which knows nothing."""
    async with FakeServer() as server:

        async def wait(context: Any) -> None:
            await asyncio.sleep(1.85)
            await abort(context, error("DEADLINE_EXCEEDED", "read"))

        server._misbehave = wait  # type: ignore[method-assign]
        caller = UnaryCaller([server.address])
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 2000 ms \(last: DEADLINE_EXCEEDED by the test"):
            await caller.call(rpc.READ, GET, 2_000)
        assert server.unary_count == 1 and time.monotonic() - began_s < 2.5
        await caller.close()


async def test_a_deadline_of_the_nodes_own_is_not_the_callers() -> None:
    async with FakeServer() as server:
        server.faults.errors = [error("DEADLINE_EXCEEDED", "read")]
        caller = UnaryCaller([server.address])
        assert isinstance(await caller.call(rpc.READ, GET, 10_000), kv_pb2.ReadResponse)
        assert server.unary_count == 2
        await caller.close()


async def test_an_effect_that_the_node_itself_reports_keeps_its_code() -> None:
    async with FakeServer() as server, Admin([server.address]) as admin:
        server.faults.errors = [error("FAILOVER_INCOMPLETE", "failover", not_applied=False)]
        with pytest.raises(OutcomeUnknown) as caught:
            await admin.failover("europe")
        assert caught.value.code == "FAILOVER_INCOMPLETE" and not caught.value.not_applied
        assert "not answered" not in caught.value.message


async def test_what_the_leader_cannot_reach_is_reported_and_not_who_leads() -> None:
    """A replica that is asked next could say only that it does not lead."""
    async with FakeServer(name="a") as leader, FakeServer(name="e") as replica:
        for server in (leader, replica):
            server.status.leader_id = 1
            server.status.members.add(node_id=1, name="a", address=leader.address, role="voter")
        leader.faults.errors = [error("PEER_UNREACHABLE", "dial")]
        async with Admin([replica.address]) as admin:
            with pytest.raises(KvError) as caught:
                await admin.add(admin_pb2.Member(address="127.0.0.1:1"))
        assert caught.value.code == "PEER_UNREACHABLE"
        assert {type(request).__name__ for request in replica.admin_requests} == {"StatusRequest"}
