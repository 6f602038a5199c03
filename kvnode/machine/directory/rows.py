"""The directory's rows in the system database: their keys, and a versioned codec for their values.

A value is one byte, the codec's version, then a protobuf message. A node that meets a version that it does not know
leaves the row alone and says so, rather than guess: an older node beside newer ones in an upgrade goes on serving what
it understands. Under the directory's prefix (keyspace.py, `d`) the next bytes say what a row is:

    dv                              the version row: every change to the directory writes it (view.py says why)
    dd <number, 4>                  a database
    dt <token id>                   an access token
    dk <key id, 4>                  a key that signs data tokens
    dp <number, 4>                  a deleted database whose rows are still being removed
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from google.protobuf.message import DecodeError

from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES, SYSTEM_PREFIX
from kvnode.proto.kv.internal.v1 import directory_pb2

CODEC_VERSION = 1
ALL_DATABASES = 0

DIRECTORY_PREFIX = SYSTEM_PREFIX + b"d"
DIRECTORY_END = SYSTEM_PREFIX + b"e"
VERSION_KEY = DIRECTORY_PREFIX + b"v"
_DATABASE = DIRECTORY_PREFIX + b"d"
_TOKEN = DIRECTORY_PREFIX + b"t"
_SIGNING_KEY = DIRECTORY_PREFIX + b"k"
_PURGE = DIRECTORY_PREFIX + b"p"
_HEAD = bytes((CODEC_VERSION,))


class DatabaseMode(StrEnum):
    """What a database does for its users."""

    ENABLED = "enabled"
    READ_ONLY = "read-only"
    DISABLED = "disabled"


class Right(StrEnum):
    """What a token may do; each includes the one before."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class DatabaseRow(NamedTuple):
    """A database. `number` begins its keys and is never given to another."""

    number: int
    uuid: str
    name: str
    mode: DatabaseMode
    max_value_bytes: int
    created_ms: int


class TokenRow(NamedTuple):
    """An access token, without the token: its SHA-256 and its last characters. Limits and expiry: 0 = none."""

    token_id: str
    secret_hash: bytes
    last_characters: str
    database: int  # a number, or ALL_DATABASES
    right: Right
    label: str
    created_ms: int
    expires_ms: int
    requests_per_second: int
    bytes_per_second: int


class SigningKeyRow(NamedTuple):
    """A key of the cluster that signs data tokens."""

    key_id: int
    secret: bytes
    created_ms: int


class PurgeRow(NamedTuple):
    """A deleted database whose rows are being removed."""

    number: int
    uuid: str
    name: str
    begun_ms: int
    deleted_keys: int


class VersionRow(NamedTuple):
    """Written with every change. `next_database` is the number that the next database gets."""

    next_database: int


DirectoryRow = DatabaseRow | TokenRow | SigningKeyRow | PurgeRow | VersionRow


class UnknownRow(ValueError):
    """A row that this version of kvnode cannot read; the message says which."""


def key_of(row: DirectoryRow) -> bytes:
    """The full key of a row, the database prefix included."""
    if isinstance(row, DatabaseRow):
        return _DATABASE + _number(row.number)
    if isinstance(row, TokenRow):
        return token_key(row.token_id)
    if isinstance(row, SigningKeyRow):
        return _SIGNING_KEY + _number(row.key_id)
    if isinstance(row, PurgeRow):
        return _PURGE + _number(row.number)
    return VERSION_KEY


def token_key(token_id: str) -> bytes:
    """The full key of a token's row."""
    return _TOKEN + token_id.encode()


def subject_of(key: bytes) -> str:
    """What people call the database or token whose row has this full key; empty for every other row."""
    kind, rest = key[: len(_TOKEN)], key[len(_TOKEN) :]
    if kind == _TOKEN:
        return f"token {rest.decode(errors='replace')}"
    return f"database number {int.from_bytes(rest, 'big')}" if kind == _DATABASE else ""


def encode(row: DirectoryRow) -> bytes:
    """The value of a row."""
    return _HEAD + _message(row).SerializeToString(deterministic=True)


def _message(
    row: DirectoryRow,
) -> (
    directory_pb2.DatabaseRow
    | directory_pb2.TokenRow
    | directory_pb2.SigningKeyRow
    | directory_pb2.PurgeRow
    | directory_pb2.DirectoryVersionRow
):
    fields = row._asdict()
    if isinstance(row, DatabaseRow):
        return directory_pb2.DatabaseRow(**{**fields, "mode": row.mode.value})
    if isinstance(row, TokenRow):
        return directory_pb2.TokenRow(**{**fields, "right": row.right.value})
    if isinstance(row, SigningKeyRow):
        return directory_pb2.SigningKeyRow(**fields)
    if isinstance(row, PurgeRow):
        return directory_pb2.PurgeRow(**fields)
    return directory_pb2.DirectoryVersionRow(**fields)


def decode(key: bytes, value: bytes) -> DirectoryRow:
    """The row under a full key. Raises UnknownRow: of a newer version, or not one of the directory's."""
    if value[:1] != _HEAD:
        raise UnknownRow(f"row {key.hex()} is of codec version {value[0] if value else 'none'}, not {CODEC_VERSION}")
    kind, body = key[: len(DIRECTORY_PREFIX) + 1], value[1:]
    try:
        if kind == _DATABASE:
            database = directory_pb2.DatabaseRow.FromString(body)
            return DatabaseRow(
                database.number,
                database.uuid,
                database.name,
                DatabaseMode(database.mode),
                database.max_value_bytes,
                database.created_ms,
            )
        if kind == _TOKEN:
            return _token(directory_pb2.TokenRow.FromString(body))
        if kind == _SIGNING_KEY:
            signing = directory_pb2.SigningKeyRow.FromString(body)
            return SigningKeyRow(signing.key_id, signing.secret, signing.created_ms)
        if kind == _PURGE:
            purge = directory_pb2.PurgeRow.FromString(body)
            return PurgeRow(purge.number, purge.uuid, purge.name, purge.begun_ms, purge.deleted_keys)
        if key == VERSION_KEY:
            return VersionRow(directory_pb2.DirectoryVersionRow.FromString(body).next_database)
    except (DecodeError, ValueError) as error:
        raise UnknownRow(f"row {key.hex()} cannot be read: {error}") from None
    raise UnknownRow(f"row {key.hex()} is of a kind that this version of kvnode does not know")


def _token(row: directory_pb2.TokenRow) -> TokenRow:
    return TokenRow(
        row.token_id,
        row.secret_hash,
        row.last_characters,
        row.database,
        Right(row.right),
        row.label,
        row.created_ms,
        row.expires_ms,
        row.requests_per_second,
        row.bytes_per_second,
    )


def _number(number: int) -> bytes:
    return number.to_bytes(DATABASE_PREFIX_BYTES, "big")
