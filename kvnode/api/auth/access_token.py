"""Access tokens: what a user keeps and a client sends.

    kvn_<id, 8>_<secret, 40>

Id and secret are base32 in lower case: the id names the row, so that looking a token up compares nothing secret; the
secret is 200 random bits. Stored is the SHA-256 of the whole token. A slow hash (bcrypt, Argon2) makes guessing dear
where secrets are few, as passwords are; among 2^200 equally likely ones there is nothing to guess, and a hash that
takes 100 ms would only hand every caller a way to keep the node busy.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from typing import NamedTuple

from kvnode.base.tokens import ACCESS_TOKEN_PREFIX as PREFIX
from kvnode.machine.directory.rows import TokenRow

LAST_CHARACTERS_COUNT = 4
_ID_BYTES = 5
_SECRET_BYTES = 25
_ID_CHARACTERS = 8


class FreshToken(NamedTuple):
    """A token that was just made. `text` is kept nowhere."""

    token_id: str
    text: str

    @property
    def secret_hash(self) -> bytes:
        """What is stored of it."""
        return digest(self.text)

    @property
    def last_characters(self) -> str:
        """By which its owner may know it again."""
        return self.text[-LAST_CHARACTERS_COUNT:]


def mint(random_source: random.Random) -> FreshToken:
    """A fresh token; `random_source` must be the operating system's own."""
    token_id = _base32(random_source.randbytes(_ID_BYTES))
    return FreshToken(token_id, f"{PREFIX}{token_id}_{_base32(random_source.randbytes(_SECRET_BYTES))}")


def id_of(text: str) -> str:
    """The id that a token names; empty when it has not the form of one."""
    if not text.startswith(PREFIX):
        return ""
    token_id, separator, _ = text[len(PREFIX) :].partition("_")
    return token_id if separator and len(token_id) == _ID_CHARACTERS else ""


def digest(text: str) -> bytes:
    """What is stored of a token, and what two tokens are compared by."""
    return hashlib.sha256(text.encode()).digest()


def matches(text: str, row: TokenRow) -> bool:
    """Whether this is the row's token, in a time that says nothing about how far they agree."""
    return hmac.compare_digest(digest(text), row.secret_hash)


def same(left: str, right: str) -> bool:
    """Whether two tokens are the same, whatever their lengths, in constant time."""
    return hmac.compare_digest(digest(left), digest(right))


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()
