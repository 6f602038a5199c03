"""The state as SQL on one connection: ordered rows, and one row that says how far the log is applied.

Theory of operation. `rows` is an index-organized table ordered by the key's bytes; keys are opaque here. Each row
carries its digest, so that an overwrite can take the old one out of the sum without reading the old value. `meta`
has one row. It is written in the same transaction as the rows, so that after any crash the applied index and the
rows agree; nothing else needs to be remembered.

This class knows no files, threads or checkpoints: it runs on a connection to a file as on one in memory, which
is how the simulator runs the production SQL. Errors are sqlite3's own; what owns the connection names the file.

How a batch is written was chosen by bench/state_apply.py (256-byte values, 50,000 rows, digest included; microseconds
a row at batches of 1 / 16 / 64 / 256; single runs, +-10 %):
                                            overwrites of random keys    appended keys
    on the loop, executemany of an upsert   39 / 15 / 14 / 14            34 / 9 / 6.5 / 5.7
    on the loop, executemany of REPLACE     39 / 16 / 15 / 14            34 / 9 / 6.5 / 5.7
    on the loop, one INSERT of many VALUES  39 / 16 / 14 / 15            35 / 8 / 5.8 / 5.0  (a statement for each size)
    on the loop, a SELECT for each digest   38 / 17 / 16 / 15            33 / 10 / 7.9 / 7.2
    through aiosqlite, one hop a batch      76 / 19 / 15 / 14            69 / 12 / 7.2 / 6.1
    through aiosqlite, three hops a batch   117 / 21 / 17 / 15           112 / 14 / 7.9 / 5.9
On the loop is fastest where latency counts, and 256 rows hold it for less than MAX_LOOP_HOLD_MS. More than half of an
overwrite is the 4 KiB page that goes to the write-ahead log; the digests are about 2.5 us.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from kvnode.base.invariant import invariant
from kvnode.codec.row import Row
from kvnode.storage.state_digest import DIGEST_BYTES, DIGEST_MODULUS, digest_sum, row_digest

STATE_FORMAT = 1

SCHEMA = (
    """CREATE TABLE rows (
        key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL, encoding INTEGER NOT NULL, versionstamp BLOB NOT NULL,
        expire_at_ms INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX rows_by_expiry ON rows (expire_at_ms) WHERE expire_at_ms > 0",
    """CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, applied_index INTEGER NOT NULL,
        applied_term INTEGER NOT NULL, log_time_ms INTEGER NOT NULL, epoch INTEGER NOT NULL, digest BLOB NOT NULL,
        membership BLOB NOT NULL)""",
)
_INSERT_META = "INSERT INTO meta VALUES (1, ?, 0, 0, 0, 0, zeroblob(16), x'')"
_SELECT_META = "SELECT applied_index, applied_term, log_time_ms, epoch, membership, digest, format FROM meta"
_UPDATE_META = """UPDATE meta SET applied_index = ?, applied_term = ?, log_time_ms = ?, epoch = ?, digest = ?,
    membership = coalesce(?, membership)"""

_COLUMNS = "key, value, encoding, versionstamp, expire_at_ms"
_GET = f"SELECT {_COLUMNS} FROM rows WHERE key = ?"
_SCAN = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_SCAN_REVERSE = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"
_SCAN_KEYS = "SELECT key FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_DUE = """SELECT key, expire_at_ms FROM rows WHERE expire_at_ms > 0 AND expire_at_ms <= ?
    ORDER BY expire_at_ms, key LIMIT ?"""
_NEXT_EXPIRY = "SELECT min(expire_at_ms) FROM rows WHERE expire_at_ms > 0"
_UPSERT = """INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value,
    encoding = excluded.encoding, versionstamp = excluded.versionstamp, expire_at_ms = excluded.expire_at_ms,
    digest = excluded.digest"""
_DELETE = "DELETE FROM rows WHERE key = ?"

# A fixed set of chunk sizes, so that the statement cache holds every statement whatever the batches are.
_LOOKUPS = tuple(
    (size, f"SELECT key, digest FROM rows WHERE key IN ({', '.join('?' * size)})") for size in (256, 64, 16, 4, 1)
)

WriteObserver = Callable[[int, bytes, int], None]


class StateMeta(NamedTuple):
    """How far the log is applied, and the facts that go with that index."""

    applied_index: int = 0
    applied_term: int = 0
    log_time_ms: int = 0
    epoch: int = 0
    membership: bytes = b""
    digest: int = 0


class StateTables:
    """The tables on one open connection (isolation_level None), which stays its caller's to close.

    Args:
        connection: where the tables are, or with `create` will be.
        create: make the tables of an empty state. Raises sqlite3.OperationalError if they exist.

    Raises:
        sqlite3.DatabaseError: this is no state, or one of a format that this version does not know.
    """

    def __init__(self, connection: sqlite3.Connection, *, create: bool = False) -> None:
        self.connection = connection
        self._execute = connection.execute
        self.observer: WriteObserver | None = None  # called with (index, key, digest change) for each write
        if create:
            self._create()
        self._meta = self.load_meta()

    def _create(self) -> None:
        self._execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            self._execute(statement)
        self._execute(_INSERT_META, (STATE_FORMAT,))
        self._execute("COMMIT")

    @property
    def meta(self) -> StateMeta:
        """The meta row as of the last load or apply through this object."""
        return self._meta

    def load_meta(self) -> StateMeta:
        """Read the meta row anew: on a connection whose file another one writes, as of this read transaction."""
        found = self._execute(_SELECT_META).fetchone()
        if found is None or found[6] != STATE_FORMAT or len(found[5]) != DIGEST_BYTES:
            what = "has no meta row" if found is None else f"has format {found[6]!r}, and {STATE_FORMAT} is known here"
            raise sqlite3.DatabaseError(f"the state {what}")
        index, term, log_time_ms, epoch, membership, digest, _ = found
        self._meta = StateMeta(index, term, log_time_ms, epoch, membership, int.from_bytes(digest, "little"))
        return self._meta

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One read transaction around many reads: a get costs 2.7 us in it, 5.5 us alone. No apply inside."""
        self._execute("BEGIN")
        try:
            yield
        finally:
            self._execute("ROLLBACK")

    def get(self, key: bytes) -> Row | None:
        """The row of that key, expired or not."""
        found = self._execute(_GET, (key,)).fetchone()
        return None if found is None else Row._make(found)

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        """At most `limit` rows with start <= key < end in key order, or from the end; expired ones included."""
        found = self._execute(_SCAN_REVERSE if reverse else _SCAN, (start, end, limit))
        return [Row._make(row) for row in found.fetchall()]

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """At most `limit` keys with start <= key < end, in order."""
        return [key for (key,) in self._execute(_SCAN_KEYS, (start, end, limit)).fetchall()]

    def due(self, now_ms: int, limit: int) -> list[tuple[bytes, int]]:
        """At most `limit` (key, expire_at_ms) with expire_at_ms <= now_ms, ordered by time, then key."""
        return self._execute(_DUE, (now_ms, limit)).fetchall()

    def next_expiry(self) -> int | None:
        """The earliest expire_at_ms of any row, or None when nothing expires."""
        found: int | None = self._execute(_NEXT_EXPIRY).fetchone()[0]
        return found

    def apply(
        self,
        writes: Mapping[bytes, Row | None],
        *,
        applied_index: int,
        applied_term: int,
        log_time_ms: int,
        epoch: int,
        membership: bytes | None = None,
    ) -> StateMeta:
        """Write rows and meta in one transaction; on any error nothing is changed.

        Args:
            writes: by key, the row to store or None to delete.
            applied_index: of the last log entry in these writes; above the one applied before, or 0 to give an
                empty state its epoch and first membership.
            applied_term: that entry's term.
            log_time_ms: the log's time at that entry.
            epoch: the epoch at that entry.
            membership: the encoded membership, or None to leave it as it is.

        Returns:
            The meta row as committed, with the digest of the whole state.
        """
        before = self._meta
        founding = applied_index == 0 and before == StateMeta()  # epoch and first membership of a new state
        rises = applied_index > before.applied_index or founding
        invariant(rises, f"apply of index {applied_index} after {before.applied_index}")
        invariant(not self.connection.in_transaction, "apply inside of a read transaction")
        execute = self._execute
        execute("BEGIN IMMEDIATE")
        try:
            digest = (before.digest + self._write(writes, applied_index)) % DIGEST_MODULUS
            stored = digest.to_bytes(DIGEST_BYTES, "little")
            execute(_UPDATE_META, (applied_index, applied_term, log_time_ms, epoch, stored, membership))
            execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        kept = before.membership if membership is None else membership
        self._meta = StateMeta(applied_index, applied_term, log_time_ms, epoch, kept, digest)
        return self._meta

    def _write(self, writes: Mapping[bytes, Row | None], index: int) -> int:
        """Write the rows inside the open transaction; returns the change of the digest, not reduced."""
        stored: list[tuple[object, ...]] = []
        deleted: list[bytes] = []
        for key, row in writes.items():
            if row is None:
                deleted.append(key)
            else:
                stored.append((*row, row_digest(row)))
        old = list(self._digests(list(writes)))
        if stored:
            self.connection.executemany(_UPSERT, stored)
        if deleted:
            # What a run both made and deleted was never here: every message that is claimed as it arrives, for one.
            there = {key for key, _ in old}
            self.connection.executemany(_DELETE, [(key,) for key in deleted if key in there])
        if self.observer is not None:
            self._observe(index, stored, old)
        new = digest_sum([row[5] for row in stored])  # type: ignore[misc]
        return new - digest_sum([digest for _, digest in old])

    def _digests(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """(key, stored digest) of those keys that exist."""
        at, left = 0, len(keys)
        for size, lookup in _LOOKUPS:
            while left >= size:
                yield from self._execute(lookup, keys[at : at + size]).fetchall()
                at, left = at + size, left - size

    def _observe(self, index: int, stored: Sequence[tuple[object, ...]], old: Sequence[tuple[bytes, bytes]]) -> None:
        invariant(self.observer is not None, "an observer is called only when there is one")
        for key, digest in old:
            self.observer(index, key, -int.from_bytes(digest, "little"))  # type: ignore[misc]
        for row in stored:
            self.observer(index, row[0], int.from_bytes(row[5], "little"))  # type: ignore[arg-type,misc]

    def _roll_back(self) -> None:
        if self.connection.in_transaction:  # SQLite rolls back by itself on some errors, a full disk among them
            self._execute("ROLLBACK")
