"""The methods of kv.v1 by name, with their message types: what generated stubs would be, typed and shared."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from kvnode.proto.kv.v1 import admin_pb2, directory_pb2, kv_pb2, queue_pb2

Request = TypeVar("Request")
Response = TypeVar("Response")


class Method(NamedTuple, Generic[Request, Response]):
    """One gRPC method: its path on the wire and the messages that travel."""

    path: str
    request: type[Request]
    response: type[Response]


READ = Method("/kv.v1.KV/Read", kv_pb2.ReadRequest, kv_pb2.ReadResponse)
ATOMIC_WRITE = Method("/kv.v1.KV/AtomicWrite", kv_pb2.AtomicWriteRequest, kv_pb2.AtomicWriteResponse)
SESSION = Method("/kv.v1.KV/Session", kv_pb2.SessionRequest, kv_pb2.SessionResponse)
WATCH = Method("/kv.v1.KV/Watch", kv_pb2.WatchRequest, kv_pb2.WatchResponse)

QUEUE_LISTEN = Method("/kv.v1.Queue/Listen", queue_pb2.ListenRequest, queue_pb2.ListenResponse)
QUEUE_LIST = Method("/kv.v1.Queue/List", queue_pb2.QueueListRequest, queue_pb2.QueueListResponse)
QUEUE_PEEK = Method("/kv.v1.Queue/Peek", queue_pb2.QueuePeekRequest, queue_pb2.QueuePeekResponse)
DEAD_LETTERS = Method("/kv.v1.Queue/DeadLetters", queue_pb2.DeadLettersRequest, queue_pb2.DeadLettersResponse)
CRONS = Method("/kv.v1.Queue/Crons", queue_pb2.CronsRequest, queue_pb2.CronsResponse)

STATUS = Method("/kv.v1.Admin/Status", admin_pb2.StatusRequest, admin_pb2.StatusResponse)
CLUSTER_STATUS = Method("/kv.v1.Admin/ClusterStatus", admin_pb2.ClusterStatusRequest, admin_pb2.ClusterStatusResponse)
MEMBER_LIST = Method("/kv.v1.Admin/MemberList", admin_pb2.MemberListRequest, admin_pb2.MemberListResponse)
MEMBER_ADD = Method("/kv.v1.Admin/MemberAdd", admin_pb2.MemberAddRequest, admin_pb2.MemberChangeResponse)
MEMBER_PROMOTE = Method("/kv.v1.Admin/MemberPromote", admin_pb2.MemberPromoteRequest, admin_pb2.MemberChangeResponse)
MEMBER_REMOVE = Method("/kv.v1.Admin/MemberRemove", admin_pb2.MemberRemoveRequest, admin_pb2.MemberChangeResponse)
MEMBER_REPLACE = Method("/kv.v1.Admin/MemberReplace", admin_pb2.MemberReplaceRequest, admin_pb2.MemberChangeResponse)
TRANSFER_LEADERSHIP = Method(
    "/kv.v1.Admin/TransferLeadership", admin_pb2.TransferLeadershipRequest, admin_pb2.TransferLeadershipResponse
)
FAILOVER = Method("/kv.v1.Admin/Failover", admin_pb2.FailoverRequest, admin_pb2.FailoverResponse)
SNAPSHOT = Method("/kv.v1.Admin/Snapshot", admin_pb2.SnapshotRequest, admin_pb2.SnapshotResponse)
DIGEST = Method("/kv.v1.Admin/Digest", admin_pb2.DigestRequest, admin_pb2.DigestResponse)

DATABASE_LIST = Method(
    "/kv.v1.Admin/DatabaseList", directory_pb2.DatabaseListRequest, directory_pb2.DatabaseListResponse
)
DATABASE_CREATE = Method(
    "/kv.v1.Admin/DatabaseCreate", directory_pb2.DatabaseCreateRequest, directory_pb2.DatabaseResponse
)
DATABASE_SHOW = Method(
    "/kv.v1.Admin/DatabaseShow", directory_pb2.DatabaseShowRequest, directory_pb2.DatabaseShowResponse
)
DATABASE_RENAME = Method(
    "/kv.v1.Admin/DatabaseRename", directory_pb2.DatabaseRenameRequest, directory_pb2.DatabaseResponse
)
DATABASE_DELETE = Method(
    "/kv.v1.Admin/DatabaseDelete", directory_pb2.DatabaseDeleteRequest, directory_pb2.DatabaseResponse
)
DATABASE_SET = Method("/kv.v1.Admin/DatabaseSet", directory_pb2.DatabaseSetRequest, directory_pb2.DatabaseResponse)
TOKEN_LIST = Method("/kv.v1.Admin/TokenList", directory_pb2.TokenListRequest, directory_pb2.TokenListResponse)
TOKEN_CREATE = Method("/kv.v1.Admin/TokenCreate", directory_pb2.TokenCreateRequest, directory_pb2.TokenCreateResponse)
TOKEN_REVOKE = Method("/kv.v1.Admin/TokenRevoke", directory_pb2.TokenRevokeRequest, directory_pb2.TokenRevokeResponse)
WATCH_DIRECTORY = Method(
    "/kv.v1.Admin/WatchDirectory", directory_pb2.WatchDirectoryRequest, directory_pb2.WatchDirectoryResponse
)
