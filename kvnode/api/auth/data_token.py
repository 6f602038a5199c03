"""Data tokens: what the metadata exchange hands out and every data request brings back.

    kvd_ base64url( version 1 | key id 4 | right 1 | expiry, unix ms 8 | database uuid 16 | access token's id | mac 32 )

Integers are big-endian; the mac is HMAC-SHA256 (RFC 2104) over everything before it, under a key of the cluster, so
that every node of the cluster accepts what any of them has signed. Verifying one costs about 15 us, and 1 us once it is
remembered. What may change before it expires (the access token is revoked, the database deleted) is looked up by the
ids in it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
import uuid
from typing import NamedTuple

from kvnode.base.tokens import DATA_TOKEN_PREFIX as PREFIX
from kvnode.machine.directory.rows import Right, SigningKeyRow

FORMAT_VERSION = 1
_HEAD = struct.Struct(">BIBQ16s")
_MAC_BYTES = 32
_MAX_TEXT_CHARACTERS_COUNT = 256
_RIGHTS = (Right.READ, Right.WRITE, Right.ADMIN)


class Claims(NamedTuple):
    """What a data token says."""

    token_id: str
    database_uuid: str
    right: Right
    expires_ms: int


class Signed(NamedTuple):
    """A data token taken apart, its signature not yet verified."""

    claims: Claims
    key_id: int
    body: bytes
    mac: bytes


def sign(claims: Claims, key: SigningKeyRow) -> str:
    """The token."""
    body = (
        _HEAD.pack(
            FORMAT_VERSION,
            key.key_id,
            _RIGHTS.index(claims.right),
            claims.expires_ms,
            uuid.UUID(claims.database_uuid).bytes,
        )
        + claims.token_id.encode()
    )
    return PREFIX + base64.urlsafe_b64encode(body + _mac(body, key)).decode().rstrip("=")


def take_apart(text: str) -> Signed | None:
    """What a token says; None when it is none of this version."""
    if not text.startswith(PREFIX) or len(text) > _MAX_TEXT_CHARACTERS_COUNT:
        return None
    encoded = text[len(PREFIX) :]
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if len(body) < _HEAD.size or body[0] != FORMAT_VERSION:
        return None
    _, key_id, right, expires_ms, database_uuid = _HEAD.unpack_from(body)
    token_id = body[_HEAD.size :]
    if right >= len(_RIGHTS) or not token_id.isascii():
        return None
    claims = Claims(token_id.decode(), str(uuid.UUID(bytes=database_uuid)), _RIGHTS[right], expires_ms)
    return Signed(claims, key_id, body, mac)


def is_genuine(signed: Signed, key: SigningKeyRow) -> bool:
    """Whether the cluster's key made its signature, judged in constant time."""
    return hmac.compare_digest(_mac(signed.body, key), signed.mac)


def _mac(body: bytes, key: SigningKeyRow) -> bytes:
    return hmac.digest(key.secret, body, hashlib.sha256)
