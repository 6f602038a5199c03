"""The changes to the directory, each as one atomic write on the system database.

A change is judged on a view and holds only while the directory is still at that view's version: the write checks the
version row and writes it anew (view.py). When the check fails, the caller looks again and judges anew.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from kvnode.base import limits
from kvnode.base.errors import Forbidden, InvalidRequest, NotFound
from kvnode.machine.directory.names import check_name
from kvnode.machine.directory.rows import (
    ALL_DATABASES,
    VERSION_KEY,
    DatabaseMode,
    DatabaseRow,
    DirectoryRow,
    PurgeRow,
    Right,
    SigningKeyRow,
    TokenRow,
    VersionRow,
    encode,
    key_of,
)
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES, DEFAULT_DATABASE
from kvnode.proto.kv.v1 import kv_pb2

Build = Callable[[DirectoryView], kv_pb2.AtomicWriteRequest | None]
"""Makes a change of the directory as it is; None = there is nothing to do."""

_SET = kv_pb2.MUTATION_TYPE_SET
_DELETE = kv_pb2.MUTATION_TYPE_DELETE
_BYTES = kv_pb2.VALUE_ENCODING_BYTES


def change(
    view: DirectoryView,
    put: tuple[DirectoryRow, ...] = (),
    drop: tuple[DirectoryRow, ...] = (),
    *,
    next_database: int = 0,
) -> kv_pb2.AtomicWriteRequest:
    """The atomic write that puts and drops rows, if the directory is still at the view's version."""
    request = kv_pb2.AtomicWriteRequest()
    request.checks.add(key=VERSION_KEY[DATABASE_PREFIX_BYTES:], versionstamp=view.version)
    for row in (VersionRow(next_database or view.next_database), *put):
        mutation = request.mutations.add(type=_SET, key=key_of(row)[DATABASE_PREFIX_BYTES:])
        mutation.value.data = encode(row)
        mutation.value.encoding = _BYTES
    for row in drop:
        request.mutations.add(type=_DELETE, key=key_of(row)[DATABASE_PREFIX_BYTES:])
    return request


def require(view: DirectoryView, name_or_uuid: str) -> DatabaseRow:
    """The database of that name or uuid. Raises NotFound."""
    found = view.find(name_or_uuid)
    if found is None:
        raise database_not_found(name_or_uuid)
    return found


def database_not_found(name_or_uuid: str) -> NotFound:
    """What someone is told who names a database that does not exist."""
    return NotFound(f"no database has the name or uuid '{name_or_uuid}'; `kvnode database list` shows those that exist")


def create_database(
    view: DirectoryView, name: str, *, uuid: str, max_value_bytes: int, now_ms: int
) -> kv_pb2.AtomicWriteRequest:
    """A database of the next number.

    Raises:
        InvalidRequest: DATABASE_NAME_INVALID, DATABASE_EXISTS, TOO_MANY_DATABASES, MAX_VALUE_BYTES_INVALID.
    """
    _check_free(view, name)
    if len(view.databases) + len(view.purges) >= limits.MAX_DATABASES_COUNT:
        raise InvalidRequest(
            "TOO_MANY_DATABASES",
            f"a cluster has {limits.MAX_DATABASES_COUNT} databases at most, deleted ones that are still being removed "
            "included: delete one, or put a prefix into the keys of one database",
        )
    size = _checked_size(max_value_bytes or limits.MAX_VALUE_BYTES)
    number = view.next_database
    row = DatabaseRow(number, uuid, name, DatabaseMode.ENABLED, size, now_ms)
    return change(view, (row,), next_database=number + 1)


def rename_database(view: DirectoryView, name_or_uuid: str, name: str) -> kv_pb2.AtomicWriteRequest:
    """Another name for a database; its uuid stays.

    Raises:
        NotFound: no such database.
        InvalidRequest: DATABASE_NAME_INVALID, DATABASE_EXISTS.
        Forbidden: DATABASE_IS_DEFAULT.
    """
    row = _not_default(require(view, name_or_uuid), "renamed")
    _check_free(view, name)
    return change(view, (row._replace(name=name),))


def set_database(
    view: DirectoryView, name_or_uuid: str, *, mode: str, max_value_bytes: int
) -> kv_pb2.AtomicWriteRequest:
    """Another mode or limit; empty or 0 = as it is.

    Raises:
        NotFound: no such database.
        InvalidRequest: DATABASE_MODE_UNKNOWN, MAX_VALUE_BYTES_INVALID.
    """
    row = require(view, name_or_uuid)
    if mode:
        row = row._replace(mode=_mode(mode))
    if max_value_bytes:
        row = row._replace(max_value_bytes=_checked_size(max_value_bytes))
    return change(view, (row,))


def delete_database(view: DirectoryView, name_or_uuid: str, *, now_ms: int) -> kv_pb2.AtomicWriteRequest:
    """Name, uuid and tokens go at once; a purge row says that its rows are to be removed.

    Raises:
        NotFound: no such database.
        Forbidden: DATABASE_IS_DEFAULT.
    """
    row = _not_default(require(view, name_or_uuid), "deleted")
    purge = PurgeRow(row.number, row.uuid, row.name, now_ms, 0)
    return change(view, (purge,), (row, *view.tokens_of(row.number)))


def purge_progress(view: DirectoryView, purge: PurgeRow, deleted_keys: int) -> kv_pb2.AtomicWriteRequest:
    """So many more rows of a deleted database are gone."""
    return change(view, (purge._replace(deleted_keys=purge.deleted_keys + deleted_keys),))


def purge_finished(view: DirectoryView, purge: PurgeRow) -> kv_pb2.AtomicWriteRequest:
    """Nothing of a deleted database is left."""
    return change(view, (), (purge,))


def create_token(view: DirectoryView, token: TokenRow) -> kv_pb2.AtomicWriteRequest:
    """A token.

    Raises:
        NotFound: its database does not exist.
        InvalidRequest: TOO_MANY_TOKENS, TOKEN_INVALID.
    """
    if token.database != ALL_DATABASES and token.database not in view.databases:
        raise database_not_found(str(token.database))
    if token.right is Right.ADMIN and token.database != ALL_DATABASES:
        raise InvalidRequest("TOKEN_INVALID", "a token with the right admin is for all databases: name none")
    if token.expires_ms and token.expires_ms <= token.created_ms:
        raise InvalidRequest("TOKEN_INVALID", "the token would have expired before it was made; give a later time")
    if len(token.label) > limits.MAX_TOKEN_LABEL_CHARACTERS_COUNT:
        raise InvalidRequest(
            "TOKEN_INVALID", f"a label has at most {limits.MAX_TOKEN_LABEL_CHARACTERS_COUNT} characters"
        )
    if len(view.tokens) >= limits.MAX_TOKENS_COUNT:
        raise InvalidRequest(
            "TOO_MANY_TOKENS",
            f"a cluster has {limits.MAX_TOKENS_COUNT} tokens at most: revoke some, or let them expire",
        )
    return change(view, (token,))


def revoke_token(view: DirectoryView, token_id: str) -> kv_pb2.AtomicWriteRequest:
    """A token goes. Raises NotFound: TOKEN_NOT_FOUND."""
    token = view.tokens.get(token_id)
    if token is None:
        raise NotFound(f"no token has the id '{token_id}'; `kvnode token list` shows them", code="TOKEN_NOT_FOUND")
    return change(view, (), (token,))


def add_signing_key(view: DirectoryView, secret: bytes, *, now_ms: int) -> kv_pb2.AtomicWriteRequest:
    """A fresh key to sign with. The row of the default database is written beside the first one.

    So the default database keeps its uuid when a backup is restored under another cluster id.
    """
    key = SigningKeyRow(max(view.signing_keys, default=0) + 1, secret, now_ms)
    return change(view, (key, view.databases[DEFAULT_DATABASE]))


def drop_outlived(view: DirectoryView, *, now_ms: int) -> kv_pb2.AtomicWriteRequest | None:
    """Signing keys that nothing valid was signed with, and tokens that expired long ago; None = there are none."""
    keys = sorted(view.signing_keys.values())
    outlived: list[DirectoryRow] = [
        key for key, successor in pairwise(keys) if successor.created_ms + limits.SIGNING_KEY_OVERLAP_MS <= now_ms
    ]
    outlived.extend(
        token
        for token in view.tokens.values()
        if token.expires_ms and token.expires_ms + limits.EXPIRED_TOKEN_RETENTION_MS <= now_ms
    )
    if not outlived:
        return None
    return change(view, (), tuple(outlived[: limits.MAX_MUTATIONS_COUNT - 1]))


def _check_free(view: DirectoryView, name: str) -> None:
    check_name(name)
    if view.find(name) is not None:
        raise InvalidRequest("DATABASE_EXISTS", f"a database '{name}' exists already; choose another name")


def _not_default(row: DatabaseRow, verb: str) -> DatabaseRow:
    if row.number == DEFAULT_DATABASE:
        raise Forbidden(
            f"the default database cannot be {verb}: clients that name none mean it. Create another one and name it",
            code="DATABASE_IS_DEFAULT",
        )
    return row


def _mode(text: str) -> DatabaseMode:
    try:
        return DatabaseMode(text)
    except ValueError:
        modes = ", ".join(mode.value for mode in DatabaseMode)
        raise InvalidRequest("DATABASE_MODE_UNKNOWN", f"'{text}' is no mode of a database: {modes}") from None


def _checked_size(size_bytes: int) -> int:
    if not 1 <= size_bytes <= limits.HARD_MAX_VALUE_BYTES:
        raise InvalidRequest(
            "MAX_VALUE_BYTES_INVALID",
            f"a database's largest value has 1 to {limits.HARD_MAX_VALUE_BYTES} bytes, not {size_bytes}: a transaction "
            f"has {limits.MAX_TRANSACTION_BYTES} bytes at most, its keys included",
        )
    return size_bytes
