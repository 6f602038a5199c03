"""Which database calls mean, and the token that they show: the metadata of each call."""

from __future__ import annotations

from kvnode.base.errors import InvalidRequest, Unauthenticated

CallMetadata = tuple[tuple[str, str], ...]

DATABASE_METADATA = "kv-database"
TOKEN_METADATA = "authorization"


def call_metadata(database: str = "", token: str = "") -> CallMetadata:
    """The metadata that names a database and shows a token; empty = the default database, no token.

    Raises:
        InvalidRequest: DATABASE_NAME_INVALID: a name that no database has.
        Unauthenticated: ACCESS_TOKEN_INVALID: a token with letters that no token has.
    """
    metadata: list[tuple[str, str]] = []
    if database:
        if not _is_printable(database):
            raise InvalidRequest("DATABASE_NAME_INVALID", f"{database!r} is the name of no database")
        metadata.append((DATABASE_METADATA, database))
    if token:
        if not _is_printable(token):
            raise Unauthenticated("the token has letters that no token has; was it copied whole?")
        metadata.append((TOKEN_METADATA, f"Bearer {token}"))
    return tuple(metadata)


def _is_printable(text: str) -> bool:
    """Whether metadata can carry it."""
    return all(" " < letter <= "~" for letter in text)
