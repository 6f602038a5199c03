"""The seams of KV Connect: who may come in, and who answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from enum import StrEnum
from typing import NamedTuple, Protocol

from kvnode.base.errors import KvError
from kvnode.node.ports import Deliver
from kvnode.proto.kv.v1 import kv_pb2


class DatabaseMode(StrEnum):
    """What a database does for its users."""

    ENABLED = "enabled"
    READ_ONLY = "read-only"
    DISABLED = "disabled"


class Database(NamedTuple):
    """A database. `number` begins its keys."""

    number: int
    uuid: str
    name: str
    mode: DatabaseMode
    max_value_bytes: int


class Grant(NamedTuple):
    """What the bearer of a data token may do with one database."""

    token_id: str
    database: Database
    can_write: bool


class Access(Protocol):
    """Judges tokens by a cached view of the replicated directory (kvnode.api.auth)."""

    def find(self, name_or_uuid: str) -> Database | None:
        """The database of that name or uuid; "" = the default database."""

    async def learn(self) -> None:
        """For whoever is about to refuse: wait for what may be newer than the view. Raises KvError."""

    def exchange(self, database: Database, access_token: str) -> tuple[str, int]:
        """(signed data token, its expiry in unix ms). Raises Unauthenticated."""

    def still_grants(self, uuid: str, data_token: str) -> Grant:
        """What authorize granted, judged again for a watch, and not counted. Raises Unauthenticated, NotFound."""

    def follow(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called when what was judged may have changed, until the result is called."""

    def can_judge(self, data_token: str) -> bool:
        """Whether the view has the key that a data token claims to be signed with; else the token may be newer."""

    def authorize(self, uuid: str, data_token: str, *, write: bool, size_bytes: int) -> Grant:
        """Judge one request; size_bytes 0 = not declared. Raises Unauthenticated, Forbidden, RateLimited, NotFound."""

    def charge(self, data_token: str, size_bytes: int) -> None:
        """What came of a request that was authorized without its size, for the token's limit; refuses nothing."""


RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"  # more than a message between nodes, or from the cluster to a gateway


class Backend(Protocol):
    """Answers requests: the node itself, or a gateway without data."""

    @property
    def name(self) -> str:
        """Of the node or gateway."""

    def can_begin(self, *, write: bool) -> bool:
        """Whether reads, or writes, can be begun without a task now; else `read` or `write` is called."""

    def begin(self, operation: kv_pb2.Operation, *, database: int, deliver: Deliver) -> None:
        """A read, or a write held and settled, when can_begin says so.

        `deliver` is given the result once, possibly before this returns; a failure is a result with `error`.
        """

    async def read(self, request: kv_pb2.ReadRequest, *, database: int) -> kv_pb2.ReadResponse:
        """One read; request.consistency says strong or eventual. Raises KvError."""

    async def read_large(self, request: kv_pb2.ReadRequest, refused: KvError, *, database: int) -> kv_pb2.ReadResponse:
        """A strong read that the leader has refused as RESPONSE_TOO_LARGE, as strongly. Raises KvError."""

    async def write(self, request: kv_pb2.AtomicWriteRequest, *, database: int) -> kv_pb2.AtomicWriteResponse:
        """One atomic write, held and settled. Raises KvError, whose not_applied says whether a 503 is honest."""

    def watch(self, request: kv_pb2.WatchRequest, *, database: int) -> AsyncGenerator[kv_pb2.WatchResponse, None]:
        """Frames; the first has all keys changed, pings come in silence; aclose() ends it."""
