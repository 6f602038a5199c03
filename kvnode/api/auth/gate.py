"""Who may call over gRPC, and which database a call means.

A call names its database in the metadata `kv-database` (name or uuid; none = the default one) and its token in
`authorization: Bearer ...`. Whether a token is needed is the configuration's (`grpc_auth`); one that is sent is judged
in either case. A permit lasts as long as its call: what it says is judged anew after every change to the directory, so
that the next operation of a long session is refused once its token is revoked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from kvnode.api.auth.authority import STATIC_TOKEN_ID, Authority, Holder, read_only_token
from kvnode.api.auth.data_token import Claims
from kvnode.api.auth.rate import RateLimit
from kvnode.base.clock import Clock
from kvnode.base.errors import Forbidden, KvError, NotFound, Unauthenticated
from kvnode.base.tokens import DATA_TOKEN_PREFIX
from kvnode.machine.directory.changes import database_not_found
from kvnode.machine.directory.rows import ALL_DATABASES, DatabaseMode, DatabaseRow, Right
from kvnode.proto.kv.v1 import kv_pb2

DATABASE_METADATA = "kv-database"
TOKEN_METADATA = "authorization"
NODE_TOKEN_ID = "node"
NODE_TOKEN_LIFE_MS = 60_000

Metadata = Iterable[tuple[str, str | bytes]]
_SCHEME = "bearer "


class Permit:
    """What one call may do with one database. Made by Gate.permit.

    Attributes:
        database: its number.
    """

    __slots__ = ("_authority", "_clock", "_generation", "_holder", "_rate", "_reads", "_uuid", "_writes", "database")

    def __init__(self, authority: Authority, clock: Clock, row: DatabaseRow, holder: Holder | None) -> None:
        self._authority = authority
        self._clock = clock
        self._holder = holder
        self._generation = -1
        self._reads: KvError | None = None
        self._writes: KvError | None = None
        self._rate: RateLimit | None = None
        self.database = row.number
        self._uuid = row.uuid

    @property
    def is_plain(self) -> bool:
        """Whether nothing needs to be judged by the operation: all are allowed, and none is counted."""
        if self._generation != self._authority.view.generation:
            self._judge()
        return self._reads is None and self._writes is None and self._rate is None and self._is_lasting

    def refusal(self, *, write: bool) -> KvError | None:
        """Why reads, or writes, are refused now; None = they are not. Nothing is counted."""
        if self._generation != self._authority.view.generation:
            self._judge()
        if self._holder is not None and not self._is_lasting:
            try:
                self._authority.require_unexpired(self._holder)
            except Unauthenticated as error:
                return error
        return self._writes if write else self._reads

    def use(self, size_bytes: int, *, write: bool) -> None:
        """Begin one operation. Raises KvError: why it is refused."""
        refusal = self.refusal(write=write)
        if refusal is not None:
            raise refusal
        if self._rate is not None:
            self._rate.take(size_bytes, self._clock.monotonic_ms())

    def use_for(self, operation: kv_pb2.Operation) -> None:
        """As use, for an operation of a session."""
        self.use(operation.ByteSize(), write=not operation.HasField("read"))

    @property
    def _is_lasting(self) -> bool:
        return self._holder is None or not self._holder.expires_ms

    def _judge(self) -> None:
        view = self._authority.view
        self._generation = view.generation
        row = view.databases.get(self.database)
        self._rate = None
        if row is None or row.uuid != self._uuid:  # a failover may have cut it off, and another have got its number
            self._reads = self._writes = NotFound("The database was deleted.")
            return
        self._reads, self._writes = refused_by_mode(row)
        holder = self._holder
        if holder is None or holder.token_id == STATIC_TOKEN_ID:
            return
        if holder.token_id not in view.tokens:
            self._reads = self._writes = Unauthenticated("The access token has been revoked.")
            return
        if holder.right is Right.READ:
            self._writes = self._writes or read_only_token()
        self._rate = self._authority.rate_of(holder.token_id)


class Gate:
    """Judges the callers of one node's gRPC port.

    Args:
        authority: judges tokens.
        clock: for limits and expiry.
        required: whether a call needs a token (`grpc_auth`).
    """

    def __init__(self, authority: Authority, clock: Clock, *, required: bool) -> None:
        self._authority = authority
        self._clock = clock
        self._required = required

    async def permit(self, metadata: Metadata | None) -> Permit:
        """What the caller may do with the database that it names.

        A database or token that this node has not heard of may be a moment old: nobody is refused for it before the
        node has asked the leader how far it should be.

        Raises:
            NotFound: DATABASE_NOT_FOUND.
            Unauthenticated: no token where one is needed, or a wrong one.
            Unavailable: this is a gateway that has just started and has reached no node.
        """
        name, token = _named(metadata)
        if not self._authority.view.databases:
            await self._authority.learn()
        try:
            return self._permit(name, token)
        except (NotFound, Unauthenticated):
            await self._learn()
            return self._permit(name, token)

    async def require_admin(self, metadata: Metadata | None) -> None:
        """Let only those administer who may.

        Raises:
            Unauthenticated: no token where one is needed, or a wrong one.
            Forbidden: TOKEN_NOT_ADMIN.
        """
        _, token = _named(metadata)
        try:
            self._require_admin(token)
        except Unauthenticated:
            await self._learn()
            self._require_admin(token)

    def follow(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call back after every change to the directory, until the result is called."""
        return self._authority.follow(changed)

    def node_metadata(self) -> tuple[tuple[str, str], ...]:
        """With which this node administers others of its cluster; empty when none is needed, or none can be made."""
        if not self._required or not self._authority.view.signing_keys:
            return ()
        expires_ms = self._clock.now_ms() + NODE_TOKEN_LIFE_MS
        claims = Claims(NODE_TOKEN_ID, self._authority.view.databases[1].uuid, Right.ADMIN, expires_ms)
        return ((TOKEN_METADATA, f"Bearer {self._authority.sign(claims)}"),)

    def _permit(self, name: str, token: str) -> Permit:
        if not token and self._required:
            self._authority.identify(token)  # says what is wrong
        holder = self._authority.identify(token) if token else None
        row = self._authority.view.find(name)
        if row is None:
            raise database_not_found(name)
        if holder is not None:
            self._authority.require_scope(holder, row.number)
        return Permit(self._authority, self._clock, row, holder)

    def _require_admin(self, token: str) -> None:
        if not token and not self._required:
            return
        if token.startswith(DATA_TOKEN_PREFIX):
            right = self._authority.identify_signed(token).right
        else:
            right = self._authority.identify(token).right
        if right is not Right.ADMIN:
            raise Forbidden(
                "This token may not administer the cluster; use one that was created with --right admin.",
                code="TOKEN_NOT_ADMIN",
            )

    async def _learn(self) -> None:
        with contextlib.suppress(KvError):  # no leader: the view is what there is
            await self._authority.learn()


def refused_by_mode(row: DatabaseRow) -> tuple[KvError | None, KvError | None]:
    """Why the database's mode refuses reads, and writes."""
    if row.mode is DatabaseMode.DISABLED:
        error = Forbidden(
            f"The database '{row.name}' is disabled; `kvnode database set {row.name} --mode enabled` enables it.",
            code="DATABASE_DISABLED",
        )
        return error, error
    if row.mode is DatabaseMode.READ_ONLY:
        return None, Forbidden(
            f"The database '{row.name}' is read only; `kvnode database set {row.name} --mode enabled` lets writes in.",
            code="DATABASE_READ_ONLY",
        )
    return None, None


def _named(metadata: Metadata | None) -> tuple[str, str]:
    """(name or uuid of the database, token) that a call's metadata names; empty = none."""
    name = token = ""
    for key, value in metadata or ():
        if key == DATABASE_METADATA and isinstance(value, str):
            name = value
        elif key == TOKEN_METADATA and isinstance(value, str):
            if not value.lower().startswith(_SCHEME):
                raise Unauthenticated("Malformed authorization header. It must be `Bearer` and the token.")
            token = value[len(_SCHEME) :].strip()
    return name, token


__all__ = ["ALL_DATABASES", "DATABASE_METADATA", "TOKEN_METADATA", "Gate", "Permit", "refused_by_mode"]
