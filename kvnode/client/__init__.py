"""The Python client (asyncio): used by the CLI, by tools that make load, and by applications.

`open_kv` is where to start; docs/howto/python-client.md shows how.
"""

from kvnode.base.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    KvError,
    NotFound,
    OutcomeUnknown,
    QueueFull,
    RateLimited,
    TooStale,
    Unauthenticated,
    Unavailable,
    VersionstampLost,
)
from kvnode.client.admin import Admin
from kvnode.client.atomic import AtomicOperation
from kvnode.client.kv import Kv, open_kv
from kvnode.client.listing import KvList
from kvnode.client.results import CommitResult, Entry, PrefixChanges
from kvnode.client.session import Session
from kvnode.client.tls import tls_credentials
from kvnode.codec.bigint import BigInt
from kvnode.codec.values import KvU64

__all__ = [
    "Admin",
    "AtomicOperation",
    "BigInt",
    "CommitResult",
    "DeadlineExceeded",
    "Entry",
    "Forbidden",
    "InvalidRequest",
    "Kv",
    "KvError",
    "KvList",
    "KvU64",
    "NotFound",
    "OutcomeUnknown",
    "PrefixChanges",
    "QueueFull",
    "RateLimited",
    "Session",
    "TooStale",
    "Unauthenticated",
    "Unavailable",
    "VersionstampLost",
    "open_kv",
    "tls_credentials",
]
