"""Where imported rows come from: a file of lines, standard input, a SQLite file; each can go on where it stopped."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from kvnode.base.errors import InvalidRequest

if TYPE_CHECKING:
    from kvnode.client.transfer.deno_sqlite import DenoSqlite
    from kvnode.client.transfer.lines import LinePosition
    from kvnode.client.transfer.rows import TransferRow


class Source(Protocol):
    """What import reads.

    Attributes:
        unit: of what `total` and `reached` count.
        total: of all; None = not known.
        left_out: what the source holds and import does not take, by name.
    """

    unit: str
    total: int | None
    left_out: dict[str, int]

    def open(self, saved: Any = None) -> None:
        """Begin, or go on behind a position as `saved` gave it. Raises InvalidRequest."""

    def rows(self) -> Iterator[tuple[TransferRow, Any]]:
        """The rows, each with the position behind it. Raises InvalidRequest."""

    def reached(self, position: Any) -> int:
        """How much of `total` lies before a position."""

    def saved(self, position: Any) -> Any:
        """The position as JSON."""

    def identity(self, saved: Any) -> Any:
        """As JSON: what changes when what lies before a position is no longer what was read.

        Args:
            saved: the position, as `saved` gave it.

        Raises:
            InvalidRequest: FILE_NOT_READ.
        """

    def close(self) -> None:
        """Give its resources back."""


_COMPARED_BYTES = 65_536  # of a file before a position: whatever moves the lines changes them
_SQLITE_MAGIC = b"SQLite format 3\0"


class LinesSource:
    """A file of `kvnode export`; - = standard input."""

    def __init__(self, path: Path) -> None:
        from kvnode.client.transfer.lines import BEGINNING

        self.unit = "bytes"
        self.total: int | None = None
        self.left_out: dict[str, int] = {}
        self._path = path
        self._start: LinePosition = BEGINNING
        self._file: BinaryIO = sys.stdin.buffer

    def open(self, saved: Any = None) -> None:
        """See Source."""
        from kvnode.client.transfer.lines import LinePosition

        if str(self._path) == "-":
            return
        try:
            self._file = self._path.open("rb")
            status = os.fstat(self._file.fileno())
            if stat.S_ISREG(status.st_mode):
                self._refuse_sqlite()
            self.total = status.st_size if stat.S_ISREG(status.st_mode) else None
            if saved is not None:
                self._start = LinePosition(*map(int, saved))
                self._file.seek(self._start.offset_bytes)
        except OSError as error:
            raise InvalidRequest("FILE_NOT_READ", f"cannot read {self._path}: {error.strerror}") from None

    def _refuse_sqlite(self) -> None:
        if self._file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC:
            raise InvalidRequest("FILE_NOT_READ", f"{self._path} is a SQLite file: import it with --sqlite.")
        self._file.seek(0)

    def rows(self) -> Iterator[tuple[TransferRow, LinePosition]]:
        """See Source."""
        from kvnode.client.transfer.lines import read_rows

        try:
            yield from read_rows(self._file, self._start)
        except OSError as error:
            raise InvalidRequest("FILE_NOT_READ", f"cannot read {self._path}: {error.strerror}") from None

    def reached(self, position: LinePosition) -> int:
        """See Source."""
        return position.offset_bytes

    def saved(self, position: LinePosition) -> list[int]:
        """See Source."""
        return list(position)

    def identity(self, saved: Any) -> Any:
        """See Source. What lies behind the position may change: a line at fault is corrected, a torn file completed."""
        if self.total is None or saved is None:
            return None
        end = int(saved[0])
        start = max(0, end - _COMPARED_BYTES)
        try:
            return hashlib.sha256(os.pread(self._file.fileno(), end - start, start)).hexdigest()
        except OSError as error:
            raise InvalidRequest("FILE_NOT_READ", f"cannot read {self._path}: {error.strerror}") from None

    def close(self) -> None:
        """See Source."""
        if self._file is not sys.stdin.buffer:
            self._file.close()


class SqliteSource:
    """The SQLite file of a Deno KV or of denokv."""

    def __init__(self, path: Path) -> None:
        self.unit = "rows"
        self.total: int | None = None
        self.left_out: dict[str, int] = {}
        self._path = path
        self._after = b""
        self._read_count = 0
        self._database: DenoSqlite | None = None

    def open(self, saved: Any = None) -> None:
        """See Source."""
        from kvnode.client.transfer.deno_sqlite import DenoSqlite

        self._database = database = DenoSqlite(self._path)
        self._after = bytes.fromhex(saved) if saved else b""
        self.total = database.rows_count()
        self._read_count = self.total - database.rows_count(self._after)
        self.left_out = {"queued": database.queued_count()}

    def rows(self) -> Iterator[tuple[TransferRow, tuple[bytes, int]]]:
        """See Source."""
        assert self._database is not None, "open comes first"
        for row, key in self._database.rows(self._after):
            self._read_count += 1
            yield row, (key, self._read_count)

    def reached(self, position: tuple[bytes, int]) -> int:
        """See Source."""
        return position[1]

    def saved(self, position: tuple[bytes, int]) -> str:
        """See Source."""
        return position[0].hex()

    def identity(self, saved: Any) -> Any:
        """See Source. A file that is in use may grow, and rows that come in behind the position are not missed."""
        return "sqlite"

    def close(self) -> None:
        """See Source."""
        if self._database is not None:
            self._database.__exit__(None, None, None)
