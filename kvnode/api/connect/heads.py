"""What the head of a request on the data path says."""

from __future__ import annotations

from kvnode.api.connect.answers import bad_request
from kvnode.api.http import HttpError, Request, Response

CONSISTENCIES = frozenset(("strong", "eventual", "local"))
METHODS = frozenset(("snapshot_read", "atomic_write", "watch"))
_BEARER = "bearer "  # in any case: RFC 9110, section 11.1


def is_data_path(parts: list[str]) -> bool:
    """Whether a path, taken apart at its slashes, is /data/<uuid>/<consistency>/<method>."""
    return len(parts) == 5 and parts[1] == "data" and parts[3] in CONSISTENCIES and parts[4] in METHODS


def bearer_token(request: Request) -> str:
    """The token of a request. Raises HttpError(401)."""
    header = request.header("authorization")
    if header[: len(_BEARER)].lower() != _BEARER:
        raise HttpError(401, "Malformed authorization header.")
    return header[len(_BEARER) :].strip()


def wrong_version(request: Request, uuid: str) -> Response | None:
    """The refusal of a version that is not spoken, or of a header that names another database.

    Version 1 names the database in a header of its own and itself not at all.
    """
    version = request.header("x-denokv-version")
    named = request.header("x-denokv-database-id" if version else "x-transaction-domain-id")
    if version not in ("2", "3") and not (version == "" and named):
        return bad_request("Expected protocol version 2 or 3.")
    if named != uuid:
        return bad_request("Invalid database id.")
    return None
