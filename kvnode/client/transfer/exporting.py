"""Export: a range of the database as lines, page by page.

What a file is. Every page is one state, read strongly, and no page is older than the one before. So each row was in
the database at some time between the first page and the last; a key that nobody wrote, deleted or let expire meanwhile
is there exactly as it is. A row that was written after the first page's state is marked `after_start`. A row that was
deleted behind the reader's back is in the file, one that was written behind its back is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from kvnode.client.kv import Kv
from kvnode.client.listing import cursor_after
from kvnode.client.transfer.rows import row_to_line
from kvnode.codec.keys import AnyKey, list_range


class ExportedPage(NamedTuple):
    """Rows that were read together.

    Attributes:
        lines: of the rows, each with its newline.
        rows_count: how many.
        after_start_count: how many of them were written after the export began.
        start_versionstamp: of the state that the export began with.
    """

    lines: bytes
    rows_count: int
    after_start_count: int
    start_versionstamp: str


async def export_pages(
    kv: Kv,
    prefix: AnyKey = (),
    *,
    after: bytes | None = None,
    start_versionstamp: str = "",
    page_count: int,
    timeout_ms: int | None = None,
) -> AsyncIterator[ExportedPage]:
    """The rows below a prefix, in the order of their keys.

    Args:
        kv: the database.
        prefix: what the keys begin with, itself excluded; () = all.
        after: go on after this encoded key.
        start_versionstamp: of the export that is gone on with; empty for a new one.
        page_count: rows in a page, at most.
        timeout_ms: for each page.
    """
    cursor = "" if after is None else cursor_after(list_range(prefix), after)
    listing = kv.list(prefix, cursor=cursor, batch_size=page_count, timeout_ms=timeout_ms)
    lines: list[bytes] = []
    page_stamp = ""
    after_start_count = 0
    async for entry in listing:
        if listing.versionstamp != page_stamp and lines:
            yield ExportedPage(b"".join(lines), len(lines), after_start_count, start_versionstamp)
            lines, after_start_count = [], 0
        page_stamp = listing.versionstamp
        start_versionstamp = start_versionstamp or page_stamp
        stamp = entry.versionstamp or ""
        is_after = stamp > start_versionstamp
        after_start_count += is_after
        lines.append(row_to_line(entry.encoded_key, *entry.raw, stamp, entry.expire_at_ms, after_start=is_after))
        if len(lines) >= page_count:
            yield ExportedPage(b"".join(lines), len(lines), after_start_count, start_versionstamp)
            lines, after_start_count = [], 0
    if lines:
        yield ExportedPage(b"".join(lines), len(lines), after_start_count, start_versionstamp)
