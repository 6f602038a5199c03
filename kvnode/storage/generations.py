"""Which file is the state: `state-<n>.db`, named by `CURRENT`.

Theory of operation. A snapshot never replaces the state's file in place: SQLite would play a -wal file left by the
old database over the new one. It becomes generation n + 1, with a name that was never used; then CURRENT is switched
(write, fsync, rename, fsync of the directory), which is the one instant at which the state changes; then the old
generation goes. A crash before the switch leaves the old state and a stray new file, after it the new state
and a stray old file; opening removes what CURRENT does not name.

CURRENT carries a checksum of its own. If it is missing while a state with applied entries is there, somebody removed
it: starting empty would forget acknowledged writes, so that is refused.
"""

from __future__ import annotations

import os
import re
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

from kvnode.storage.durable_files import replace_file, sync_directory, sync_file
from kvnode.storage.state_connections import PAGE_BYTES, connect_reader
from kvnode.storage.state_errors import damaged
from kvnode.storage.state_tables import StateMeta, StateTables

CURRENT = "CURRENT"
_FILE = re.compile(r"state-(\d+)\.(?:db(?:-wal|-shm|-journal)?|mark)")


class Generations:
    """The state directory's generations. Blocking; raises OSError, and StateDamaged where it says so.

    Args:
        directory: of the state; made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, number: int) -> Path:
        """The database file of a generation."""
        return self.directory / f"state-{number}.db"

    def mark_path(self, number: int) -> Path:
        """The durable mark's file of a generation."""
        return self.directory / f"state-{number}.mark"

    def current(self) -> int:
        """The number that CURRENT names, 0 in a directory without a state.

        Raises:
            StateDamaged: CURRENT is damaged, or missing beside a state, or names a file that is not there.
        """
        name = self.directory / CURRENT
        try:
            text = name.read_text("ascii", "replace")
        except FileNotFoundError:
            self._refuse_orphans()
            return 0
        number, _, checksum = text.strip().partition(" ")
        if not number.isdigit() or checksum != f"{zlib.crc32(number.encode()):08x}":
            raise damaged(name, f"its content {text[:40]!r} does not match its checksum")
        if not self.path(int(number)).exists():
            raise damaged(name, f"it names {self.path(int(number)).name}, which is missing")
        return int(number)

    def switch(self, number: int) -> None:
        """Make `number` the state, durably: the instant of an install."""
        text = f"{number} {zlib.crc32(str(number).encode()):08x}\n"
        replace_file(self.directory / CURRENT, text.encode())

    def remove_others(self, keep: int) -> None:
        """Delete the files of every generation but `keep` (0: of all), and an unfinished CURRENT."""
        for path in sorted(self.directory.iterdir()):
            match = _FILE.fullmatch(path.name)
            if (match and int(match[1]) != keep) or path.name == f"{CURRENT}.new":
                path.unlink()
        sync_directory(self.directory)

    def adopt(self, path: Path, number: int) -> None:
        """Move a complete, fsynced database on the same file system to generation `number`, not yet current."""
        for name in (self.path(number), self.mark_path(number)):
            for leftover in (name, *(name.with_name(name.name + suffix) for suffix in ("-wal", "-shm", "-journal"))):
                leftover.unlink(missing_ok=True)
        os.replace(path, self.path(number))
        sync_directory(self.directory)

    def _refuse_orphans(self) -> None:
        """Without CURRENT, only the empty state of a first start that was cut short may be here."""
        for path in sorted(self.directory.glob("state-*.db")):
            if path != self.path(1) or not _is_empty_state(path):
                raise damaged(self.directory, f"{CURRENT} is missing beside {path.name}")


def create_empty_state(path: Path) -> None:
    """Make a database with the tables of an empty state, complete and fsynced. Raises sqlite3.Error, OSError."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        StateTables(connection, create=True)
    finally:
        connection.close()
    sync_file(path)


def _is_empty_state(path: Path) -> bool:
    try:
        with closing(connect_reader(path)) as connection:
            return StateTables(connection).meta == StateMeta()
    except sqlite3.Error:
        return False
