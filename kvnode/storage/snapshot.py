"""Making a snapshot: a copy of the state at one applied index, while the state goes on changing.

Theory of operation. SQLite's backup API copies page by page. A page that changes behind the copy's cursor is copied
again at once, provided that the change comes through the same connection as the copy (from another connection it
would start over each time). So the copy runs on a thread but reads through the loop's own connection, the only one
that writes. It holds that connection for one step of SNAPSHOT_COPY_PAGES_COUNT pages at a time, finds the state
between two transactions (inside one it is told to come back), and opens no read transaction that outlives a step:
the write-ahead log is reset as usual. The copy is the state as of the end of its last step; its own meta row says
which index that is.

The copy is then scrubbed, hashed and fsynced before anybody may have it. Only the newest is kept.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from kvnode.base.limits import SNAPSHOT_COPY_PAGES_COUNT, SNAPSHOT_COPY_PAUSE_MS
from kvnode.storage.durable_files import sync_directory, sync_file
from kvnode.storage.state_connections import Worker
from kvnode.storage.state_errors import storage_errors
from kvnode.storage.state_scrub import go_on, scrub_file

_UNFINISHED = "unfinished.copy"
_HASH_BLOCK_BYTES = 1_048_576
FILE_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A complete snapshot on disk."""

    path: Path
    snapshot_id: str  # names these very bytes, so that a transfer can be taken up again
    index: int
    term: int
    log_time_ms: int
    epoch: int
    size_bytes: int
    file_digest: bytes  # BLAKE2b of the file, FILE_DIGEST_BYTES
    membership: bytes


def hash_file(path: Path) -> bytes:
    """The file's digest. Blocks; the interpreter is free while it hashes."""
    digest = blake2b(digest_size=FILE_DIGEST_BYTES)
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def remove_snapshots(directory: Path, *, keep: Path | None = None) -> None:
    """Delete what is in the snapshot directory but `keep`. Whoever reads one of them reads on."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path != keep:
            path.unlink()


async def create_snapshot(
    source: sqlite3.Connection,
    directory: Path,
    *,
    newest: Path | None = None,
    check: Callable[[], None] = go_on,
) -> SnapshotFile:
    """Copy the state behind `source` into `directory` and delete the snapshots before it.

    Args:
        source: the connection that writes the state; it may be used on the loop meanwhile.
        directory: where snapshots go; made if it is missing.
        newest: the snapshot to keep until the new one is complete.
        check: called between two steps; what it raises ends the copy, and nothing of it is left.

    Raises:
        StateDamaged: the copy does not match its digest, so the state itself is damaged.
        StorageFailed: the disk is full or failed.
    """
    fresh = directory / _UNFINISHED
    with storage_errors(fresh):
        remove_snapshots(directory, keep=newest)
        try:
            await _copy(source, fresh, check)
            meta = await scrub_file(fresh, check)
            await asyncio.to_thread(sync_file, fresh)
            digest = await asyncio.to_thread(hash_file, fresh)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        name = f"{meta.applied_term}-{meta.applied_index}-{digest[:8].hex()}"
        path = directory / f"{name}.db"
        os.replace(fresh, path)
        sync_directory(directory)
        remove_snapshots(directory, keep=path)
        size_bytes = path.stat().st_size
    return SnapshotFile(
        path=path,
        snapshot_id=name,
        index=meta.applied_index,
        term=meta.applied_term,
        log_time_ms=meta.log_time_ms,
        epoch=meta.epoch,
        size_bytes=size_bytes,
        file_digest=digest,
        membership=meta.membership,
    )


async def _copy(source: sqlite3.Connection, path: Path, check: Callable[[], None]) -> None:
    abandoned = False  # by a cancelled caller; the thread sees it between two steps

    def pause(_status: int, _remaining: int, _total: int) -> None:
        check()
        if abandoned:
            raise asyncio.CancelledError
        time.sleep(SNAPSHOT_COPY_PAUSE_MS / 1_000)

    def copy(target: sqlite3.Connection) -> None:
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")  # the whole file is fsynced when it is complete
        source.backup(target, pages=SNAPSHOT_COPY_PAGES_COUNT, progress=pause, sleep=SNAPSHOT_COPY_PAUSE_MS / 1_000)

    worker = await Worker.open(lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False))
    try:
        await worker.run(copy)
    finally:
        abandoned = True
        await worker.close()
