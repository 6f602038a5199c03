"""SQLite's errors in the product's terms: what is broken, and what to do about it."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvnode.base.errors import StateDamaged, StorageFailed

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_REBUILD = "rebuild this node from its peers: empty its data directory, start it, and `kvnode member replace` it"

_PERMIT = "let the user that this node runs as write there"
_LOOK = "look at the disk and the system's log"


def storage_error(error: sqlite3.Error | OSError, path: Path) -> StorageFailed:
    """The error to raise for what SQLite or the operating system said about the file at `path`."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _disk_full(error, path)
        remedy = _PERMIT if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else _LOOK
        return StorageFailed(f"{error.filename or path}: {error.strerror or error}; {remedy}, then restart this node")
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # Code 0 comes from the binding. The tables are made before the file is named: if one is missing, it was lost.
    said = str(error)
    if primary in _DAMAGED or (primary == 0 and "malformed" in said) or said.startswith("no such table"):
        return StateDamaged(f"{path} cannot be read as a state ({error}); {_REBUILD}")
    if primary == sqlite3.SQLITE_FULL:
        return _disk_full(error, path)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageFailed(f"{path} is held by another process ({error}); stop it first")
    name = getattr(error, "sqlite_errorname", "no code")
    return StorageFailed(f"{path}: {error} ({name}); {_LOOK}, then restart this node")


def _disk_full(error: sqlite3.Error | OSError, path: Path) -> StorageFailed:
    return StorageFailed(
        f"the disk of {path} is full ({error}); free some space, then restart this node", code="DISK_FULL"
    )


def damaged(path: Path, what: str) -> StateDamaged:
    """A StateDamaged that names the file, what is wrong with it, and the remedy."""
    return StateDamaged(f"{path}: {what}; {_REBUILD}")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's and the operating system's errors about `path` into StorageFailed or StateDamaged."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise storage_error(error, path) from error
