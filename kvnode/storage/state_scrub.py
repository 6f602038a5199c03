"""The scrub: every row read again from the file, its digest computed anew, and the sum compared with the meta row's.

Theory of operation. A scrub of a large state takes seconds, and neither may a read transaction last that long nor
may apply wait. So it goes page by page in key order, each page in its own short read transaction, while writes go
on; the sum is then made one of a single state by following the writes. A page read at applied index A covers
start <= key < end. Each write at index i changes the digest of one key by d:
    key < start             the row was summed before the write: add d
    start <= key < end      summed with the write in it if i <= A: add d only if i > A
    end <= key              its page comes later and will show the write: add nothing
When the last page has been summed, the sum is that of the newest state, and must be equal to its meta row's.

A page is about a millisecond of hashing, because a thread that hashes short rows holds the interpreter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from kvnode.base.limits import SCRUB_PAGE_ROWS_COUNT
from kvnode.codec.row import Row
from kvnode.storage.state_connections import Worker, connect_reader
from kvnode.storage.state_digest import DIGEST_MODULUS, row_digest
from kvnode.storage.state_errors import damaged
from kvnode.storage.state_tables import StateMeta, StateTables

_PAGE = """SELECT key, value, encoding, versionstamp, expire_at_ms, digest FROM rows WHERE key > ?
    ORDER BY key LIMIT ?"""
_INDEXED = "SELECT 1 FROM rows INDEXED BY rows_by_expiry WHERE expire_at_ms = ? AND expire_at_ms > 0 AND key = ?"


class ScrubPage(NamedTuple):
    """One page as it was read."""

    applied_index: int
    last_key: bytes | None  # None: no rows are left
    digest: int
    wrong: str | None  # what is wrong with the first bad row


def scrub_page(tables: StateTables, after: bytes) -> ScrubPage:
    """Sum the next rows with key > `after`, inside one read transaction of the caller's."""
    total, last, wrong = 0, None, None
    execute = tables.connection.execute
    for found in execute(_PAGE, (after, SCRUB_PAGE_ROWS_COUNT)).fetchall():
        row, stored = Row._make(found[:5]), found[5]
        digest = row_digest(row)
        if digest != stored:
            wrong = wrong or f"the row of key {row.key.hex()} does not match its digest"
        elif row.expire_at_ms and execute(_INDEXED, (row.expire_at_ms, row.key)).fetchone() is None:
            wrong = wrong or f"the row of key {row.key.hex()} is missing in the index of expiry times"
        total += int.from_bytes(digest, "little")
        last = row.key
    return ScrubPage(tables.meta.applied_index, last, total, wrong)


class Scrub:
    """One pass over a state that goes on changing. Hand `observe` to the tables before the first page."""

    def __init__(self) -> None:
        self._sum = 0
        self.after = b""  # rows have keys of at least one byte
        self._complete = False
        self._in_flight: list[tuple[int, bytes, int]] = []
        self.wrong: str | None = None

    def observe(self, index: int, key: bytes, change: int) -> None:
        """A write at `index` has changed the digest of `key`."""
        if self._complete or key <= self.after:
            self._sum += change
        else:
            self._in_flight.append((index, key, change))

    def add(self, page: ScrubPage) -> bool:
        """Take in a page; returns whether more pages follow."""
        self._sum += page.digest
        self.wrong = self.wrong or page.wrong
        last = page.last_key
        for index, key, change in self._in_flight:
            if (last is None or key <= last) and index > page.applied_index:
                self._sum += change
        self._in_flight.clear()
        self.after = last or self.after
        self._complete = last is None
        return last is not None

    async def run(self, read_page: Callable[[bytes], Awaitable[ScrubPage]], check: Callable[[], None]) -> None:
        """Read every page through `read_page(after)`, calling `check` before each."""
        more = True
        while more and self.wrong is None:
            check()
            more = self.add(await read_page(self.after))

    def verdict(self, digest: int) -> str | None:
        """What is wrong, given the meta row's digest now; None when all is well."""
        if self.wrong is not None:
            return self.wrong
        if self._sum % DIGEST_MODULUS != digest:
            return "its rows do not add up to its digest: rows were lost or are of another time"
        return None


def go_on() -> None:
    """The check that never stops anything."""


async def scrub_file(path: Path, check: Callable[[], None] = go_on) -> StateMeta:
    """Scrub a state file that nobody writes, off the loop.

    Args:
        path: of the file.
        check: called before each page; what it raises ends the scrub.

    Returns:
        Its meta row.

    Raises:
        StateDamaged: the rows do not match.
        sqlite3.Error: SQLite cannot read it, or it is no state.
    """
    worker = await Worker.open(lambda: connect_reader(path, immutable=True))
    try:
        meta = await worker.run(lambda connection: StateTables(connection).meta)
        scrub = Scrub()
        await scrub.run(lambda after: worker.run(lambda connection: scrub_page(StateTables(connection), after)), check)
    finally:
        await worker.close()
    wrong = scrub.verdict(meta.digest)
    if wrong is not None:
        raise damaged(path, wrong)
    return meta
