"""The digest of the state: one number that equal states share and unequal ones do not.

It is the sum, modulo 2^128, of a 16-byte BLAKE2b of each row (the incremental multiset hash AdHash of Bellare
and Micciancio, "A New Paradigm for Collision-free Hashing", 1997). A sum does not depend on the order of the
rows, and a write changes it by `new - old`, so that it is kept in the transaction that applies the write at the
price of the written rows alone. It guards against flipped bits, lost write-ahead frames and diverging replicas,
not against an adversary who can write into the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from struct import Struct

from kvnode.codec.row import Row

DIGEST_BYTES = 16
DIGEST_MODULUS = 1 << 128
_FRAME = Struct("<IIIqq")  # lengths first, so that no two different rows give the same bytes


def row_digest(row: Row) -> bytes:
    """The 16 bytes that stand for a row; every field of it counts."""
    key, value, encoding, versionstamp, expire_at_ms = row
    frame = _FRAME.pack(len(key), len(value), len(versionstamp), encoding, expire_at_ms)
    return blake2b(frame + versionstamp + key + value, digest_size=DIGEST_BYTES).digest()


def digest_sum(digests: Iterable[bytes]) -> int:
    """The sum of row digests, not yet reduced by DIGEST_MODULUS."""
    from_bytes = int.from_bytes
    return sum([from_bytes(digest, "little") for digest in digests])
