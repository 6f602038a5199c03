"""Where things live in the one ordered key space.

A key is a 4-byte big-endian database number, then bytes that the database's owner chose. Number 0 is the system's
own; the default user database is number 1; numbers from 2^31 on are the queues of the database 2^31 below
(queue/keys.py). In the system database the next byte says what a row is:

    s <client id, 10>                   a session (sessions.py)
    o <client id, 10> <sequence, 8>     outcomes of one session in one entry; the sequence is the greatest among them
    e <epoch, 2>                        an epoch that a failover began (epochs.py)
    z                                   the seal behind which the next epoch begins, while it has not
"""

from __future__ import annotations

from functools import lru_cache

SYSTEM_DATABASE = 0
DEFAULT_DATABASE = 1
DATABASE_PREFIX_BYTES = 4
SYSTEM_PREFIX = bytes(DATABASE_PREFIX_BYTES)
SESSION_PREFIX = SYSTEM_PREFIX + b"s"
OUTCOME_PREFIX = SYSTEM_PREFIX + b"o"
EPOCH_PREFIX = SYSTEM_PREFIX + b"e"
EPOCHS_END = SYSTEM_PREFIX + b"f"
SEAL_KEY = SYSTEM_PREFIX + b"z"
_SEQUENCE_BYTES = 8


@lru_cache(maxsize=1024)
def database_prefix(database: int) -> bytes:
    """The 4 bytes that begin every key of `database`."""
    return database.to_bytes(DATABASE_PREFIX_BYTES, "big")


def session_key(client_id: bytes) -> bytes:
    """Key of a session's row."""
    return SESSION_PREFIX + client_id


def outcome_key(client_id: bytes, sequence: int) -> bytes:
    """Key of the row whose greatest sequence is `sequence`."""
    return OUTCOME_PREFIX + client_id + sequence.to_bytes(_SEQUENCE_BYTES, "big")


def outcome_range_end(client_id: bytes) -> bytes:
    """Above every outcome row of the session."""
    return OUTCOME_PREFIX + client_id + b"\xff" * (_SEQUENCE_BYTES + 1)
