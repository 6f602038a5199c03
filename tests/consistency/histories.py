"""Random histories of a correct database, for the checker to accept, and helpers to break them.

The database is a model with one lock: each operation takes effect at one instant inside its interval.
Several commits share an entry now and then, followers lag, some answers are lost.
"""

from __future__ import annotations

import random
from dataclasses import replace

from cluster.history import (
    Check,
    CheckFailed,
    Committed,
    History,
    Mutation,
    MutationKind,
    Operation,
    Outcome,
    Range,
    Read,
    Seen,
    SeenEntry,
    SeenRange,
    Unknown,
    Write,
)
from cluster.replay import Model
from kvnode.codec.versionstamp import versionstamp

KEYS = [b"a", b"b", b"c", b"d"]
COUNTER = b"counter"


def stamp(index: int, order: int = 0) -> bytes:
    """A versionstamp of the first epoch."""
    return versionstamp(1, index, order)


def le64(number: int) -> bytes:
    """8 bytes, little endian."""
    return number.to_bytes(8, "little")


def point(key: bytes) -> Range:
    """The range of one key."""
    return Range(key, key + b"\x00", 1)


def put(key: bytes, value: bytes) -> Write:
    """An unconditional set."""
    return Write((), (Mutation(MutationKind.SET, key, value),))


def commit(start: float, end: float | None, write: Write, index: int, order: int = 0) -> Operation:
    """A commit that was acknowledged at `end`."""
    return Operation(start, end, write, Committed(stamp(index, order)))


def get(start: float, end: float, key: bytes, index: int, found: SeenEntry | None, **options: object) -> Operation:
    """A read of one key that was served at log index `index`."""
    age_ms = options.pop("age_ms", -1)
    seen = Seen(stamp(index), (SeenRange((found,) if found else ()),), int(str(age_ms)))
    return Operation(start, end, Read((point(key),), **options), seen)  # type: ignore[arg-type]


class Database:
    """Makes a history of `count` operations; `lag_ms` bounds how old eventual reads are."""

    def __init__(self, seed: int, lag_ms: float = 20.0) -> None:
        self.random = random.Random(seed)
        self.lag_ms = lag_ms
        self.history = History()
        self.models: list[tuple[float, int, Model]] = []
        self.now_ms = 0.0
        self.index, self.order = 1, 0
        self.model = Model()
        self.serial = 0

    def run(self, count: int) -> list[Operation]:
        """Make the history; its last operation is a strong read of everything."""
        for _ in range(count):
            self.now_ms += self.random.expovariate(1.0)
            kind = self.random.random()
            if kind < 0.6:
                self._write()
            else:
                self._read(kind < 0.85)
        self.now_ms += 1_000
        self._answer(Read((Range(b"", b"\xff", 1_000_000),)), self._look(self.model, b"", b"\xff"), sure=True)
        return self.history.operations

    def _interval(self) -> tuple[float, float]:
        return self.now_ms - self.random.expovariate(0.2), self.now_ms + self.random.expovariate(0.2)

    def _answer(self, request: Write | Read, outcome: Outcome, *, sure: bool = False) -> None:
        start, end = (self.now_ms, self.now_ms) if sure else self._interval()
        lost = not sure and self.random.random() < 0.05
        if lost and isinstance(request, Write):
            self.history.add(start, None, request, Unknown())
        elif not lost:
            self.history.add(start, end, request, outcome, f"operation {len(self.history.operations)}")

    def _write(self) -> None:
        self.serial += 1
        key = self.random.choice(KEYS)
        value = b"value %d of nobody else" % self.serial
        mutations = [
            Mutation(MutationKind.SET, b"journal %08d" % self.serial, value),
            Mutation(self.random.choice([MutationKind.SUM, MutationKind.MIN, MutationKind.MAX]), COUNTER, le64(3)),
            self.random.choice(
                [
                    Mutation(MutationKind.SET, key, value),
                    Mutation(MutationKind.DELETE, key),
                    Mutation(MutationKind.DELETE_RANGE, b"a", end_key=b"c"),
                    Mutation(MutationKind.SET_SUFFIX_VERSIONSTAMPED_KEY, b"log", value),
                ]
            ),
        ]
        checks = tuple(self._check() for _ in range(self.random.choice([0, 0, 1, 2])))
        write = Write(checks, tuple(mutations))
        failed = tuple(number for number, item in enumerate(checks) if item.versionstamp != self._stamp_of(item.key))
        if failed:
            self._answer(write, CheckFailed(failed))
            return
        if self.random.random() < 0.3:
            self.order += 1
        else:
            self.index, self.order = self.index + 1, 0
        self.model.apply(write, stamp(self.index, self.order))
        self._answer(write, Committed(stamp(self.index, self.order)))

    def _stamp_of(self, key: bytes) -> bytes:
        row = self.model.rows.get(key)
        return row.versionstamp if row else b""

    def _check(self) -> Check:
        key = self.random.choice(KEYS)
        present = self._stamp_of(key)
        return Check(key, self.random.choice([present, present, b"", stamp(1)]))

    def _read(self, strong: bool) -> None:
        # A read closes the entry: whoever names an entry has seen all of it.
        seen = self._look(self.model, b"", b"\xff")
        read = Read((Range(b"", b"\xff", 1_000_000),), strong)
        served_ms = self.now_ms
        if not strong:
            self.now_ms += self.random.random() * self.lag_ms
            seen = replace(seen, age_ms=int(self.now_ms - served_ms) + 1)
        self._answer(read, seen)
        self.index, self.order = self.index + 1, 0

    def _look(self, model: Model, start: bytes, end: bytes) -> Seen:
        rows = model.range_rows(Range(start, end))
        entries = tuple(SeenEntry(key, row.value, row.versionstamp) for key, row in rows)
        return Seen(stamp(self.index), (SeenRange(entries),))
