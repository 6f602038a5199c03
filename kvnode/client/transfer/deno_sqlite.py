"""The SQLite file of a Deno KV (Deno.openKv with a path) or of the denokv server, read and never written.

The schema is that of denokv's SQLite backend (denoland/denokv, sqlite/backend.rs, migrations 1 to 3): table kv with
columns k, v, v_encoding, version and, since the third, expiration_ms (-1 = never). Keys and values are the bytes that
the protocol carries. Files are in WAL mode: the newest commits may stand in FILE-wal alone, so SQLite reads both, also
while a Deno has the file open. All rows are read in one transaction, so they are one state.

Where there is no FILE-wal, no program has the file open and it holds everything itself. It is then opened as immutable,
so that nothing is made beside it, and looked at again when all is read: should a program have opened it meanwhile, the
rows may be torn, and that is an error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from kvnode.base.errors import InvalidRequest
from kvnode.client.transfer.rows import ENCODING_NAMES, TransferRow, bad_row
from kvnode.codec.json_keys import key_to_json
from kvnode.codec.keys import decode_key

_MAGIC = b"SQLite format 3\x00"
_COLUMNS = frozenset(("k", "v", "v_encoding", "version"))
_QUEUES = ("queue", "queue_running")


class DenoSqlite:
    """One file, open for reading. Use it as a context manager.

    Raises:
        InvalidRequest: NOT_A_DENO_KV_FILE, SQLITE_FILE_UNREADABLE.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._check_magic()
        self._seen = self._look()
        self._is_immutable = not self._seen[2]
        self._connection = self._open()
        try:
            self._connection.execute("BEGIN")
            self._has_expiry = self._check_schema()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> DenoSqlite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def rows_count(self, after: bytes = b"") -> int:
        """How many rows have a key above `after`."""
        return self._number("SELECT count(*) FROM kv WHERE k > ?", after)

    def queued_count(self) -> int:
        """How many messages wait in the file's queues; they are not rows and are not read."""
        tables = self._tables()
        return sum(self._number(f"SELECT count(*) FROM {name}") for name in _QUEUES if name in tables)

    def rows(self, after: bytes = b"") -> Iterator[tuple[TransferRow, bytes]]:
        """The rows with a key above `after`, in order, each with its key to go on after.

        Raises:
            InvalidRequest: BAD_IMPORT_LINE, a row that is none of Deno KV's; SQLITE_FILE_UNREADABLE.
        """
        expiry = "expiration_ms" if self._has_expiry else "-1"
        key = after
        try:
            found = self._connection.execute(
                f"SELECT k, v, v_encoding, {expiry} FROM kv WHERE k > ? ORDER BY k", (after,)
            )
            for key, data, encoding, expire_at_ms in found:
                yield _row(key, data, encoding, expire_at_ms), key
            self._check_unchanged()
        except sqlite3.DatabaseError as error:
            raise self._unreadable(f"{error}, behind {_place(key) if key else 'its beginning'}") from error

    def _check_magic(self) -> None:
        try:
            with self._path.open("rb") as file:
                magic = file.read(len(_MAGIC))
        except OSError as error:
            raise InvalidRequest("SQLITE_FILE_UNREADABLE", f"cannot read {self._path}: {error.strerror}") from None
        if magic != _MAGIC:
            raise self._no_deno_kv("it is no SQLite database")

    def _open(self) -> sqlite3.Connection:
        name = f"file:{quote(str(self._path.resolve()))}?mode=ro"
        try:
            return self._connected(f"{name}&immutable=1" if self._is_immutable else name)
        except sqlite3.DatabaseError as error:
            remedy = "" if self._is_immutable else f". It comes with {self._wal.name}: copy both into one folder"
            raise self._unreadable(f"{error}{remedy}") from error

    def _look(self) -> tuple[int, int, bool]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, self._wal.exists() and self._wal.stat().st_size > 0

    def _check_unchanged(self) -> None:
        if self._is_immutable and self._look() != self._seen:
            raise self._unreadable("another program opened it meanwhile. Stop it, or import while it is running")

    def _connected(self, name: str) -> sqlite3.Connection:
        connection = sqlite3.connect(name, uri=True, isolation_level=None)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_schema(self) -> bool:
        if "kv" not in self._tables():
            raise self._no_deno_kv("it has no table kv")
        columns = {str(row[1]) for row in self._connection.execute("PRAGMA table_info(kv)")}
        if not columns >= _COLUMNS:
            raise self._no_deno_kv(f"its table kv lacks {', '.join(sorted(_COLUMNS - columns))}")
        return "expiration_ms" in columns

    def _tables(self) -> frozenset[str]:
        found = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return frozenset(str(name) for (name,) in found)

    def _number(self, query: str, *arguments: object) -> int:
        try:
            return int(self._connection.execute(query, arguments).fetchone()[0])
        except sqlite3.DatabaseError as error:
            raise self._unreadable(str(error)) from error

    def _unreadable(self, why: str) -> InvalidRequest:
        return InvalidRequest("SQLITE_FILE_UNREADABLE", f"cannot read {self._path}: {why}")

    def _no_deno_kv(self, why: str) -> InvalidRequest:
        return InvalidRequest(
            "NOT_A_DENO_KV_FILE",
            f"{self._path} is not the database of a Deno KV or of denokv: {why}. Deno.openKv(path) and denokv's "
            "--sqlite-path name the file.",
        )


def _row(key: object, data: object, encoding: object, expire_at_ms: object) -> TransferRow:
    if not isinstance(key, bytes) or not key or not isinstance(data, bytes) or not isinstance(expire_at_ms, int):
        raise bad_row(f"the row of {key!r}", "its key, value or expiry is not of the type that Deno KV writes")
    if not isinstance(encoding, int) or encoding not in ENCODING_NAMES:
        raise bad_row(_place(key), f"its value has the encoding {encoding}, which is not known")
    # 0 is a time, long over; ours would be "never".
    return TransferRow(_place(key), key, data, encoding, 0 if expire_at_ms < 0 else max(1, expire_at_ms))


def _place(key: object) -> str:
    if not isinstance(key, bytes):
        return f"the row of {key!r}"
    try:
        return f"the row of {key_to_json(decode_key(key))}"
    except InvalidRequest:
        return f"the row of {key.hex()}"
