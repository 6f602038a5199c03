from __future__ import annotations

import grpc
import grpc.aio
import pytest

from kvnode.api.grpc_status import status_of
from kvnode.base.errors import (
    DeadlineExceeded,
    InvalidRequest,
    KvError,
    NotLeader,
    OutcomeUnknown,
    QueueFull,
    TooStale,
    Unavailable,
    VersionstampLost,
)
from kvnode.cli.exits import Exit, exit_of
from kvnode.client.status import ERROR_METADATA_KEY, error_from_proto, error_from_rpc, error_to_proto, is_retryable
from kvnode.machine.queue.errors import queue_full
from kvnode.proto.kv.v1 import kv_pb2


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("KEY_TOO_LARGE", "too large"),
        QueueFull("full"),
        NotLeader(),
        Unavailable("no leader", code="OVERLOADED"),
        OutcomeUnknown("lost"),
        DeadlineExceeded("late", phase="leader"),
        VersionstampLost("lost"),
        TooStale("old"),
        KvError("READ_TOO_LONG", "long", phase="read"),
    ],
)
def test_an_error_survives_the_wire(error: KvError) -> None:
    back = error_from_proto(error_to_proto(error, "n1"))
    assert type(back) is type(error)
    assert (back.code, back.message, back.phase, back.endpoint) == (error.code, error.message, error.phase, "n1")
    assert back.not_applied == error.not_applied


def test_a_full_queue_is_an_error_of_its_own_and_still_what_it_was() -> None:
    """A retry can help once consumers have made room; no client sends it again by itself."""
    full = error_from_proto(error_to_proto(queue_full("mail", 7), "n1"))
    assert isinstance(full, QueueFull) and isinstance(full, InvalidRequest)
    assert (full.code, full.not_applied, is_retryable(full)) == ("QUEUE_FULL", True, False)
    assert "may be sent again later" in full.message
    assert status_of(full) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert exit_of(full) is Exit.USAGE


def rpc_error(status: grpc.StatusCode, details: str, *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


def test_the_carried_error_wins() -> None:
    carried = kv_pb2.Error(code="EMPTY_KEY", message="empty", phase="validate", not_applied=True).SerializeToString()
    error = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "x", (ERROR_METADATA_KEY, carried)), "h:1")
    assert (type(error), error.code, error.endpoint) == (InvalidRequest, "EMPTY_KEY", "h:1")


@pytest.mark.parametrize(
    ("status", "details", "code", "phase", "not_applied"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:h: Connection refused",
            "UNAVAILABLE",
            "dial",
            True,
        ),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", "UNAVAILABLE", "dial", False),
        (grpc.StatusCode.UNAVAILABLE, "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "TLS_FAILED", "tls", True),
        (grpc.StatusCode.UNAUTHENTICATED, "bad token", "UNAUTHENTICATED", "auth", True),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", "NOT_A_KVNODE", "dial", True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", "DEADLINE_EXCEEDED", "leader", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", "RESOURCE_EXHAUSTED", "validate", True),
        (grpc.StatusCode.INTERNAL, "boom", "GRPC_INTERNAL", "commit", False),
    ],
)
def test_a_bare_status_is_classified(
    status: grpc.StatusCode, details: str, code: str, phase: str, not_applied: bool
) -> None:
    error = error_from_rpc(rpc_error(status, details), "h:1")
    assert (error.code, error.phase, error.not_applied, error.endpoint) == (code, phase, not_applied, "h:1")
    assert "; " in error.message


def test_who_asks_an_ops_port_is_told_so() -> None:
    details = (
        "failed to connect to all addresses; last error: INTERNAL: ipv4:h: Failed parsing HTTP/2 (Expected SETTINGS "
        "frame as the first frame, got frame type 80) (Trying to connect an http1.x server (HTTP status 400))"
    )
    error = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, details), "h:1")
    assert (error.code, error.phase, error.not_applied) == ("UNAVAILABLE", "dial", True)
    assert error.message.startswith("HTTP/1 is spoken there; is it a node's ops port?")


def test_what_is_worth_a_retry() -> None:
    def made(code: str, phase: str) -> kv_pb2.Error:
        return kv_pb2.Error(code=code, phase=phase)

    assert is_retryable(made("NOT_LEADER", "leader"))
    assert is_retryable(made("STATE_REPLACED", "read"))
    assert not is_retryable(made("SESSION_UNKNOWN", "commit"))
    assert not is_retryable(made("SEQUENCE_ANSWERED", "commit"))
    assert not is_retryable(made("KEY_TOO_LARGE", "validate"))
    assert not is_retryable(made("VERSIONSTAMP_LOST", "read"))
