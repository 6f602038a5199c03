"""Where a database's queues live: a key space of their own, beside the user's.

The queues of database n are the rows of "database" n + 2^31, a number that no database gets. So they are in the log, in
snapshots and in the digest like any other row, and no read, watch, count or export of a user can meet them. After the
4 bytes of that number:

    q <name>                                a queue: its counters and its bound
    m <message id, 12>                      a message, written once
    d <length of the name, 1> <name> <due time in ms, 8> <message id, 12>
                                            it waits: the first of these is what falls due next
    l <lease id, 12>                        it is under a lease; the row expires when the lease does
    x <length of the name, 1> <name> <dead letter id, 12>
                                            it was given up
    c <name>                                a cron: its schedule, its next tick and its counters
    b <name>                                what it sends, written when it is set
    t <name>                                empty; the row expires when the cron is to be looked at
    p <name>                                where the queue is pushed (push.py)

A message has either a `d` row or an `l` row. An id is the versionstamp of the transaction that made it and a 2-byte
number, so ids are in the order of commits.
"""

from __future__ import annotations

from functools import lru_cache

from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES, database_prefix

DEFAULT_QUEUE = "default"
_NUMBER_BYTES = 2
ID_BYTES = VERSIONSTAMP_BYTES + _NUMBER_BYTES
_SPACE_BIT = 1 << 31
_TIME_BYTES = 8

_QUEUE, _MESSAGE, _DUE, _LEASE, _DEAD, _PUSH = b"q", b"m", b"d", b"l", b"x", b"p"
_CRON, _CRON_BODY, _CRON_TICK = b"c", b"b", b"t"
_KIND_AT = DATABASE_PREFIX_BYTES
_LEASE_KIND, _DUE_KIND = _LEASE[0], _DUE[0]
_PUSH_KIND = _PUSH[0]
_EVENT_KINDS = frozenset((_LEASE[0], _CRON_TICK[0]))
_MADE_KINDS = frozenset((_MESSAGE[0], _DUE[0], _LEASE[0]))
FIRST_SPACE_BYTE = _SPACE_BIT >> 24  # of the keys of queues, and of nothing else

SPACES_START = database_prefix(_SPACE_BIT)
SPACES_END = b"\xff" * (DATABASE_PREFIX_BYTES + 1)
PUSH_VERSION_KEY = SPACES_START + _PUSH
"""Written with every change to where some queue is pushed. No database has the number 0, so this space is free."""


def queue_space(database: int) -> int:
    """The number under which the queues of `database` are kept."""
    return database | _SPACE_BIT


def is_queue_space(number: int) -> bool:
    """Whether `number` is a database's queues."""
    return number >= _SPACE_BIT


def database_of_space(number: int) -> int:
    """The database whose queues `number` is, or the number itself if it is a database."""
    return number & ~_SPACE_BIT


def is_queue_key(key: bytes) -> bool:
    """Whether a full key is a row of some database's queues."""
    return key[0] >= FIRST_SPACE_BYTE


def is_event_key(key: bytes) -> bool:
    """Whether a full key is a row whose expiry makes something happen: a lease, or a cron's next tick."""
    return key[0] >= FIRST_SPACE_BYTE and key[_KIND_AT] in _EVENT_KINDS


def is_made_by(key: bytes, stamp: bytes) -> bool:
    """Whether no state before the transaction with that versionstamp can hold this key of some database's queues.

    It is that of a message, or of a lease, to which that transaction has given its id.
    """
    return key[-ID_BYTES:-_NUMBER_BYTES] == stamp and key[_KIND_AT] in _MADE_KINDS


def is_tick_key(key: bytes) -> bool:
    """Whether the key of such a row is a cron's next tick."""
    return key[_KIND_AT] == _CRON_TICK[0]


def is_due_key(key: bytes) -> bool:
    """Whether a full key is a waiting message of some database."""
    return key[0] >= FIRST_SPACE_BYTE and key[_KIND_AT] == _DUE_KIND


def database_of_key(key: bytes) -> int:
    """The database whose queues the full key belongs to."""
    return database_of_space(int.from_bytes(key[:DATABASE_PREFIX_BYTES], "big"))


@lru_cache(maxsize=1024)
def space_prefix(database: int) -> bytes:
    """The 4 bytes that begin every key of the queues of `database`."""
    return database_prefix(queue_space(database))


@lru_cache(maxsize=4096)
def queue_key(database: int, queue: str) -> bytes:
    """The queue's own row."""
    return space_prefix(database) + _QUEUE + queue.encode()


def queue_bounds(database: int) -> tuple[bytes, bytes]:
    """Start and end of the rows of all queues of a database."""
    prefix = space_prefix(database)
    return prefix + _QUEUE, prefix + bytes([_QUEUE[0] + 1])


def queue_of_key(key: bytes) -> str:
    """The name in the key of a queue's own row."""
    return key[_KIND_AT + 1 :].decode()


def push_key(database: int, queue: str) -> bytes:
    """Where the queue is pushed."""
    return space_prefix(database) + _PUSH + queue.encode()


def push_bounds(database: int) -> tuple[bytes, bytes]:
    """Start and end of the rows that say where the queues of a database are pushed."""
    prefix = space_prefix(database)
    return prefix + _PUSH, prefix + bytes([_PUSH_KIND + 1])


def is_push_key(key: bytes) -> bool:
    """Whether a full key says where some queue is pushed."""
    return key[0] >= FIRST_SPACE_BYTE and key[_KIND_AT] == _PUSH_KIND and key != PUSH_VERSION_KEY


def message_key(database: int, message_id: bytes) -> bytes:
    """The message."""
    return space_prefix(database) + _MESSAGE + message_id


def lease_key(database: int, lease_id: bytes) -> bytes:
    """The lease."""
    return space_prefix(database) + _LEASE + lease_id


def lease_bounds(space: bytes) -> tuple[bytes, bytes]:
    """Start and end of the leases in a space, given the 4 bytes that begin its keys."""
    return space + _LEASE, space + bytes([_LEASE_KIND + 1])


def lease_of_key(key: bytes) -> bytes:
    """The id in a lease's key."""
    return key[_KIND_AT + 1 :]


@lru_cache(maxsize=4096)
def due_prefix(database: int, queue: str) -> bytes:
    """What begins the keys of a queue's waiting messages."""
    name = queue.encode()
    return space_prefix(database) + _DUE + bytes([len(name)]) + name


def due_key(database: int, queue: str, due_ms: int, message_id: bytes) -> bytes:
    """The row of a waiting message; with an empty id, the start of all that fall due at `due_ms` or later."""
    return due_prefix(database, queue) + due_ms.to_bytes(_TIME_BYTES, "big") + message_id


def due_end(database: int, queue: str) -> bytes:
    """Above every waiting message of the queue."""
    return due_prefix(database, queue) + b"\xff" * _TIME_BYTES


def due_of_key(key: bytes) -> tuple[int, bytes]:
    """(due time, message id) of a waiting message's key."""
    at = len(key) - ID_BYTES
    return int.from_bytes(key[at - _TIME_BYTES : at], "big"), key[at:]


def queue_of_due_key(key: bytes) -> str:
    """The queue's name in a waiting message's key."""
    start = _KIND_AT + 2
    return key[start : start + key[_KIND_AT + 1]].decode()


@lru_cache(maxsize=4096)
def dead_prefix(database: int, queue: str) -> bytes:
    """What begins the keys of a queue's dead letters."""
    name = queue.encode()
    return space_prefix(database) + _DEAD + bytes([len(name)]) + name


def dead_key(database: int, queue: str, dead_id: bytes) -> bytes:
    """The dead letter."""
    return dead_prefix(database, queue) + dead_id


def dead_end(database: int, queue: str) -> bytes:
    """Above every dead letter of the queue."""
    return dead_prefix(database, queue) + b"\xff" * (ID_BYTES + 1)


def dead_of_key(key: bytes) -> bytes:
    """The id in a dead letter's key."""
    return key[len(key) - ID_BYTES :]


def cron_key(database: int, name: str) -> bytes:
    """A cron's own row."""
    return space_prefix(database) + _CRON + name.encode()


def cron_bounds(database: int) -> tuple[bytes, bytes]:
    """Start and end of the rows of all crons of a database."""
    prefix = space_prefix(database)
    return prefix + _CRON, prefix + bytes([_CRON[0] + 1])


def cron_body_key(database: int, name: str) -> bytes:
    """What a cron sends."""
    return space_prefix(database) + _CRON_BODY + name.encode()


def cron_tick_key(database: int, name: str) -> bytes:
    """When a cron is to be looked at."""
    return space_prefix(database) + _CRON_TICK + name.encode()


def cron_of_key(key: bytes) -> str:
    """The name in any of a cron's keys."""
    return key[_KIND_AT + 1 :].decode()
