"""Judges tokens by the directory's view, on a node or on a gateway without data.

Theory of operation. A client shows its access token once, in the metadata exchange, and gets a signed data token for
one database, which every node of the cluster accepts (data_token.py). What a data token says is remembered with the
view's generation at which it was judged: while the directory stays as it is, a request costs one look into a
dictionary; after any change everything is judged anew at its next use, so that a revocation takes effect as soon as
this node has applied it.

The static token of the configuration reads and writes every database and administers. It stands in no row: what was
signed for it is valid on every node, whatever their own configurations say, until it expires.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from kvnode.api.auth import access_token as access_tokens
from kvnode.api.auth import data_token as data_tokens
from kvnode.api.auth.data_token import Claims
from kvnode.api.auth.learning import Learning
from kvnode.api.auth.rate import RateLimit
from kvnode.api.connect.ports import Database, DatabaseMode, Grant
from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from kvnode.machine.directory.changes import database_not_found
from kvnode.machine.directory.rows import ALL_DATABASES, DatabaseRow, Right, SigningKeyRow, TokenRow
from kvnode.machine.directory.view import DirectoryView

STATIC_TOKEN_ID = "static"


class Holder(NamedTuple):
    """Whom an access token belongs to. `database` is a number or ALL_DATABASES; `expires_ms` 0 = never."""

    token_id: str
    database: int
    right: Right
    expires_ms: int


class _Judged(NamedTuple):
    """A genuine data token, as judged at one generation of the view."""

    generation: int
    claims: Claims
    grant: Grant
    rate: RateLimit | None


class Authority:
    """The Access of kvnode.api.connect.ports, over a view that its owner keeps up to date.

    Args:
        view: of the directory.
        clock: judges expiry.
        static_token: of the configuration; empty = none.
        learn: waits until the view holds all that was acknowledged before the call; None = nothing to wait for.
    """

    def __init__(
        self,
        view: DirectoryView,
        clock: Clock,
        *,
        static_token: str = "",
        learn: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.view = view
        self._clock = clock
        self._static_token = static_token
        self._learning = None if learn is None else Learning(learn)
        self._judged: dict[str, _Judged] = {}
        self._rates: dict[str, RateLimit] = {}

    # What KV Connect asks (ports.Access).

    def find(self, name_or_uuid: str) -> Database | None:
        """The database of that name or uuid; "" = the default database.

        Raises:
            Unavailable: this is a gateway that has just started and has reached no node.
        """
        if not self.view.databases:
            raise Unavailable("this gateway has not reached a node of the cluster yet; retry later", phase="dial")
        row = self.view.find(name_or_uuid)
        return None if row is None else database_of(row)

    def exchange(self, database: Database, access_token: str) -> tuple[str, int]:
        """A data token for the database, and its expiry in unix ms.

        Raises:
            Unauthenticated: ACCESS_TOKEN_INVALID, ACCESS_TOKEN_EXPIRED, ACCESS_TOKEN_WRONG_DATABASE, NO_ACCESS_TOKENS.
            Unavailable: the cluster has no signing key yet, because it has had no leader.
        """
        holder = self.identify(access_token)
        self.require_scope(holder, database.number)
        expires_ms = self._clock.now_ms() + limits.DATA_TOKEN_LIFE_MS
        if holder.expires_ms:
            expires_ms = min(expires_ms, holder.expires_ms)
        right = Right.READ if holder.right is Right.READ else Right.WRITE
        return self.sign(Claims(holder.token_id, database.uuid, right, expires_ms)), expires_ms

    def can_judge(self, data_token: str) -> bool:
        """Whether the view has the key that a data token claims to be signed with; else the token may be newer.

        A gateway has none until a node has told it.
        """
        if data_token in self._judged:
            return True
        signed = data_tokens.take_apart(data_token)
        return signed is None or signed.key_id in self.view.signing_keys

    def authorize(self, uuid: str, data_token: str, *, write: bool, size_bytes: int) -> Grant:
        """What the bearer of a data token may do with the database of that uuid.

        Args:
            write: whether the request writes.
            size_bytes: of the request, for the token's limit; 0 when it is not known yet (charge).

        Raises:
            Unauthenticated: ACCESS_TOKEN_INVALID, ACCESS_TOKEN_EXPIRED, ACCESS_TOKEN_WRONG_DATABASE.
            Forbidden: TOKEN_READ_ONLY.
            RateLimited: RATE_LIMITED.
            NotFound: the database was deleted.
        """
        judged = self._current(uuid, data_token)
        _, claims, grant, rate = judged
        if claims.expires_ms <= self._clock.now_ms():
            self._judged.pop(data_token, None)
            raise _expired()
        if write and not grant.can_write:
            raise read_only_token()
        if rate is not None:
            rate.take(size_bytes, self._clock.monotonic_ms())
        return grant

    def charge(self, data_token: str, size_bytes: int) -> None:
        """Count the size of a request that authorize let in without knowing it.

        Args:
            data_token: the one that was authorized.
            size_bytes: what came; it may leave a debt, which the next requests wait for.
        """
        judged = self._judged.get(data_token)
        if judged is not None and judged.rate is not None:
            judged.rate.charge(size_bytes)

    def still_grants(self, uuid: str, data_token: str) -> Grant:
        """What authorize granted, judged again for what lasts longer than a request; counted against no limit.

        A data token that has run out meanwhile still holds: it is the proof with which the watch began, and its
        client fetches another for its next request only. The access token behind it is judged as it is now.

        Raises:
            Unauthenticated, NotFound: as authorize.
        """
        judged = self._current(uuid, data_token)
        row = self.view.tokens.get(judged.claims.token_id)
        if row is not None and 0 < row.expires_ms <= self._clock.now_ms():
            raise _expired()
        return judged.grant

    def _current(self, uuid: str, data_token: str) -> _Judged:
        judged = self._judged.get(data_token)
        if judged is None or judged.generation != self.view.generation:
            judged = self._judge(data_token)
        if judged.claims.database_uuid != uuid:
            raise self._elsewhere(uuid)
        return judged

    def follow(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called whenever what was judged may have changed, until the result is called.

        For what lasts longer than a request: a watch judges its token again then.
        """
        return self.view.follow(changed)

    # What gRPC asks besides.

    async def learn(self) -> None:
        """For whoever is about to refuse: the token or the database may be newer than the view. Raises KvError.

        Strangers who come together share one round.
        """
        if self._learning is not None:
            await self._learning.round()

    def identify(self, access_token: str) -> Holder:
        """Whose access token it is. Raises Unauthenticated."""
        if self._static_token and access_tokens.same(access_token, self._static_token):
            return Holder(STATIC_TOKEN_ID, ALL_DATABASES, Right.ADMIN, 0)
        row = self.view.tokens.get(access_tokens.id_of(access_token))
        if row is None or not access_tokens.matches(access_token, row):
            raise self._unknown(access_token)
        holder = Holder(row.token_id, row.database, row.right, row.expires_ms)
        self.require_unexpired(holder)
        return holder

    def identify_signed(self, data_token: str) -> Claims:
        """What a data token says, its signature and expiry verified. Raises Unauthenticated."""
        claims = self._genuine(data_token)
        if claims.expires_ms <= self._clock.now_ms():
            raise _expired()
        return claims

    def require_unexpired(self, holder: Holder) -> None:
        """Raises Unauthenticated: ACCESS_TOKEN_EXPIRED."""
        if 0 < holder.expires_ms <= self._clock.now_ms():
            raise _expired()

    def require_scope(self, holder: Holder, number: int) -> None:
        """Raises Unauthenticated: ACCESS_TOKEN_WRONG_DATABASE."""
        if holder.database not in {ALL_DATABASES, number}:
            raise _wrong_database()

    def rate_of(self, token_id: str) -> RateLimit | None:
        """The limits that a token's requests count against, on this node."""
        row = self.view.tokens.get(token_id)
        if row is None or not (row.requests_per_second or row.bytes_per_second):
            return None
        rate = self._rates.get(token_id)
        if rate is None or rate.limits != (row.requests_per_second, row.bytes_per_second):
            self._rates = {known: kept for known, kept in self._rates.items() if known in self.view.tokens}
            rate = RateLimit(row.requests_per_second, row.bytes_per_second, self._clock.monotonic_ms())
            self._rates[token_id] = rate
        return rate

    def sign(self, claims: Claims) -> str:
        """A data token under the newest key that every node has had time to learn of. Raises Unavailable."""
        return data_tokens.sign(claims, self._signing_key())

    def _signing_key(self) -> SigningKeyRow:
        keys = sorted(self.view.signing_keys.values())
        if not keys:
            raise Unavailable(
                "the cluster has no key to sign with yet: it has had no leader since it was made; see `kvnode status`",
                code="NO_SIGNING_KEY",
            )
        learned_by_ms = self._clock.now_ms() - limits.SIGNING_KEY_ACTIVATION_MS
        return next((key for key in reversed(keys) if key.created_ms <= learned_by_ms), keys[0])

    def _judge(self, data_token: str) -> _Judged:
        known = self._judged.pop(data_token, None)
        claims = known.claims if known is not None else self._genuine(data_token)
        row = self.view.find(claims.database_uuid)
        if row is None:
            raise database_not_found(claims.database_uuid)
        if claims.token_id != STATIC_TOKEN_ID:
            self._require_kept(claims)
        database = database_of(row)
        grant = Grant(claims.token_id, database, claims.right is not Right.READ)
        judged = _Judged(self.view.generation, claims, grant, self.rate_of(claims.token_id))
        if len(self._judged) >= limits.MAX_VERIFIED_TOKENS_COUNT:
            self._judged.clear()
        self._judged[data_token] = judged
        return judged

    def _require_kept(self, claims: Claims) -> TokenRow:
        row = self.view.tokens.get(claims.token_id)
        if row is None:
            raise Unauthenticated("The access token that this data token was issued for has been revoked.")
        return row

    def _genuine(self, data_token: str) -> Claims:
        signed = data_tokens.take_apart(data_token)
        key = None if signed is None else self.view.signing_keys.get(signed.key_id)
        if signed is None or key is None or not data_tokens.is_genuine(signed, key):
            raise Unauthenticated("Invalid access token. It is not one that this cluster has issued for its data path.")
        return signed.claims

    def _unknown(self, access_token: str) -> Unauthenticated:
        if not self._static_token and not self.view.tokens:
            return Unauthenticated(
                "This cluster has no access tokens yet, and nobody gets in without one: create one with "
                "`kvnode token create --database NAME`, or set access_token in the node's configuration.",
                code="NO_ACCESS_TOKENS",
            )
        if not access_token:
            return Unauthenticated("No access token was sent; pass one that `kvnode token create` has shown.")
        return Unauthenticated("Invalid access token. It was never issued here, or has been revoked.")

    def _elsewhere(self, uuid: str) -> NotFound | Unauthenticated:
        return database_not_found(uuid) if self.view.find(uuid) is None else _wrong_database()


def database_of(row: DatabaseRow) -> Database:
    """A database as KV Connect's side names it."""
    return Database(row.number, row.uuid, row.name, DatabaseMode(row.mode.value), row.max_value_bytes)


def read_only_token() -> Forbidden:
    """The refusal of a write under a token that only reads."""
    return Forbidden("This token may read and not write; use one that was created with --right write.")


def _expired() -> Unauthenticated:
    return Unauthenticated(
        "This token has expired; create another with `kvnode token create`.", code="ACCESS_TOKEN_EXPIRED"
    )


def _wrong_database() -> Unauthenticated:
    return Unauthenticated("This token is of another database.", code="ACCESS_TOKEN_WRONG_DATABASE")
