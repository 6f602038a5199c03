"""The cluster as all its members see it, asked at once, with one sentence on top."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from grpc import aio

from kvnode.api.outlook import outlook
from kvnode.api.ports import ServedNode
from kvnode.base.topology import next_loss
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.channels import open_channel
from kvnode.node.member_wire import member_to_wire
from kvnode.proto.kv.v1 import admin_pb2

STATUS_METHOD = "/kv.v1.Admin/Status"
DEFAULT_TIMEOUT_MS = 1_000


async def cluster_status(
    node: ServedNode,
    timeout_ms: int,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> admin_pb2.ClusterStatusResponse:
    """Ask every member for its status; whoever does not answer within `timeout_ms` is named with the reason."""
    timeout_s = (timeout_ms or DEFAULT_TIMEOUT_MS) / 1_000
    own = node.member.node_id

    async def ask(member: Member) -> admin_pb2.NodeStatus:
        if member.node_id == own:
            return admin_pb2.NodeStatus(member=member_to_wire(member), status=node.status())
        return await _ask(member, timeout_s, credentials, metadata)

    answers = await asyncio.gather(*(ask(member) for member in node.membership.members))
    healthy, summary = _judge(list(answers))
    voters = [(a.member.dc, not a.error) for a in answers if a.member.role == MemberRole.VOTER.value]
    loss = next_loss(voters, node.membership.min_commit_dcs)
    return admin_pb2.ClusterStatusResponse(
        summary=summary, healthy=healthy, nodes=answers, next_loss=loss, outlook=outlook(_leader(answers), answers)
    )


async def _ask(
    member: Member,
    timeout_s: float,
    credentials: grpc.ChannelCredentials | None,
    metadata: tuple[tuple[str, str], ...],
) -> admin_pb2.NodeStatus:
    answer = admin_pb2.NodeStatus(member=member_to_wire(member))
    try:
        async with open_channel(member.address, credentials) as channel:
            raw = await channel.unary_unary(STATUS_METHOD)(
                admin_pb2.StatusRequest().SerializeToString(), timeout=timeout_s, metadata=metadata
            )
        answer.status.ParseFromString(raw)
    except aio.AioRpcError as error:
        answer.error = f"{error.code().name}: {error.details()}"
    return answer


def _leader(answers: Sequence[admin_pb2.NodeStatus]) -> admin_pb2.NodeStatus | None:
    """Who leads in the highest term that anybody names."""
    leading = [answer for answer in answers if answer.status.role == "leader"]
    return max(leading, key=lambda answer: answer.status.term, default=None)


def _judge(answers: list[admin_pb2.NodeStatus]) -> tuple[bool, str]:
    """Whether all is well, and the sentence."""
    leader = _leader(answers)
    silent = [answer.member.name for answer in answers if answer.error]
    voters = [answer for answer in answers if answer.member.role == MemberRole.VOTER.value]
    voters_up = sum(not answer.error for answer in voters)
    problems = [
        f"{answer.member.name}: {problem}"
        for answer in answers
        if not answer.error
        for problem in answer.status.problems
    ]
    if leader is None:
        return False, (
            f"No leader: {voters_up} of {len(voters)} voters answer, {len(voters) // 2 + 1} are needed"
            + (f"; {', '.join(silent)} did not answer" if silent else "")
            + "."
        )
    led = f"{leader.member.name} leads in term {leader.status.term}, {voters_up} of {len(voters)} voters answer"
    if silent:
        return False, f"Degraded: {led}; {', '.join(silent)} did not answer."
    if problems:
        return False, f"Degraded: {led}; {problems[0]}" + (f" (and {len(problems) - 1} more)." if problems[1:] else ".")
    return True, f"Healthy: {led}."
