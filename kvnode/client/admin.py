"""Operations on the cluster itself."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from types import TracebackType

import grpc

from kvnode.base import limits
from kvnode.client import rpc
from kvnode.client.unary import UnaryCaller
from kvnode.proto.kv.v1 import admin_pb2


class Admin:
    """Administration of one cluster, at whichever endpoint answers. Every method raises KvError.

    Args:
        addresses: host:port of nodes of one cluster, in order of preference.
        timeout_ms: for each call.
        credentials: for TLS; None = plain text.
        fail_fast: raise when no address could be reached, rather than wait until the deadline.
        random: the source of back-off jitter.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS,
        credentials: grpc.ChannelCredentials | None = None,
        fail_fast: bool = True,
        random: Random | None = None,
    ) -> None:
        self._timeout_ms = timeout_ms
        self._caller = UnaryCaller(addresses, credentials=credentials, fail_fast=fail_fast, random=random)

    async def __aenter__(self) -> Admin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()

    @property
    def endpoint(self) -> str:
        """The address that answered last, or is asked next."""
        return self._caller.endpoint

    async def status(self) -> admin_pb2.StatusResponse:
        """What the answering node says of itself."""
        return await self._caller.call(rpc.STATUS, admin_pb2.StatusRequest(), self._timeout_ms)

    async def cluster_status(self) -> admin_pb2.ClusterStatusResponse:
        """What every member says, asked by the answering node, which gives those that are silent up in time."""
        # The silent members' timeout must leave room for the answer itself.
        request = admin_pb2.ClusterStatusRequest(timeout_ms=min(1_000, max(1, self._timeout_ms // 2)))
        return await self._caller.call(rpc.CLUSTER_STATUS, request, self._timeout_ms)

    async def members(self) -> admin_pb2.MemberListResponse:
        """The membership as the answering node knows it."""
        return await self._caller.call(rpc.MEMBER_LIST, admin_pb2.MemberListRequest(), self._timeout_ms)

    async def add(self, member: admin_pb2.Member) -> admin_pb2.MemberChangeResponse:
        """Add a running, unjoined node as a learner."""
        request = admin_pb2.MemberAddRequest(member=member)
        return await self._caller.call(rpc.MEMBER_ADD, request, self._timeout_ms, repeatable=False)

    async def promote(self, node_id: int) -> admin_pb2.MemberChangeResponse:
        """Make a learner that has caught up a voter."""
        request = admin_pb2.MemberPromoteRequest(node_id=node_id)
        return await self._caller.call(rpc.MEMBER_PROMOTE, request, self._timeout_ms, repeatable=False)

    async def remove(self, node_id: int, *, force: bool = False) -> admin_pb2.MemberChangeResponse:
        """Remove a member for good. `force`: although the cluster then breaks a promise of its topology."""
        request = admin_pb2.MemberRemoveRequest(node_id=node_id, force=force)
        return await self._caller.call(rpc.MEMBER_REMOVE, request, self._timeout_ms, repeatable=False)

    async def replace(self, node_id: int, replacement: admin_pb2.Member) -> admin_pb2.MemberChangeResponse:
        """Add `replacement`, promote it when it has caught up, then remove `node_id`."""
        request = admin_pb2.MemberReplaceRequest(
            node_id=node_id, replacement=replacement, timeout_ms=max(1, self._timeout_ms - self._timeout_ms // 10)
        )
        return await self._caller.call(rpc.MEMBER_REPLACE, request, self._timeout_ms, repeatable=False)

    async def transfer_leadership(self, to_node_id: int = 0) -> admin_pb2.TransferLeadershipResponse:
        """Hand leadership to a voter; 0 = the most caught-up one."""
        request = admin_pb2.TransferLeadershipRequest(to_node_id=to_node_id)
        return await self._caller.call(rpc.TRANSFER_LEADERSHIP, request, self._timeout_ms, repeatable=False)

    async def snapshot(self) -> admin_pb2.SnapshotResponse:
        """Write a snapshot at the answering node now, and compact its log behind it."""
        return await self._caller.call(rpc.SNAPSHOT, admin_pb2.SnapshotRequest(), self._timeout_ms)

    async def digest(self, *, scrub: bool = False) -> admin_pb2.DigestResponse:
        """The digest of the answering node's state. `scrub`: also recompute it from every row."""
        return await self._caller.call(rpc.DIGEST, admin_pb2.DigestRequest(scrub=scrub), self._timeout_ms)
