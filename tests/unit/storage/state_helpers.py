"""What the tests of the state share."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from kvnode.base.clock import SystemClock
from kvnode.codec.row import Row
from kvnode.storage.state import State, StateMeta


class ManualClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at_ms = 1_000.0

    def now_ms(self) -> int:
        return int(self.at_ms)

    def monotonic_ms(self) -> float:
        return self.at_ms


@asynccontextmanager
async def opened(directory: Path, clock: SystemClock | ManualClock | None = None) -> AsyncIterator[State]:
    state = await State.open(directory, clock=clock or SystemClock())
    try:
        yield state
    finally:
        await state.close()


def row(key: bytes, value: bytes = b"value", expire_at_ms: int = 0) -> Row:
    return Row(key, value, 1, b"\0" * 10, expire_at_ms)


def put(state: State, index: int, writes: Mapping[bytes, Row | None], *, commit: bool = True) -> StateMeta:
    meta = state.apply(writes, applied_index=index, applied_term=1, log_time_ms=index * 10, epoch=0)
    if commit:
        state.commit()
    return meta


def fill(
    state: State, first: int, last: int, rows_count: int = 10, value_bytes: int = 100, *, commit: bool = True
) -> None:
    """One apply for each index from first to last, over 1,000 keys, the same whenever it is called."""
    for index in range(first, last + 1):
        keys = [b"key%03d" % ((index * 7 + number * 13) % 1_000) for number in range(rows_count)]
        put(state, index, {key: row(key, b"%d" % index * (value_bytes // 4)) for key in keys}, commit=commit)


def flip_bit(path: Path, at: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, at)
        os.pwrite(descriptor, bytes([byte[0] ^ 1]), at)
    finally:
        os.close(descriptor)
