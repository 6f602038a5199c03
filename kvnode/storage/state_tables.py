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
All of these look up the old digests first. An upsert that tells of them, with bytes handed over as bytearrays, takes
0.7 times what the first one does, measured in turns. On the loop is fastest where latency counts, and 256 rows hold
it for less than MAX_LOOP_HOLD_MS. More than half of an overwrite is the 4 KiB page that goes to the write-ahead log;
the digests are about 2.5 us.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

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
_UPDATE_META = """UPDATE meta SET applied_index = ?, applied_term = ?, log_time_ms = ?, epoch = ?, membership = ?,
    digest = ?"""

_COLUMNS = "key, value, encoding, versionstamp, expire_at_ms"
_GET = f"SELECT {_COLUMNS} FROM rows WHERE key = ?"
_SCAN = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_SCAN_REVERSE = f"SELECT {_COLUMNS} FROM rows WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"
_SCAN_KEYS = "SELECT key FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_DUE = """SELECT key, expire_at_ms FROM rows WHERE expire_at_ms > 0 AND expire_at_ms <= ?
    ORDER BY expire_at_ms, key LIMIT ?"""
_NEXT_EXPIRY = "SELECT min(expire_at_ms) FROM rows WHERE expire_at_ms > 0"
# `gone` is told the digest of each row that a statement takes out of the state, and returns NULL. A SELECT of the old
# digests before the write would look each key up a second time: 3 us a row.
_UPSERT = """INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value,
    encoding = excluded.encoding, versionstamp = excluded.versionstamp, expire_at_ms = excluded.expire_at_ms,
    digest = excluded.digest WHERE gone(rows.digest) IS NULL"""
_DELETE = "DELETE FROM rows WHERE key = ? AND gone(digest) IS NULL"
_DIGEST = "SELECT digest FROM rows WHERE key = ?"

# How bytes are handed to SQLite: sqlite3 asks two protocols about every bytes object, 0.4 us each time, and takes a
# bytearray as it is. The four of a row are a third of what writing it takes.
_blob = bytearray

WriteObserver = Callable[[int, bytes, int], None]


class StateMeta(NamedTuple):
    """How far the log is applied, and the facts that go with that index."""

    applied_index: int = 0
    applied_term: int = 0
    log_time_ms: int = 0
    epoch: int = 0
    membership: bytes = b""
    digest: int = 0


def _refuse(*_: object) -> NoReturn:
    raise sqlite3.OperationalError("a failed write has lost what was applied since the last commit")


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
        self.execute = connection.execute
        self.observer: WriteObserver | None = None  # called with (index, key, digest change) for each write
        self._gone: list[bytes] = []  # digests that the statements of this apply have taken out
        connection.create_function("gone", 1, self._gone.append)
        self._is_reading = False
        self._is_open = False  # a transaction with applies that are not committed
        self._has_lost = False  # some of those
        if create:
            self._create()
        self._meta = self.load_meta()

    def _create(self) -> None:
        self.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            self.execute(statement)
        self.execute(_INSERT_META, (STATE_FORMAT,))
        self.execute("COMMIT")

    @property
    def meta(self) -> StateMeta:
        """The meta row as of the last load or apply through this object."""
        return self._meta

    @property
    def is_committed(self) -> bool:
        """Whether the file shows all that was applied."""
        return not self._is_open and not self._has_lost

    def load_meta(self) -> StateMeta:
        """Read the meta row anew: on a connection whose file another one writes, as of this read transaction."""
        found = self.execute(_SELECT_META).fetchone()
        if found is None or found[6] != STATE_FORMAT or len(found[5]) != DIGEST_BYTES:
            what = "has no meta row" if found is None else f"has format {found[6]!r}, and {STATE_FORMAT} is known here"
            raise sqlite3.DatabaseError(f"the state {what}")
        index, term, log_time_ms, epoch, membership, digest, _ = found
        self._meta = StateMeta(index, term, log_time_ms, epoch, membership, int.from_bytes(digest, "little"))
        return self._meta

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One read transaction around many reads: a get costs 2.7 us in it, 5.5 us alone. No apply inside."""
        is_own = not self._is_open
        if is_own:
            self.execute("BEGIN")
        self._is_reading = True
        try:
            yield
        finally:
            self._is_reading = False
            if is_own:
                self.execute("ROLLBACK")

    def get(self, key: bytes) -> Row | None:
        """The row of that key, expired or not."""
        found = self.execute(_GET, (_blob(key),)).fetchone()
        return None if found is None else Row._make(found)

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        """At most `limit` rows with start <= key < end in key order, or from the end; expired ones included."""
        found = self.execute(_SCAN_REVERSE if reverse else _SCAN, (_blob(start), _blob(end), limit))
        return [Row._make(row) for row in found.fetchall()]

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """At most `limit` keys with start <= key < end, in order."""
        return [key for (key,) in self.execute(_SCAN_KEYS, (_blob(start), _blob(end), limit)).fetchall()]

    def due(self, now_ms: int, limit: int) -> list[tuple[bytes, int]]:
        """At most `limit` (key, expire_at_ms) with expire_at_ms <= now_ms, ordered by time, then key."""
        return self.execute(_DUE, (now_ms, limit)).fetchall()

    def next_expiry(self) -> int | None:
        """The earliest expire_at_ms of any row, or None when nothing expires."""
        found: int | None = self.execute(_NEXT_EXPIRY).fetchone()[0]
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
        commit: bool = True,
    ) -> StateMeta:
        """Write rows and meta in one transaction, which those before it may have begun.

        On any error nothing is changed. If that loses applies which were not committed, every later use raises
        sqlite3.OperationalError: nobody is to read an older state than he has seen.

        Args:
            writes: by key, the row to store or None to delete.
            applied_index: of the last log entry in these writes; above the one applied before, or 0 to give an
                empty state its epoch and first membership.
            applied_term: that entry's term.
            log_time_ms: the log's time at that entry.
            epoch: the epoch at that entry.
            membership: the encoded membership, or None to leave it as it is.
            commit: or leave it to `commit`; until then only reads through this object see what was applied.

        Returns:
            The meta row as applied, with the digest of the whole state.
        """
        before = self._meta
        founding = applied_index == 0 and before == StateMeta()  # epoch and first membership of a new state
        rises = applied_index > before.applied_index or founding
        invariant(rises, f"apply of index {applied_index} after {before.applied_index}")
        invariant(not self._is_reading, "apply inside of a read transaction")
        is_first = not self._is_open
        if is_first:
            self.execute("BEGIN IMMEDIATE")  # refused where applies were lost
        try:
            digest = (before.digest + self._write(writes, applied_index)) % DIGEST_MODULUS
            kept = before.membership if membership is None else membership
            self._meta = StateMeta(applied_index, applied_term, log_time_ms, epoch, kept, digest)
            self._is_open = True
            if commit:
                self._commit()
        except BaseException:
            self._meta = before
            self._roll_back(loses_applies=not is_first)
            raise
        return self._meta

    def commit(self) -> None:
        """Commit what was applied, if it is not. On an error all that was not committed is lost, as `apply` has it."""
        if self.is_committed:
            return
        invariant(not self._is_reading, "a commit inside of a read transaction")
        try:
            self._commit()
        except BaseException:
            self._roll_back(loses_applies=True)
            raise

    def _commit(self) -> None:
        *facts, digest = self._meta
        self.execute(_UPDATE_META, (*facts, digest.to_bytes(DIGEST_BYTES, "little")))
        self.execute("COMMIT")
        self._is_open = False

    def _write(self, writes: Mapping[bytes, Row | None], index: int) -> int:
        """Write the rows inside the open transaction; returns the change of the digest, not reduced."""
        stored: list[tuple[object, ...]] = []
        deleted: list[tuple[bytearray]] = []
        added: list[bytes] = []
        for key, row in writes.items():
            if row is None:
                deleted.append((_blob(key),))
                continue
            _, value, encoding, stamp, expire_at_ms = row
            digest = row_digest(row)
            added.append(digest)
            stored.append((_blob(key), _blob(value), encoding, _blob(stamp), expire_at_ms, _blob(digest)))
        if self.observer is not None:
            self._observe(self.observer, index, writes)
        self._gone.clear()
        if stored:
            self.connection.executemany(_UPSERT, stored)
        if deleted:
            self.connection.executemany(_DELETE, deleted)
        return digest_sum(added) - digest_sum(self._gone)

    def _observe(self, observer: WriteObserver, index: int, writes: Mapping[bytes, Row | None]) -> None:
        """Before the rows are written."""
        for key, row in writes.items():
            old = self.execute(_DIGEST, (_blob(key),)).fetchone()
            change = digest_sum([] if row is None else [row_digest(row)]) - digest_sum(old or [])
            observer(index, key, change)

    def _roll_back(self, *, loses_applies: bool) -> None:
        if self.connection.in_transaction:  # SQLite rolls back by itself on some errors, a full disk among them
            self.execute("ROLLBACK")
        self._is_open = False
        if loses_applies:
            self._has_lost = True
            self.execute = _refuse
