"""The service kv.v1.Admin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import grpc
from grpc import aio

from kvnode.api.cluster_status import cluster_status
from kvnode.api.grpc_failover import fail_over
from kvnode.api.grpc_handlers import Handlers
from kvnode.api.ports import ServedNode
from kvnode.codec.membership import Membership
from kvnode.node.member_wire import member_from_wire, member_to_wire
from kvnode.proto.kv.v1 import admin_pb2

SERVICE = "kv.v1.Admin"

Context: TypeAlias = "aio.ServicerContext"
PeerMetadata = Callable[[], tuple[tuple[str, str], ...]]


class AdminService:
    """Operations on the cluster. Those on the membership are answered by the leader alone; others name it.

    Args:
        node: the node that serves.
        peer_credentials: for asking the other members.
        peer_metadata: makes the metadata by which they know that this node asks.
    """

    def __init__(
        self,
        node: ServedNode,
        peer_credentials: grpc.ChannelCredentials | None,
        peer_metadata: PeerMetadata = lambda: (),
    ) -> None:
        self._node = node
        self._peer_metadata = peer_metadata
        self._peer_credentials = peer_credentials

    def handlers(self, build: Handlers) -> dict[str, grpc.RpcMethodHandler]:
        """Method names to handlers."""
        unary = build.unary
        return {
            "Status": unary(admin_pb2.StatusRequest, self._status),
            "ClusterStatus": unary(admin_pb2.ClusterStatusRequest, self._cluster_status),
            "MemberList": unary(admin_pb2.MemberListRequest, self._member_list),
            "MemberAdd": unary(admin_pb2.MemberAddRequest, self._member_add),
            "MemberPromote": unary(admin_pb2.MemberPromoteRequest, self._member_promote),
            "MemberRemove": unary(admin_pb2.MemberRemoveRequest, self._member_remove),
            "MemberReplace": unary(admin_pb2.MemberReplaceRequest, self._member_replace),
            "TransferLeadership": unary(admin_pb2.TransferLeadershipRequest, self._transfer_leadership),
            "Failover": unary(admin_pb2.FailoverRequest, self._failover),
            "Snapshot": unary(admin_pb2.SnapshotRequest, self._snapshot),
            "Digest": unary(admin_pb2.DigestRequest, self._digest),
        }

    async def _status(self, _request: admin_pb2.StatusRequest, _context: Context) -> admin_pb2.StatusResponse:
        return self._node.status()

    async def _cluster_status(
        self, request: admin_pb2.ClusterStatusRequest, _context: Context
    ) -> admin_pb2.ClusterStatusResponse:
        metadata = self._peer_metadata()
        return await cluster_status(self._node, request.timeout_ms, self._peer_credentials, metadata)

    async def _member_list(
        self, _request: admin_pb2.MemberListRequest, _context: Context
    ) -> admin_pb2.MemberListResponse:
        membership = self._node.membership
        members = [member_to_wire(member) for member in membership.members]
        return admin_pb2.MemberListResponse(members=members, min_commit_dcs=membership.min_commit_dcs)

    async def _member_add(
        self, request: admin_pb2.MemberAddRequest, _context: Context
    ) -> admin_pb2.MemberChangeResponse:
        return _changed(await self._node.members.add(member_from_wire(request.member)))

    async def _member_promote(
        self, request: admin_pb2.MemberPromoteRequest, _context: Context
    ) -> admin_pb2.MemberChangeResponse:
        return _changed(await self._node.members.promote(request.node_id))

    async def _member_remove(
        self, request: admin_pb2.MemberRemoveRequest, _context: Context
    ) -> admin_pb2.MemberChangeResponse:
        return _changed(await self._node.members.remove(request.node_id, force=request.force))

    async def _member_replace(
        self, request: admin_pb2.MemberReplaceRequest, _context: Context
    ) -> admin_pb2.MemberChangeResponse:
        replacement = member_from_wire(request.replacement)
        return _changed(await self._node.members.replace(request.node_id, replacement, request.timeout_ms))

    async def _transfer_leadership(
        self, request: admin_pb2.TransferLeadershipRequest, _context: Context
    ) -> admin_pb2.TransferLeadershipResponse:
        await self._node.transfer_leadership(request.to_node_id)
        return admin_pb2.TransferLeadershipResponse(leader_id=self._node.leader_id, term=self._node.status().term)

    async def _failover(self, request: admin_pb2.FailoverRequest, _context: Context) -> admin_pb2.FailoverResponse:
        return await fail_over(self._node, request)

    async def _snapshot(self, _request: admin_pb2.SnapshotRequest, _context: Context) -> admin_pb2.SnapshotResponse:
        return await self._node.snapshot_now()

    async def _digest(self, request: admin_pb2.DigestRequest, _context: Context) -> admin_pb2.DigestResponse:
        return await self._node.digest(scrub=request.scrub)


def _changed(membership: Membership) -> admin_pb2.MemberChangeResponse:
    return admin_pb2.MemberChangeResponse(members=[member_to_wire(member) for member in membership.members])
