"""How an operation ends that no node answered: what happened, where, whether it may have been applied, what to do."""

from __future__ import annotations

from kvnode.base.errors import KvError, Unavailable
from kvnode.client.pending import PendingOperation
from kvnode.proto.kv.v1 import kv_pb2

_SETTLE = "read the key to see which; a commit with a check can be repeated without harm"


def expired(operation: PendingOperation, endpoint: str, trouble: KvError | None) -> kv_pb2.Error:
    """The deadline passed. `trouble` is the connection's last failure since the last useful answer, if any."""
    phase, where, reason = _last_known(operation, endpoint, trouble)
    within = f"within {operation.timeout_ms} ms"
    if _may_be_applied(operation):
        return kv_pb2.Error(
            code="OUTCOME_UNKNOWN",
            message=f"the write was sent but not confirmed {within}, so it may or may not have been applied{reason};"
            f" {_SETTLE}",
            phase="commit",
            endpoint=where,
            not_applied=False,
        )
    what = "write was not sent" if operation.is_write else "read was not answered"
    return kv_pb2.Error(
        code="DEADLINE_EXCEEDED",
        message=f"the {what} {within}{reason}; {_remedy(phase)}",
        phase=phase,
        endpoint=where,
        not_applied=True,
    )


def hopeless(operation: PendingOperation, error: KvError) -> kv_pb2.Error:
    """No endpoint can be expected to answer."""
    if _may_be_applied(operation):
        return kv_pb2.Error(
            code="OUTCOME_UNKNOWN",
            message=f"the write was sent, then no endpoint could be reached ({error.message}), so it may or may not"
            f" have been applied; {_SETTLE}",
            phase="commit",
            endpoint=error.endpoint,
            not_applied=False,
        )
    return kv_pb2.Error(
        code=error.code, message=error.message, phase=error.phase, endpoint=error.endpoint, not_applied=True
    )


def session_lost(operation: PendingOperation, endpoint: str) -> kv_pb2.Error:
    """The cluster no longer knows the client id under which the write was sent more than once."""
    return kv_pb2.Error(
        code="OUTCOME_UNKNOWN",
        message="the cluster no longer knows this client's session, so it cannot say whether the write that was sent"
        f" before was applied; {_SETTLE}",
        phase="commit",
        endpoint=endpoint,
        not_applied=False,
    )


def closed(operation: PendingOperation, endpoint: str) -> kv_pb2.Error:
    """The client was closed with the operation unanswered."""
    maybe = _may_be_applied(operation)
    doubt = f", so it may or may not have been applied; {_SETTLE}" if maybe else "; await it before closing"
    return kv_pb2.Error(
        code="OUTCOME_UNKNOWN" if maybe else "CLIENT_CLOSED",
        message=f"the client was closed before the operation was answered{doubt}",
        phase="commit" if maybe else "dial",
        endpoint=endpoint,
        not_applied=not maybe,
    )


def client_closed() -> Unavailable:
    """Nothing is begun any more."""
    return Unavailable("the client is closed; open a new one", code="CLIENT_CLOSED", phase="dial")


def _may_be_applied(operation: PendingOperation) -> bool:
    return operation.is_write and operation.sends_count > 0


def _last_known(operation: PendingOperation, endpoint: str, trouble: KvError | None) -> tuple[str, str, str]:
    """(phase, endpoint, reason in a clause) of what stood in the way last."""
    if trouble is not None:
        return trouble.phase, trouble.endpoint or endpoint, f" (last: {trouble.message})"
    if operation.last_error is not None:
        answer = operation.last_error
        return answer.phase, answer.endpoint or endpoint, f" (last answer: {answer.message})"
    return ("leader" if operation.sends_count else "dial"), endpoint, ""


def _remedy(phase: str) -> str:
    if phase in {"dial", "tls", "auth"}:
        return "check that the nodes run and that the endpoints are right, then send it again"
    return "see 'kvnode status' for whether there is a leader, then send it again or allow more time"
