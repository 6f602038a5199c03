"""The metadata exchange: which version, which database, which endpoints, and a token for them.

The clients are strict: exactly these keys, exactly this content type, no slash at the end of a URL.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kvnode.api.connect.ports import Access, Database
from kvnode.api.http import HttpError, Response

VERSIONS = (1, 2, 3)
_ABSOLUTE_URLS = 1  # the version that has no relative ones
_NO_VERSION = (
    "The server could not negotiate a protocol version. The server speaks the versions 1, 2 and 3 of KV Connect."
)
_MALFORMED = (
    'The body of a metadata exchange is JSON with the one key supportedVersions, for example {"supportedVersions":[3]}.'
)


class Base(NamedTuple):
    """What a metadata URL names."""

    database: str  # name or uuid; "" = the default database
    local: bool  # the opt-in URL: its strong endpoint reads what this node has


def parse_path(path: str) -> Base | None:
    """The database of `/`, `/<name>`, `/databases/<uuid>/connect`, each also with `/eventual`; None for other paths."""
    parts = [part for part in path.split("/") if part]
    local = bool(parts) and parts[-1] == "eventual"
    if local:
        parts.pop()
    if not parts:
        return Base("", local)
    if len(parts) == 1:
        return Base(parts[0], local)
    if len(parts) == 3 and parts[0] == "databases" and parts[2] == "connect":
        return Base(parts[1], local)
    return None


def choose_version(body: bytes) -> int:
    """The newest version that both know. Raises HttpError(400)."""
    if not body:
        return _ABSOLUTE_URLS
    try:
        request: Any = json.loads(body)
    except ValueError:
        raise HttpError(400, _MALFORMED) from None
    offered = request.get("supportedVersions") if isinstance(request, dict) else None
    if not isinstance(offered, list) or len(request) != 1:
        raise HttpError(400, _MALFORMED)
    known = [version for version in offered if type(version) is int and version in VERSIONS]
    if known:
        return max(known)
    raise HttpError(400, _NO_VERSION)


def exchange(access: Access, database: Database, token: str, version: int, origin: str, *, local: bool) -> Response:
    """The answer to a metadata exchange.

    Args:
        access: judges the access token.
        database: which it is about.
        token: the access token.
        version: as negotiated.
        origin: scheme://host:port as the client sees this server; version 1 needs it.
        local: of the opt-in URL.

    Raises:
        KvError: the token is not good for it.
        HttpError: version 1 without a Host.
    """
    data_token, expires_ms = access.exchange(database, token)
    if version == _ABSOLUTE_URLS and not origin:
        raise HttpError(400, "Version 1 of the protocol needs a Host header: endpoints are absolute URLs.")
    root = f"{origin if version == _ABSOLUTE_URLS else ''}/data/{database.uuid}"
    strong = "local" if local else "strong"
    body = {
        "version": version,
        "databaseId": database.uuid,
        "endpoints": [
            {"url": f"{root}/eventual", "consistency": "eventual"},
            {"url": f"{root}/{strong}", "consistency": "strong"},
        ],
        "token": data_token,
        "expiresAt": datetime.fromtimestamp(expires_ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return Response(200, json.dumps(body, separators=(",", ":")).encode(), "application/json")
