"""Failures as a client of KV Connect understands them.

A client sends an operation again after any 5xx, and the protocol has no request id: a 503 is therefore given only
when the operation is known to have changed nothing. What is not known is never answered (server.py).
"""

from __future__ import annotations

from kvnode.api.http import Response
from kvnode.base.errors import Forbidden, InvalidRequest, KvError, NotFound, RateLimited, Unauthenticated

_STATUS: tuple[tuple[type[KvError], int], ...] = (
    (InvalidRequest, 400),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (RateLimited, 429),
)
_UNAVAILABLE = "The server is temporarily unavailable, try again later."


def refusal(error: KvError) -> Response:
    """The answer to an operation that was not applied."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return Response(status, error.message.encode())
    if error.phase == "validate":  # it came from another node, as a message
        return Response(400, error.message.encode())
    if error.code == "VERSIONSTAMP_LOST":  # for good: a client would send a 503 again
        return Response(409, f"{error.message} [{error.code}]".encode())
    if error.code == "RESPONSE_TOO_LARGE":  # and so will be the next one
        return Response(400, f"{error.message} [{error.code}]".encode())
    return Response(503, f"{_UNAVAILABLE} ({error.message} [{error.code}])".encode())


def bad_request(text: str) -> Response:
    """400."""
    return Response(400, text.encode())
