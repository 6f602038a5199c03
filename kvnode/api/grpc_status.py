"""KvError as the status of a gRPC call.

The status code is for tools that know nothing of kvnode; the error itself travels beside it in the trailing
metadata, as text for people (`kvnode-*`) and as a kv.v1.Error for clients (client/status.py).
"""

from __future__ import annotations

from typing import NoReturn

from grpc import StatusCode, aio

from kvnode.base.errors import Forbidden, InvalidRequest, KvError, NotFound, RateLimited, Unauthenticated
from kvnode.client.status import ERROR_METADATA_KEY, error_to_proto

_BY_CLASS = (
    (Unauthenticated, StatusCode.UNAUTHENTICATED),
    (Forbidden, StatusCode.PERMISSION_DENIED),
    (RateLimited, StatusCode.RESOURCE_EXHAUSTED),
    (NotFound, StatusCode.NOT_FOUND),
    (InvalidRequest, StatusCode.INVALID_ARGUMENT),
)

_BY_CODE = {
    "DATABASE_DISABLED": StatusCode.FAILED_PRECONDITION,
    "DATABASE_EXISTS": StatusCode.ALREADY_EXISTS,
    "DATABASE_IS_DEFAULT": StatusCode.FAILED_PRECONDITION,
    "DATABASE_NOT_FOUND": StatusCode.NOT_FOUND,
    "DATABASE_READ_ONLY": StatusCode.FAILED_PRECONDITION,
    "DEADLINE_EXCEEDED": StatusCode.DEADLINE_EXCEEDED,
    "LEADER_NOT_READY": StatusCode.UNAVAILABLE,
    "LEARNER_NOT_CAUGHT_UP": StatusCode.FAILED_PRECONDITION,
    "LOG_DAMAGED": StatusCode.DATA_LOSS,
    "MEMBERSHIP_CHANGE_IN_PROGRESS": StatusCode.FAILED_PRECONDITION,
    "MEMBER_EXISTS": StatusCode.ALREADY_EXISTS,
    "MEMBER_OF_ANOTHER_CLUSTER": StatusCode.FAILED_PRECONDITION,
    "MEMBER_REMOVED": StatusCode.FAILED_PRECONDITION,
    "MEMBER_REMOVAL_UNSAFE": StatusCode.FAILED_PRECONDITION,
    "MEMBER_ROLE_INVALID": StatusCode.FAILED_PRECONDITION,
    "MEMBER_UNKNOWN": StatusCode.NOT_FOUND,
    "NO_VOTER_LEFT": StatusCode.FAILED_PRECONDITION,
    "MEMBERSHIP_NOT_SPREAD": StatusCode.FAILED_PRECONDITION,
    "ONE_MEMBER_AT_A_TIME": StatusCode.FAILED_PRECONDITION,
    "ONE_VOTER_AT_A_TIME": StatusCode.FAILED_PRECONDITION,
    "OVERLOADED": StatusCode.RESOURCE_EXHAUSTED,
    "PEER_UNREACHABLE": StatusCode.UNAVAILABLE,
    "PRIMARY_LEASE_LOST": StatusCode.UNAVAILABLE,
    "QUEUE_FULL": StatusCode.RESOURCE_EXHAUSTED,
    "REPLICATION_STALLED": StatusCode.UNAVAILABLE,
    "RESPONSE_TOO_LARGE": StatusCode.RESOURCE_EXHAUSTED,
    "SEQUENCE_ANSWERED": StatusCode.FAILED_PRECONDITION,
    "SESSION_EXPIRED": StatusCode.FAILED_PRECONDITION,
    "SESSION_UNKNOWN": StatusCode.FAILED_PRECONDITION,
    "STATE_DAMAGED": StatusCode.DATA_LOSS,
    "TOO_MANY_READS": StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_UNANSWERED": StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_WATCHES": StatusCode.RESOURCE_EXHAUSTED,
    "UNCOMMITTED_TAIL_FULL": StatusCode.RESOURCE_EXHAUSTED,
    "VERSIONSTAMP_LOST": StatusCode.DATA_LOSS,
    "VOTER_NOT_LEARNER_FIRST": StatusCode.FAILED_PRECONDITION,
}

_BY_PHASE = {
    "validate": StatusCode.INVALID_ARGUMENT,
    "dial": StatusCode.UNAVAILABLE,
    "tls": StatusCode.UNAUTHENTICATED,
    "auth": StatusCode.UNAUTHENTICATED,
    "leader": StatusCode.UNAVAILABLE,
    "read": StatusCode.UNAVAILABLE,
    "admin": StatusCode.FAILED_PRECONDITION,
    "storage": StatusCode.INTERNAL,
}


def status_of(error: KvError) -> StatusCode:
    """The gRPC status code for an error.

    An unknown outcome is UNKNOWN, never UNAVAILABLE: what stands between a client and us may retry the latter.
    """
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    for kind, status in _BY_CLASS:
        if isinstance(error, kind):
            return status
    if not error.not_applied and error.phase != "storage":
        return StatusCode.UNKNOWN
    if error.phase == "commit":
        return StatusCode.UNAVAILABLE
    return _BY_PHASE.get(error.phase, StatusCode.UNKNOWN)


async def abort(context: aio.ServicerContext, error: KvError, endpoint: str) -> NoReturn:
    """End the call with the error; `endpoint` names this node."""
    carried = error_to_proto(error, endpoint)
    metadata = (
        ("kvnode-code", carried.code),
        ("kvnode-phase", carried.phase),
        ("kvnode-endpoint", _ascii(carried.endpoint)),
        ("kvnode-not-applied", "true" if carried.not_applied else "false"),
        (ERROR_METADATA_KEY, carried.SerializeToString()),
    )
    await context.abort(status_of(error), f"{error.code}: {error.message}", metadata)
    raise AssertionError("abort always raises")


def _ascii(text: str) -> str:
    """Metadata values without a -bin key may hold printable ASCII only."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)
