"""status: first one sentence, then a table."""

from __future__ import annotations

import asyncio
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base.errors import KvError
from kvnode.cli.duration import show_ms
from kvnode.cli.exits import Exit
from kvnode.cli.options import (
    DEFAULT_ENDPOINTS,
    DEFAULT_TIMEOUT,
    EndpointsOption,
    Output,
    OutputOption,
    TimeoutOption,
    parse_timeout,
)
from kvnode.cli.run import error_text, run
from kvnode.cli.selection import chosen
from kvnode.cli.show import print_json, print_table

if TYPE_CHECKING:
    from kvnode.client import Admin
    from kvnode.proto.kv.v1 import admin_pb2

MAX_REASON_CHARACTERS_COUNT = 200  # of a node's silence, before the table
COLUMNS = ("node", "place", "address", "role", "term", "applied", "lag", "age", "memory")


def status(
    local: Annotated[bool, typer.Option("--local", help="Ask only the node at the endpoint, for itself.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        int, typer.Option("--interval", metavar="DURATION", parser=parse_timeout, help="Between two with --watch.")
    ] = "2s",  # type: ignore[assignment]
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Say in one sentence whether the cluster is healthy, then show every node. Exit status 7 when it is not.

    Examples:

      kvnode status

      kvnode status --watch --endpoints 10.0.0.1:4510,10.0.0.2:4510

      kvnode status -o json | jq .summary
    """
    healthy = run(_status(endpoints, timeout, local, interval if watch else 0, output), output)
    if not healthy:
        raise typer.Exit(Exit.UNHEALTHY)


async def _status(endpoints: str, timeout_ms: int, local: bool, interval_ms: int, output: Output | None) -> bool:
    from kvnode.client import Admin
    from kvnode.client.channel import parse_endpoints

    async with Admin(
        parse_endpoints(endpoints), token=chosen.token, credentials=chosen.credentials(), timeout_ms=timeout_ms
    ) as admin:
        while True:
            try:
                cluster = await _ask(admin, local)
            except KvError as error:
                if not interval_ms:
                    raise
                print(error_text(error, output), flush=True)
            else:
                _print(cluster, output, clear=bool(interval_ms))
                if not interval_ms:
                    return cluster.healthy
            await asyncio.sleep(interval_ms / 1000)


async def _ask(admin: Admin, local: bool) -> admin_pb2.ClusterStatusResponse:
    from kvnode.proto.kv.v1 import admin_pb2

    if not local:
        return await admin.cluster_status()
    own = await admin.status()
    problems = "; ".join(own.problems)
    return admin_pb2.ClusterStatusResponse(
        summary=f"node '{own.self.name}': {problems or 'healthy'}",
        healthy=not own.problems,
        nodes=[admin_pb2.NodeStatus(member=own.self, status=own)],
    )


def _print(cluster: admin_pb2.ClusterStatusResponse, output: Output | None, *, clear: bool) -> None:
    if output is Output.JSON:
        print_json(cluster_json(cluster))
        return
    if clear:
        from rich.console import Console

        Console().clear()
    print(cluster.summary)
    if cluster.next_loss:
        print(cluster.next_loss)
    if cluster.outlook:
        print(cluster.outlook)
    for line in (_lease(cluster), _leader_lease(cluster)):
        if line:
            print(line)
    for node in cluster.nodes:
        for problem in _problems(node):
            if problem not in cluster.summary:
                print(f"  {node.member.name}: {problem}")
    print()
    leader_last = max((node.status.last_index for node in cluster.nodes if node.HasField("status")), default=0)
    print_table(COLUMNS, [_row(node, leader_last) for node in cluster.nodes], right=COLUMNS[4:])
    for line in (*_transfers(cluster), *_waits(cluster)):
        print(line)


def _leader(cluster: admin_pb2.ClusterStatusResponse) -> admin_pb2.StatusResponse | None:
    leading = [node.status for node in cluster.nodes if node.status.role == "leader"]
    return max(leading, key=lambda status: status.term, default=None)


def _lease(cluster: admin_pb2.ClusterStatusResponse) -> str:
    """The primary lease, as the leader holds it; empty where no promotion is in force."""
    leader = _leader(cluster)
    if leader is None or not leader.primary_lease.lease_ms:
        return ""
    lease = leader.primary_lease
    if lease.ends:
        return "Automatic promotion is being turned off; until enough nodes know, the leader needs its lease."
    length = f"a primary lease of {lease.lease_ms / 1_000:g} s"
    if lease.remaining_ms <= 0:
        return f"Automatic promotion is on, with {length}, which has run out: the leader answers nothing strong."
    return f"Automatic promotion is on, with {length}, {lease.remaining_ms / 1_000:.1f} s of it left."


def _leader_lease(cluster: admin_pb2.ClusterStatusResponse) -> str:
    """How the leader confirms strong reads, where it is set to use a lease."""
    leader = _leader(cluster)
    if leader is None or not leader.HasField("leader_lease"):
        return ""
    if not leader.leader_lease.remaining_ms:
        return "A leader lease is wanted and not held: strong reads ask the voters."
    return f"Strong reads go by a leader lease, {leader.leader_lease.remaining_ms / 1_000:.1f} s of it left."


def _transfers(cluster: admin_pb2.ClusterStatusResponse) -> list[str]:
    """Snapshots on their way, a line each, as the receiving ends have them."""
    return [
        f"{node.member.name} receives a snapshot from {each.name or each.node_id}: "
        f"{_part(each.moved_bytes, each.size_bytes)}"
        for node in cluster.nodes
        for each in node.status.snapshots
        if each.incoming
    ]


def _waits(cluster: admin_pb2.ClusterStatusResponse) -> list[str]:
    """Replicas that leave it to a neighbour to fetch a snapshot, a line each."""
    waiting = [node for node in cluster.nodes if node.status.HasField("snapshot_wait")]
    return [f"{node.member.name} needs a snapshot and {_wait(node.status.snapshot_wait)}" for node in waiting]


def _wait(wait: admin_pb2.SnapshotWait) -> str:
    so_long = f"(for {wait.waited_ms / 1_000:.0f} s now)"
    if not wait.neighbour:
        return f"looks for a neighbour that fetches it {so_long}"
    part = _part(wait.held_bytes, wait.size_bytes) if wait.size_bytes else "nothing yet"
    return f"waits until {wait.neighbour} has it, which holds {part} {so_long}"


def _part(bytes_count: int, of_bytes: int) -> str:
    return f"{bytes_count / max(1, of_bytes):.0%} of {of_bytes / 1_048_576:.0f} MiB"


def _problems(node: admin_pb2.NodeStatus) -> list[str]:
    """What is wrong with a node, a line each; -o json has the whole text."""
    if node.HasField("status"):
        return list(node.status.problems)
    reason = " ".join(node.error.split())
    return [f"no answer: {textwrap.shorten(reason, MAX_REASON_CHARACTERS_COUNT, placeholder=' ...')}"] if reason else []


def _row(node: admin_pb2.NodeStatus, last_index: int) -> list[str]:
    member = node.member
    place = [member.name, f"{member.region}/{member.dc}", member.address]
    if not node.HasField("status"):
        return [*place, "no answer", "", "", "", "", ""]
    status = node.status
    return [
        *place,
        status.role,
        str(status.term),
        str(status.applied_index),
        str(max(0, last_index - status.applied_index)),
        "unknown" if status.age_ms < 0 else show_ms(status.age_ms),
        f"{status.resident_bytes / 1_048_576:.0f} MiB",
    ]


def cluster_json(cluster: admin_pb2.ClusterStatusResponse) -> dict[str, Any]:
    """The whole answer as -o json shows it: the fields' own names, numbers as numbers."""
    nodes = []
    for node in cluster.nodes:
        shown: dict[str, Any] = {"member": message_json(node.member)}
        shown["status"] = message_json(node.status) if node.HasField("status") else None
        shown["error"] = node.error or None
        nodes.append(shown)
    return {
        "summary": cluster.summary,
        "healthy": cluster.healthy,
        "next_loss": cluster.next_loss,
        "outlook": cluster.outlook,
        "nodes": nodes,
    }


def message_json(message: Any) -> dict[str, Any]:
    """A protobuf message as a dictionary, unset fields included (a message as None), 64-bit numbers as numbers."""
    shown: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            shown[field.name] = list(value) if isinstance(value, list) or field.is_repeated else value
        elif field.is_repeated:
            shown[field.name] = [message_json(item) for item in value]
        else:
            shown[field.name] = message_json(value) if message.HasField(field.name) else None
    return shown
