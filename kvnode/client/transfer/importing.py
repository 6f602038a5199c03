"""Import: rows into a database, by transactions of a bounded size, several at a time.

Each transaction is applied once; the whole is not one transaction. A row is a set of its key, so that importing the
same rows again leaves the same values: what broke off is begun again, or gone on with where `done` was last called.
Of two rows with one key the later one counts (with `if_absent` the earlier one): no two are on their way at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.client.kv import Kv
from kvnode.client.transfer.rows import TransferRow, bad_row
from kvnode.proto.kv.v1 import kv_pb2

Position = TypeVar("Position")


class ImportCount(NamedTuple):
    """How many rows.

    Attributes:
        written: rows set.
        existing: left as they are (`if_absent`).
        expired: passed over, because their time was over.
    """

    written: int = 0
    existing: int = 0
    expired: int = 0

    def plus(self, other: ImportCount) -> ImportCount:
        """Both together."""
        return ImportCount(self.written + other.written, self.existing + other.existing, self.expired + other.expired)


async def import_rows(
    kv: Kv,
    rows: Iterable[tuple[TransferRow, Position]],
    *,
    if_absent: bool = False,
    timeout_ms: int,
    now_ms: Callable[[], int],
    done: Callable[[ImportCount, Position], None] = lambda count, position: None,
) -> ImportCount:
    """Set every row.

    Args:
        kv: the database.
        rows: with, for each, where its source goes on after it.
        if_absent: leave keys that exist as they are.
        timeout_ms: for each transaction.
        now_ms: the time that expiry is judged by.
        done: called in the order of the rows, when all up to a position are in: rows since the last call, position.

    Raises:
        InvalidRequest: a row that cannot be set; the message names its place. Rows behind it may be in.
        KvError: as AtomicOperation.commit raises; rows behind those reported to `done` may be in.
    """
    writer = _Writer(kv, if_absent, timeout_ms)
    in_flight: deque[tuple[asyncio.Task[ImportCount], _Batch[Position]]] = deque()
    total = ImportCount()

    def count_first() -> None:
        nonlocal total
        task, batch = in_flight.popleft()
        count = task.result().plus(ImportCount(expired=batch.expired_count))
        total = total.plus(count)
        done(count, batch.position)

    async def settle() -> None:
        await in_flight[0][0]
        count_first()

    try:
        for batch in _batches(rows, if_absent, now_ms):
            while len(in_flight) >= limits.IMPORT_INFLIGHT_COUNT:
                await settle()
            while any(batch.rows.keys() & sent.rows.keys() for _, sent in in_flight):
                await settle()
            in_flight.append((asyncio.create_task(writer.write(list(batch.rows.values()))), batch))
    finally:
        # Also when a row is at fault: those before it are on their way.
        try:
            while in_flight:
                await settle()
        finally:
            await _give_up(in_flight)
            while in_flight and _is_done(in_flight[0][0]):
                count_first()
    return total


async def _give_up(in_flight: Iterable[tuple[asyncio.Task[ImportCount], object]]) -> None:
    for task, _ in in_flight:
        task.cancel()
    await asyncio.gather(*(task for task, _ in in_flight), return_exceptions=True)


def _is_done(task: asyncio.Task[ImportCount]) -> bool:
    return not task.cancelled() and task.exception() is None


class _Batch(Generic[Position]):
    """The rows of one transaction by key, where the source goes on after them, and what was passed over."""

    __slots__ = ("expired_count", "key_bytes", "position", "rows", "size_bytes")

    def __init__(self, position: Position) -> None:
        self.rows: dict[bytes, TransferRow] = {}
        self.position = position
        self.expired_count = 0
        self.key_bytes = 0
        self.size_bytes = 0

    def add(self, row: TransferRow) -> None:
        self.rows[row.key] = row
        self.key_bytes += len(row.key)
        self.size_bytes += len(row.key) + len(row.data)

    def has_room(self, row: TransferRow, if_absent: bool) -> bool:
        if not self.rows:
            return self.expired_count < limits.IMPORT_BATCH_ROWS_COUNT
        rows_count = limits.MAX_CHECKS_COUNT if if_absent else limits.IMPORT_BATCH_ROWS_COUNT
        # A check counts its key once more.
        key_bytes = limits.MAX_TRANSACTION_KEY_BYTES // (2 if if_absent else 1)
        return (
            len(self.rows) < rows_count
            and row.key not in self.rows
            and self.key_bytes + len(row.key) <= key_bytes
            and self.size_bytes + len(row.key) + len(row.data) <= limits.IMPORT_BATCH_BYTES
        )


def _batches(
    rows: Iterable[tuple[TransferRow, Position]], if_absent: bool, now_ms: Callable[[], int]
) -> Iterator[_Batch[Position]]:
    batch: _Batch[Position] | None = None
    for row, position in rows:
        if batch is not None and not batch.has_room(row, if_absent):
            yield batch
            batch = None
        if batch is None:
            batch = _Batch(position)
        batch.position = position
        if 0 < row.expire_at_ms <= now_ms():
            batch.expired_count += 1
        else:
            batch.add(row)
    if batch is not None:
        yield batch


class _Writer:
    def __init__(self, kv: Kv, if_absent: bool, timeout_ms: int) -> None:
        self._kv = kv
        self._if_absent = if_absent
        self._timeout_ms = timeout_ms

    async def write(self, batch: list[TransferRow]) -> ImportCount:
        """Set the rows of one transaction; of several, if one of them is at fault and has to be found."""
        if not batch:
            return ImportCount()
        try:
            return await self._write(batch)
        except InvalidRequest as error:
            if len(batch) == 1:
                raise bad_row(batch[0].place, error.message) from error
        middle = len(batch) // 2
        return (await self.write(batch[:middle])).plus(await self.write(batch[middle:]))

    async def _write(self, batch: list[TransferRow]) -> ImportCount:
        existing = 0
        while batch:
            response = await self._kv.session.write(self._request(batch), self._timeout_ms)
            if response.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS:
                break
            failed = frozenset(response.failed_checks)
            existing += len(failed)
            batch = [row for position, row in enumerate(batch) if position not in failed]
        return ImportCount(written=len(batch), existing=existing)

    def _request(self, batch: list[TransferRow]) -> kv_pb2.AtomicWriteRequest:
        request = kv_pb2.AtomicWriteRequest()
        for row in batch:
            if self._if_absent:
                request.checks.add(key=row.key)
            mutation = request.mutations.add(type=kv_pb2.MUTATION_TYPE_SET, key=row.key, expire_at_ms=row.expire_at_ms)
            mutation.value.data = row.data
            mutation.value.encoding = row.encoding  # type: ignore[assignment]  # a plain int on the wire
        return request
