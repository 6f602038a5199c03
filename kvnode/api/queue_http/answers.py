"""Failures as JSON: {"code", "message", "retry"}, and "remedy" where the message does not say what to do."""

from __future__ import annotations

import json

from kvnode.api.http import HttpError, Response
from kvnode.base.errors import (
    Forbidden,
    InvalidRequest,
    KvError,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    Unauthenticated,
)
from kvnode.client.status import is_retryable

JSON = "application/json"

_STATUS_BY_CODE = {
    "PAYLOAD_TOO_LARGE": 413,
    "TRANSACTION_TOO_LARGE": 413,
    "QUEUE_FULL": 409,
}
_STATUS: tuple[tuple[type[KvError], int], ...] = (
    (InvalidRequest, 400),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (RateLimited, 429),
    (OutcomeUnknown, 504),
)
_UNAVAILABLE = 503

_REMEDIES = {
    "LEASE_LOST": "Nothing is to be done for this message; extend the leases of handlers that run for long.",
    "NODE_CUT_OFF": "Listen at another node, and name the leases that you hold in `held`.",
    "NODE_STOPPING": "Listen at another node, and name the leases that you hold in `held`.",
    "OUTCOME_UNKNOWN": "Send it again if handling the messages twice does no harm.",
    "RATE_LIMITED": "Wait a second, or raise the token's limits (`kvnode token`).",
    "TOO_MANY_HELD": "Wait a second and send it again.",
}

_HTTP_ERRORS = {
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "BODY_TOO_SLOW",
    413: "BODY_TOO_LARGE",
    503: "TOO_MANY_BODIES",
}


def described(error: KvError) -> dict[str, object]:
    """A failure as a JSON object."""
    found: dict[str, object] = {"code": error.code, "message": error.message, "retry": is_retryable(error)}
    remedy = _REMEDIES.get(error.code)
    if remedy is not None:
        found["remedy"] = remedy
    return found


def refusal(error: KvError) -> Response:
    """The answer to a request that failed."""
    return _response(_status_of(error), described(error))


def http_refusal(error: HttpError) -> Response:
    """The answer to a request that was not even read."""
    code = _HTTP_ERRORS.get(error.status, "MALFORMED_REQUEST")
    retry = error.status in (408, _UNAVAILABLE)
    return _response(error.status, {"code": code, "message": error.text.strip(), "retry": retry})


def answered(result: dict[str, object]) -> Response:
    """200, for what has changed something: an answer that cannot wait to be read says that the outcome is not known."""
    return _response(200, result)._replace(instead=_NOT_READ)


def _status_of(error: KvError) -> int:
    if error.code in _STATUS_BY_CODE:
        return _STATUS_BY_CODE[error.code]
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    if error.phase == "validate":  # it came from another node, as a message
        return 400
    return _UNAVAILABLE if error.not_applied else 504


def _response(status: int, body: dict[str, object]) -> Response:
    return Response(status, json.dumps(body, separators=(",", ":")).encode() + b"\n", JSON)


_NOT_READ = refusal(OutcomeUnknown("what came of it cannot wait here: too much on this connection is unread"))
