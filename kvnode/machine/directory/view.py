"""The directory as one picture, built from its rows.

Theory of operation. Every change to the directory writes its version row besides, and checks that the row still has
the versionstamp that the change was judged on. So two changes never pass each other: whoever comes second finds its
check failed, looks again, and judges anew; that a name is unique or a number unused needs no rows of its own. And who
follows the directory watches that one key: a run of the log that does not write it has not changed the directory, which
makes following it free for ordinary transactions.

The default database exists without a row, so that it is there in a cluster that is older than its directory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from kvnode.base import limits
from kvnode.codec.row import Row
from kvnode.machine.directory.names import DEFAULT_NAME, default_uuid
from kvnode.machine.directory.rows import (
    DIRECTORY_PREFIX,
    VERSION_KEY,
    DatabaseMode,
    DatabaseRow,
    DirectoryRow,
    PurgeRow,
    SigningKeyRow,
    TokenRow,
    UnknownRow,
    VersionRow,
    decode,
)
from kvnode.machine.keyspace import DEFAULT_DATABASE

_log = logging.getLogger(__name__)


class DirectoryView:
    """Databases, tokens and signing keys at one applied state.

    Attributes:
        generation: rises with every change; who caches what it derived from the view compares it.
        version: versionstamp of the version row; empty while there is none.
        next_database: the number that the next database gets.
        databases, tokens, signing_keys, purges: the rows, by number, token id, key id and number.

    Args:
        cluster_id: the uuid of the default database follows from it; a gateway sets it with the first rows, and has
            no database until then.
    """

    def __init__(self, cluster_id: str = "") -> None:
        self.generation = 0
        self._followers: list[Callable[[], None]] = []
        self._cluster_id = cluster_id
        self._clear()

    def load(self, rows: Iterable[Row], *, cluster_id: str = "") -> None:
        """Forget everything and take these rows, all that there are."""
        self._cluster_id = cluster_id or self._cluster_id
        self._clear()
        for row in rows:
            self._put(row.key, row)
        self._changed()

    def update(self, changes: Mapping[bytes, Row | None]) -> None:
        """Take changes, by full key; None = the row is gone. Keys that are not the directory's are passed over."""
        for key, row in changes.items():
            if key.startswith(DIRECTORY_PREFIX):
                self._put(key, row)
        self._changed()

    def follow(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called after every change, until the result is called."""
        self._followers.append(changed)
        return lambda: self._followers.remove(changed)

    def find(self, name_or_uuid: str) -> DatabaseRow | None:
        """The database of that name or uuid; "" = the default database. None: there is none, or none is known yet."""
        if not name_or_uuid:
            return self.databases.get(DEFAULT_DATABASE)
        number = self._by_name.get(name_or_uuid) or self._by_uuid.get(name_or_uuid)
        return None if number is None else self.databases[number]

    def purge_of(self, name_or_uuid: str) -> PurgeRow | None:
        """The deleted database of that name or uuid, while its rows are being removed."""
        return next((p for p in self.purges.values() if name_or_uuid in {p.name, p.uuid}), None)

    def tokens_of(self, number: int) -> list[TokenRow]:
        """The tokens that are scoped to a database."""
        return [token for token in self.tokens.values() if token.database == number]

    def max_value_bytes(self, number: int) -> int:
        """The largest value that a database takes."""
        database = self.databases.get(number)
        return limits.MAX_VALUE_BYTES if database is None else database.max_value_bytes

    def _clear(self) -> None:
        self.version = b""
        self.next_database = DEFAULT_DATABASE + 1
        self.databases: dict[int, DatabaseRow] = {}
        self.tokens: dict[str, TokenRow] = {}
        self.signing_keys: dict[int, SigningKeyRow] = {}
        self.purges: dict[int, PurgeRow] = {}
        self._rows: dict[bytes, DirectoryRow] = {}
        self._index()

    def _put(self, key: bytes, row: Row | None) -> None:
        old = self._rows.pop(key, None)
        if old is not None:
            self._forget(old)
        if row is None:
            if key == VERSION_KEY:
                self.version = b""
            return
        try:
            decoded = decode(key, row.value)
        except UnknownRow as error:
            _log.error("the directory holds what this version of kvnode does not understand, upgrade it: %s", error)
            return
        self._rows[key] = decoded
        self._remember(decoded, row.versionstamp)

    def _remember(self, row: DirectoryRow, stamp: bytes) -> None:
        if isinstance(row, DatabaseRow):
            self.databases[row.number] = row
        elif isinstance(row, TokenRow):
            self.tokens[row.token_id] = row
        elif isinstance(row, SigningKeyRow):
            self.signing_keys[row.key_id] = row
        elif isinstance(row, PurgeRow):
            self.purges[row.number] = row
        elif isinstance(row, VersionRow):
            self.version, self.next_database = stamp, row.next_database

    def _forget(self, row: DirectoryRow) -> None:
        if isinstance(row, DatabaseRow):
            del self.databases[row.number]
        elif isinstance(row, TokenRow):
            del self.tokens[row.token_id]
        elif isinstance(row, SigningKeyRow):
            del self.signing_keys[row.key_id]
        elif isinstance(row, PurgeRow):
            del self.purges[row.number]

    def _changed(self) -> None:
        self._index()
        for changed in list(self._followers):
            changed()

    def _index(self) -> None:
        self.generation += 1
        if self._cluster_id:  # or it would be a database of no cluster, which no node knows
            uuid = default_uuid(self._cluster_id)
            self.databases.setdefault(
                DEFAULT_DATABASE,
                DatabaseRow(DEFAULT_DATABASE, uuid, DEFAULT_NAME, DatabaseMode.ENABLED, limits.MAX_VALUE_BYTES, 0),
            )
        self._by_name = {row.name: row.number for row in self.databases.values()}
        self._by_uuid = {row.uuid: row.number for row in self.databases.values()}
