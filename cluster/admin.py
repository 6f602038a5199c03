"""The Admin service over a plain synchronous channel: enough for launchers and tests."""

from __future__ import annotations

from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message

from kvnode.proto.kv.v1 import admin_pb2

_Response = TypeVar("_Response", bound=Message)
DEFAULT_TIMEOUT_S = 2.0


class NotAnswered(Exception):
    """The node gave no answer, or an error. `status` is the gRPC status code's name."""

    def __init__(self, address: str, status: str, details: str) -> None:
        super().__init__(f"{address}: {status}: {details}")
        self.status = status
        self.details = details


class AdminCalls:
    """Calls to one node's Admin service. A channel a call: nothing lingers when the node has been killed."""

    def __init__(self, address: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self.timeout_s = timeout_s

    def status(self) -> admin_pb2.StatusResponse:
        """What the node says of itself."""
        return self._call("Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)

    def cluster_status(self, timeout_ms: int = 2_000) -> admin_pb2.ClusterStatusResponse:
        """What every member says of itself."""
        request = admin_pb2.ClusterStatusRequest(timeout_ms=timeout_ms)
        return self._call("ClusterStatus", request, admin_pb2.ClusterStatusResponse, timeout_ms / 1000 + 2)

    def snapshot(self, timeout_s: float = 60.0) -> admin_pb2.SnapshotResponse:
        """Write a snapshot now and compact the log behind it."""
        return self._call("Snapshot", admin_pb2.SnapshotRequest(), admin_pb2.SnapshotResponse, timeout_s)

    def digest(self, *, scrub: bool = False, timeout_s: float = 60.0) -> admin_pb2.DigestResponse:
        """The state's digest at one applied index."""
        return self._call("Digest", admin_pb2.DigestRequest(scrub=scrub), admin_pb2.DigestResponse, timeout_s)

    def transfer_leadership(self, to_node_id: int = 0) -> admin_pb2.TransferLeadershipResponse:
        """Hand leadership to a node; 0 = the most caught-up voter."""
        request = admin_pb2.TransferLeadershipRequest(to_node_id=to_node_id)
        return self._call("TransferLeadership", request, admin_pb2.TransferLeadershipResponse, 10)

    def member_add(self, member: admin_pb2.Member) -> admin_pb2.MemberChangeResponse:
        """Add a learner."""
        request = admin_pb2.MemberAddRequest(member=member)
        return self._call("MemberAdd", request, admin_pb2.MemberChangeResponse, 20)

    def member_promote(self, node_id: int) -> admin_pb2.MemberChangeResponse:
        """Make a learner a voter."""
        request = admin_pb2.MemberPromoteRequest(node_id=node_id)
        return self._call("MemberPromote", request, admin_pb2.MemberChangeResponse, 20)

    def member_remove(self, node_id: int, *, force: bool = False) -> admin_pb2.MemberChangeResponse:
        """Remove a member."""
        request = admin_pb2.MemberRemoveRequest(node_id=node_id, force=force)
        return self._call("MemberRemove", request, admin_pb2.MemberChangeResponse, 20)

    def _call(
        self, method: str, request: Message, response: type[_Response], timeout_s: float | None = None
    ) -> _Response:
        with grpc.insecure_channel(self.address) as channel:
            call = channel.unary_unary(
                f"/kv.v1.Admin/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            try:
                return cast(_Response, call(request, timeout=timeout_s or self.timeout_s))
            except grpc.RpcError as error:
                raise NotAnswered(self.address, error.code().name, error.details() or "") from None
