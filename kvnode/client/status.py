"""Errors on the wire: kv.v1.Error, the status of a gRPC call, and the KvError that a user sees.

A session answers each operation with a kv.v1.Error. A unary call or a broken stream ends with a gRPC
status; the same Error then travels beside it in the trailing metadata under ERROR_METADATA_KEY. A status
without it comes from gRPC itself (nobody listens, a failed handshake), and is told apart here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc

from kvnode.base.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    KvError,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    QueueFull,
    RateLimited,
    TooStale,
    Unauthenticated,
    Unavailable,
    VersionstampLost,
)
from kvnode.proto.kv.v1 import kv_pb2

ERROR_METADATA_KEY: Final = "kv-error-bin"
"""Trailing metadata that carries a serialized kv.v1.Error beside a gRPC status."""

SESSION_REFUSED_CODES: Final = frozenset({"SESSION_UNKNOWN", "SESSION_EXPIRED"})
"""The client id is not known (any more): nothing under it is executed."""

_CLASS_BY_CODE: Final[dict[str, type[KvError]]] = {
    "ACCESS_TOKEN_EXPIRED": Unauthenticated,
    "ACCESS_TOKEN_INVALID": Unauthenticated,
    "ACCESS_TOKEN_WRONG_DATABASE": Unauthenticated,
    "DATABASE_DISABLED": Forbidden,
    "DATABASE_IS_DEFAULT": Forbidden,
    "DATABASE_NOT_FOUND": NotFound,
    "DATABASE_READ_ONLY": Forbidden,
    "EPOCHS_EXHAUSTED": InvalidRequest,
    "EPOCH_PROMISED": InvalidRequest,
    "FAILOVER_FORKED": InvalidRequest,
    "FAILOVER_IN_PROGRESS": Unavailable,
    "FAILOVER_LAG_TOO_LARGE": InvalidRequest,
    "FAILOVER_LESS_THAN_SHOWN": InvalidRequest,
    "FAILOVER_NOTHING_HELD": InvalidRequest,
    "FAILOVER_NOT_FENCED": InvalidRequest,
    "FAILOVER_NO_PRIMARY": InvalidRequest,
    "FAILOVER_PRIMARY_ALIVE": InvalidRequest,
    "FAILOVER_SUPERSEDED": InvalidRequest,
    "FAILOVER_TAIL_MISSING": InvalidRequest,
    "NO_ACCESS_TOKENS": Unauthenticated,
    "QUEUE_FULL": QueueFull,
    "RATE_LIMITED": RateLimited,
    "REGION_IS_PRIMARY": InvalidRequest,
    "REGION_TOO_SMALL": InvalidRequest,
    "REGION_UNKNOWN": InvalidRequest,
    "TOKEN_NOT_ADMIN": Forbidden,
    "TOKEN_NOT_FOUND": NotFound,
    "TOKEN_READ_ONLY": Forbidden,
    "TOO_STALE": TooStale,
    "UNAUTHENTICATED": Unauthenticated,
    "VERSIONSTAMP_LOST": VersionstampLost,
}
_CONNECT_FAILED: Final = "failed to connect to all addresses"
_HTTP1: Final = "http1.x server"
_RETRYABLE_PHASES: Final = frozenset({"dial", "leader", "commit"})
_RETRYABLE_CODES: Final = frozenset({"STATE_REPLACED", "SESSION_RESULTS_FULL"})
_FINAL_CODES: Final = (
    frozenset({"SEQUENCE_ANSWERED", "REPLICATION_STALLED", "PRIMARY_LEASE_LOST"}) | SESSION_REFUSED_CODES
)


def is_retryable(error: kv_pb2.Error | KvError) -> bool:
    """Whether the same request, under the same request id, may yet succeed here or at another endpoint."""
    if error.code in _FINAL_CODES:
        return False
    return error.phase in _RETRYABLE_PHASES or error.code in _RETRYABLE_CODES


def error_from_proto(error: kv_pb2.Error, endpoint: str = "") -> KvError:
    """The exception for an Error; `endpoint` is used where the Error itself names none."""
    kind = _class_of(error)
    result = kind.__new__(kind)
    KvError.__init__(
        result,
        error.code,
        error.message,
        phase=error.phase,
        endpoint=error.endpoint or endpoint,
        not_applied=error.not_applied,
    )
    if isinstance(result, NotLeader):
        result.leader_id = 0
    return result


def error_to_proto(error: KvError, endpoint: str = "") -> kv_pb2.Error:
    """The inverse of error_from_proto."""
    return kv_pb2.Error(
        code=error.code,
        message=error.message,
        phase=error.phase,
        endpoint=error.endpoint or endpoint,
        not_applied=error.not_applied,
    )


def error_from_rpc(error: grpc.aio.AioRpcError, endpoint: str) -> KvError:
    """The exception for a call that ended with a gRPC status; `not_applied` says that the call never got anywhere."""
    carried = _carried_error(error.trailing_metadata() or ())
    if carried is not None:
        return error_from_proto(carried, endpoint)
    details = error.details() or "no details"
    code, phase, advice = _classify(error.code(), details)
    message = f"{_plain(details)}; {advice}"
    if code == "DEADLINE_EXCEEDED":
        result: KvError = DeadlineExceeded(message, phase=phase)
    elif code == "UNAVAILABLE":
        result = Unavailable(message, phase=phase)
    else:
        result = KvError(code, message, phase=phase)
    result.endpoint = endpoint
    result.not_applied = phase in {"auth", "tls", "validate"} or _CONNECT_FAILED in details or code == "NOT_A_KVNODE"
    return result


def is_final(error: KvError) -> bool:
    """Whether an endpoint that failed so will go on failing so: asking it again cannot help."""
    return error.phase == "auth" or error.code in {"TLS_FAILED", "NOT_A_KVNODE"}


def is_refusal(error: KvError) -> bool:
    """Whether a node itself refused the caller, and not something on the way, which has no codes of ours."""
    return error.phase == "auth" and error.code != "UNAUTHENTICATED"


def _class_of(error: kv_pb2.Error) -> type[KvError]:
    if error.code == "NOT_LEADER":
        return NotLeader
    if error.code == "DEADLINE_EXCEEDED" and error.not_applied:
        return DeadlineExceeded
    if not error.not_applied:
        return OutcomeUnknown
    if error.code in _CLASS_BY_CODE:
        return _CLASS_BY_CODE[error.code]
    if error.phase == "validate":
        return InvalidRequest
    return Unavailable if error.phase in _RETRYABLE_PHASES else KvError


def _plain(details: str) -> str:
    """gRPC's account of a failed connection, cut down to the operating system's own words."""
    if _HTTP1 in details:
        return "HTTP/1 is spoken there"
    if _CONNECT_FAILED in details:
        return f"could not connect: {details.rstrip('.)').rsplit(': ', 1)[-1]}"
    return details.rstrip(".")


def _carried_error(metadata: Iterable[tuple[str, str | bytes]]) -> kv_pb2.Error | None:
    for key, value in metadata:
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            return kv_pb2.Error.FromString(value)
    return None


def _classify(status: grpc.StatusCode, details: str) -> tuple[str, str, str]:
    """(code, phase, what to do) of a status that gRPC itself gave."""
    lowered = details.lower()
    if status in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return "UNAUTHENTICATED", "auth", "check the token and what it may do"
    if "handshake" in lowered or "ssl" in lowered or "certificate" in lowered:
        return "TLS_FAILED", "tls", "check that both sides use TLS and that the certificate names this host"
    if status is grpc.StatusCode.UNIMPLEMENTED:
        what = "a node that belongs to no cluster yet, an older kvnode or another kind of server listens there"
        return "NOT_A_KVNODE", "dial", what
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "DEADLINE_EXCEEDED", "leader", "the node did not answer in time; try another endpoint"
    if status is grpc.StatusCode.UNAVAILABLE and _HTTP1 in lowered:
        return "UNAVAILABLE", "dial", "is it a node's ops port? Its port for gRPC is that of `listen` (4510)"
    if status is grpc.StatusCode.UNAVAILABLE and _CONNECT_FAILED in lowered and "socket closed" in lowered:
        return (
            "UNAVAILABLE",
            "dial",
            "who listens there hung up: a node that speaks TLS does so to plain text (--tls-ca)",
        )
    if status is grpc.StatusCode.UNAVAILABLE:
        return "UNAVAILABLE", "dial", "check that the node runs and that the address is right"
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "RESOURCE_EXHAUSTED", "validate", "ask for less at once"
    return f"GRPC_{status.name}", "commit", "the node's log says more"
