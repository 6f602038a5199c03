"""status, member and leader."""

from __future__ import annotations

import asyncio
import signal

import pytest

from kvnode.proto.kv.v1 import admin_pb2
from tests.unit.cli.conftest import Cli
from tests.unit.client.fake_server import FakeServer


def describe(server: FakeServer, *, healthy: bool = True) -> None:
    names = ("a", "b", "c")
    nodes = [
        admin_pb2.Member(node_id=number, name=name, region="us", dc=f"dc-{name}", address=server.address, role="voter")
        for number, name in enumerate(names, 1)
    ]
    status = admin_pb2.StatusResponse(
        self=nodes[0], role="leader", term=3, leader_id=1, last_index=90, applied_index=88, members=nodes, version="1"
    )
    if not healthy:
        status.problems.append("node 'c' does not answer the leader")
    server.status.CopyFrom(status)
    server.cluster_status.CopyFrom(
        admin_pb2.ClusterStatusResponse(
            summary="healthy: 3 of 3 nodes answer" if healthy else "degraded: node 'c' does not answer",
            healthy=healthy,
            nodes=[
                admin_pb2.NodeStatus(member=nodes[0], status=status),
                admin_pb2.NodeStatus(member=nodes[2], error="connection refused"),
            ],
        )
    )


async def test_status_starts_with_one_sentence(cli: Cli, server: FakeServer) -> None:
    describe(server)
    ran = await cli("status")
    lines = ran.out.splitlines()
    assert ran.status == 0
    assert lines[0] == "healthy: 3 of 3 nodes answer"
    assert any(line.startswith("a ") and "leader" in line and "88" in line for line in lines)
    assert any("no answer: connection refused" in line for line in lines)


async def test_status_says_what_can_be_lost_and_what_is_on_its_way(cli: Cli, server: FakeServer) -> None:
    describe(server)
    server.cluster_status.outlook = "One data center can be lost."
    status = server.cluster_status.nodes[0].status
    status.snapshots.add(incoming=True, name="b", moved_bytes=34 << 20, size_bytes=100 << 20)
    status.snapshots.add(incoming=False, name="e1", moved_bytes=1, size_bytes=2)
    human, machine = await asyncio.gather(cli("status"), cli("status", "-o", "json"))
    assert human.out.splitlines()[1] == "One data center can be lost."
    assert human.out.rstrip().endswith("a receives a snapshot from b: 34% of 100 MiB")
    assert machine.json["outlook"] == "One data center can be lost."
    assert machine.json["nodes"][0]["status"]["snapshots"][1]["name"] == "e1"


async def test_status_says_who_waits_for_a_neighbours_snapshot(cli: Cli, server: FakeServer) -> None:
    describe(server)
    node = server.cluster_status.nodes[0]
    assert (await cli("status", "-o", "json")).json["nodes"][0]["status"]["snapshot_wait"] is None
    node.status.snapshot_wait.waited_ms = 2_400
    assert (
        (await cli("status"))
        .out.rstrip()
        .endswith("a needs a snapshot and looks for a neighbour that fetches it (for 2 s now)")
    )
    node.status.snapshot_wait.neighbour = "e1"
    assert "waits until e1 has it, which holds nothing yet (for 2 s now)" in (await cli("status")).out
    node.status.snapshot_wait.MergeFrom(admin_pb2.SnapshotWait(held_bytes=34 << 20, size_bytes=100 << 20))
    human, machine = await asyncio.gather(cli("status"), cli("status", "-o", "json"))
    assert "a needs a snapshot and waits until e1 has it, which holds 34% of 100 MiB (for 2 s now)" in human.out
    assert machine.json["nodes"][0]["status"]["snapshot_wait"]["neighbour"] == "e1"


@pytest.mark.parametrize(
    ("remaining_ms", "said"),
    [(0, "A leader lease is wanted and not held"), (830, "Strong reads go by a leader lease, 0.8 s of it left.")],
)
async def test_status_shows_the_leader_lease(cli: Cli, server: FakeServer, remaining_ms: int, said: str) -> None:
    describe(server)
    assert "leader lease" not in (await cli("status")).out
    for node in server.cluster_status.nodes:
        if node.status.role == "leader":
            node.status.leader_lease.CopyFrom(admin_pb2.LeaderLease(remaining_ms=remaining_ms))
    assert said in (await cli("status")).out


@pytest.mark.parametrize(
    ("lease", "said"),
    [
        ({"lease_ms": 10_000, "remaining_ms": 9_300}, "a primary lease of 10 s, 9.3 s of it left."),
        ({"lease_ms": 10_000, "remaining_ms": 0}, "which has run out: the leader answers nothing strong."),
        ({"lease_ms": 10_000, "remaining_ms": 5, "ends": True}, "Automatic promotion is being turned off"),
    ],
)
async def test_status_shows_the_primary_lease(cli: Cli, server: FakeServer, lease: dict[str, int], said: str) -> None:
    describe(server)
    assert "lease" not in (await cli("status")).out
    for node in server.cluster_status.nodes:
        if node.status.role == "leader":
            node.status.primary_lease.MergeFrom(admin_pb2.PrimaryLease(**lease))
    assert said in (await cli("status")).out


async def test_an_unhealthy_cluster_has_an_exit_status(cli: Cli, server: FakeServer) -> None:
    describe(server, healthy=False)
    human, machine, local = await asyncio.gather(cli("status"), cli("status", "-o", "json"), cli("status", "--local"))
    assert human.status == machine.status == local.status == 7
    assert human.out.startswith("degraded")
    assert "a: node 'c' does not answer the leader" in human.out
    shown = machine.json
    assert shown["healthy"] is False
    assert shown["nodes"][0]["status"]["applied_index"] == 88
    assert shown["nodes"][1]["status"] is None
    assert local.out.startswith("node 'a': node 'c' does not answer")


async def test_status_again_and_again(cli: Cli, server: FakeServer) -> None:
    describe(server)
    process = await cli.start("status", "--watch", "--interval", "50ms")
    assert process.stdout is not None
    seen = 0
    while seen < 2:
        seen += (await process.stdout.readline()).startswith(b"healthy")
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130


async def test_members(cli: Cli, server: FakeServer) -> None:
    describe(server)
    listed, added, promoted, removed, replaced = await asyncio.gather(
        cli("member", "list"),
        cli("member", "add", "10.0.0.9"),
        cli("member", "promote", "b", "-o", "json"),
        cli("member", "remove", "2", "--force"),
        cli("member", "replace", "c", "10.0.0.9:99"),
    )
    assert {ran.status for ran in (listed, added, promoted, removed, replaced)} == {0}
    assert "dc-b" in listed.out
    assert [member["name"] for member in promoted.json["members"]] == ["a", "b", "c"]
    requests = {type(request).__name__: request for request in server.admin_requests}
    assert requests["MemberAddRequest"].member.address == "10.0.0.9:4510"
    assert requests["MemberPromoteRequest"].node_id == 2
    assert requests["MemberRemoveRequest"].force
    assert requests["MemberReplaceRequest"].replacement.address == "10.0.0.9:99"


async def test_a_member_that_nobody_knows(cli: Cli, server: FakeServer) -> None:
    describe(server)
    ran = await cli("member", "remove", "x")
    assert ran.status == 2
    assert "no member is called 'x'; members are a (1), b (2), c (3)" in ran.err


async def test_leader_transfer(cli: Cli, server: FakeServer) -> None:
    describe(server)
    human, machine = await asyncio.gather(cli("leader", "transfer"), cli("leader", "transfer", "b", "-o", "json"))
    assert human.out == "OK 'b' leads, in term 7\n"
    assert machine.json == {"leader_id": 2, "term": 7}
    targets = [r.to_node_id for r in server.admin_requests if isinstance(r, admin_pb2.TransferLeadershipRequest)]
    assert sorted(targets) == [0, 2]


async def test_a_long_reason_stands_above_the_table_and_does_not_widen_it(cli: Cli, server: FakeServer) -> None:
    describe(server)
    reason = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1:\n" + "and so on, " * 60
    server.cluster_status.nodes[1].error = reason
    ran, machine = await asyncio.gather(cli("status"), cli("status", "-o", "json"))
    lines = ran.out.splitlines()
    header = next(line for line in lines if line.startswith("node"))
    assert len(header) < 150
    assert all(len(line) < 250 for line in lines)
    assert any(line.startswith("  c: no answer: failed to connect") for line in lines[: lines.index(header)])
    assert any(line.startswith("c ") and line.rstrip().endswith("no answer") for line in lines)
    assert machine.json["nodes"][1]["error"] == reason


async def test_a_failover_that_asks_nobody_looks_once(cli: Cli, server: FakeServer) -> None:
    describe(server)
    for flags in (("--yes",), ("--yes", "-o", "json"), ("--plan",)):
        server.admin_requests.clear()
        ran = await cli("failover", "--to", "europe", *flags)
        assert ran.status == 0, ran.err
        (asked,) = [r for r in server.admin_requests if isinstance(r, admin_pb2.FailoverRequest)]
        assert (asked.dry_run, asked.keep_index, asked.planned) == (False, 0, flags == ("--plan",))
        if "json" not in flags:
            assert "Epoch 2 begins in 'europe', with the voters europe-a, europe-b." in ran.out
            assert "OK 'europe' is the primary region, in epoch 2" in ran.out


async def test_a_planned_move_takes_no_flags_of_a_forced_failover(cli: Cli, server: FakeServer) -> None:
    describe(server)
    both = await cli("failover", "--to", "europe", "--plan", "--yes", "--force", "--primary-is-down")
    assert both.status == 2 and "BAD_FLAGS" in both.err and "--force and --primary-is-down" in both.err
    assert not server.admin_requests, "nobody was asked"


async def test_a_failover_shows_what_would_be_lost_before_it_asks(cli: Cli, server: FakeServer) -> None:
    describe(server)
    server.unfenced = ["a", "b"]
    unasked, dry = await asyncio.gather(
        cli("failover", "--to", "europe"), cli("failover", "--to", "europe", "--dry-run")
    )
    assert (unasked.status, dry.status) == (2, 0) and "say --yes" in unasked.err
    for ran in (unasked, dry):
        assert "Every write acknowledged after that is lost." in ran.out and "OK" not in ran.out
    asked = [r.dry_run for r in server.admin_requests if isinstance(r, admin_pb2.FailoverRequest)]
    assert asked == [True, True]


async def test_behind_a_fence_a_failover_does_not_say_that_writes_are_lost(cli: Cli, server: FakeServer) -> None:
    describe(server)
    ran = await cli("failover", "--to", "europe", "--yes")
    assert ran.status == 0 and "no acknowledged write is lost" in ran.out
    assert "Every write" not in ran.out and "Not fenced" not in ran.out
