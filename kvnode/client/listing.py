"""Lists: a range read page by page, with a cursor to go on from later."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.client.numbers import whole_number
from kvnode.client.results import Entry
from kvnode.codec.keys import KeyRange
from kvnode.proto.kv.v1 import kv_pb2

ReadPage = Callable[[kv_pb2.ReadRange], Awaitable[kv_pb2.ReadResponse]]


class KvList(AsyncIterator[Entry]):
    """The entries of a range, in order. Each page is a consistent state; two pages may be of different ones.

    Args:
        read_page: reads one range, in a request of its own.
        bounds: the whole range.
        limit: how many entries at most; None = all.
        reverse: the last entry first.
        batch_size: entries in a page.
        keys_only: leave the values out.
        cursor: of an earlier list with the same bounds: go on after its last entry.
    """

    def __init__(
        self,
        read_page: ReadPage,
        bounds: KeyRange,
        *,
        limit: int | None,
        reverse: bool,
        batch_size: int | None,
        keys_only: bool,
        cursor: str,
    ) -> None:
        limit = _checked_limit(limit)
        self._read_page = read_page
        self._bounds = bounds
        self._shared = _shared_start(bounds.start, bounds.end)
        self._left_count = limit
        self._reverse = reverse
        self._batch_count = _batch_count(batch_size, limit)
        self._keys_only = keys_only
        self._page: list[Entry] = []
        self._is_last_page = False
        self._cursor = ""
        self._versionstamp = ""
        self._turn = asyncio.Lock()  # each of those who share a list gets entries of his own
        if cursor:
            self._go_on_after(self._shared + _decode_cursor(cursor))
            self._cursor = cursor

    @property
    def cursor(self) -> str:
        """Where the last entry that was returned stands; empty before the first."""
        return self._cursor

    @property
    def versionstamp(self) -> str:
        """Of the state that the last page shows; empty before the first."""
        return self._versionstamp

    def __aiter__(self) -> KvList:
        return self

    async def __anext__(self) -> Entry:
        async with self._turn:
            return await self._next()

    async def _next(self) -> Entry:
        if self._left_count == 0:
            raise StopAsyncIteration
        if not self._page:
            if self._is_last_page or self._bounds.start >= self._bounds.end:
                raise StopAsyncIteration
            await self._next_page()
            if not self._page:
                raise StopAsyncIteration
        entry = self._page.pop()
        if self._left_count is not None:
            self._left_count -= 1
        self._cursor = _encode_cursor(entry.encoded_key, self._shared)
        return entry

    async def _next_page(self) -> None:
        count = self._batch_count if self._left_count is None else min(self._batch_count, self._left_count)
        while True:
            try:
                response = await self._read_page(self._range(count))
                break
            except KvError as error:
                if error.code != "RESPONSE_TOO_LARGE" or count == 1:
                    raise
                # Many large values: a page of half as many fits sooner or later, one entry always does.
                count = self._batch_count = count // 2
        self._versionstamp = response.versionstamp.hex()
        self._page = [Entry(found, age_ms=response.age_ms) for found in reversed(response.ranges[0].entries)]
        self._is_last_page = len(self._page) < count
        if self._page:
            self._go_on_after(self._page[0].encoded_key)

    def _range(self, count: int) -> kv_pb2.ReadRange:
        start, end = self._bounds
        return kv_pb2.ReadRange(start=start, end=end, limit=count, reverse=self._reverse, keys_only=self._keys_only)

    def _go_on_after(self, key: bytes) -> None:
        start, end = self._bounds
        self._bounds = KeyRange(start, min(end, key)) if self._reverse else KeyRange(max(start, key + b"\x00"), end)


def cursor_after(bounds: KeyRange, encoded_key: bytes) -> str:
    """The cursor with which a list of these bounds goes on after a key."""
    return _encode_cursor(encoded_key, _shared_start(bounds.start, bounds.end))


def _encode_cursor(encoded_key: bytes, shared: bytes) -> str:
    return base64.urlsafe_b64encode(encoded_key.removeprefix(shared)).decode()


def _checked_limit(limit: int | None) -> int | None:
    if limit is None:
        return None
    found = whole_number(limit, 1, sys.maxsize)
    if found is None:
        raise InvalidRequest("BAD_LIMIT", f"The limit of a list is 1 or more, not {limit!r}.")
    return found


def _batch_count(batch_size: int | None, limit: int | None) -> int:
    if batch_size is None:
        return min(limit or limits.DEFAULT_LIST_BATCH_COUNT, limits.MAX_DEFAULT_LIST_BATCH_COUNT)
    found = whole_number(batch_size, 1, limits.MAX_READ_ENTRIES_COUNT)
    if found is None:
        raise InvalidRequest(
            "BAD_BATCH_SIZE", f"The batch size of a list is 1 to {limits.MAX_READ_ENTRIES_COUNT}, not {batch_size!r}."
        )
    return found


def _decode_cursor(cursor: str) -> bytes:
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (TypeError, ValueError) as error:
        raise InvalidRequest("BAD_CURSOR", f"{cursor!r} is no cursor of a list.") from error


def _shared_start(one: bytes, other: bytes) -> bytes:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return one[:length]
