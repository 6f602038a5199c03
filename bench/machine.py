"""What the machine costs, in microseconds per operation, without consensus, disk or network.

Run: python -m bench.machine [--json]. One process, one thread; the best of several rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.keys import encode_key
from kvnode.codec.row import Row
from kvnode.codec.values import decode_v8, encode_v8
from kvnode.machine.apply import apply_entries
from kvnode.machine.read import read_ranges
from kvnode.machine.resolve import RequestId, Resolver
from kvnode.machine.validate import validate_write
from kvnode.proto.kv.v1 import kv_pb2

BATCH_TRANSACTIONS_COUNT = 64
ROUNDS_COUNT = 40
VALUE = bytes(256)
NAME = {"name": "LATIN SMALL LETTER A", "code": 97, "category": "Ll", "words": ["LATIN", "SMALL", "LETTER", "A"]}


class Rows:
    """A state whose reads cost a dict look-up; ranges are not needed here."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}

    def get(self, key: bytes) -> Row | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        return []

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        return []


class Machine:
    """A leader and its state, fed batch by batch."""

    def __init__(self, writes: list[kv_pb2.AtomicWriteRequest], *, with_ids: bool) -> None:
        self.state = Rows()
        self.resolver = Resolver(self.state, 1)
        self.writes = writes
        self.with_ids = with_ids
        self.index = 1
        self.sequence = 0
        batch = self.begin()
        self.client_id = batch.open_session(1)
        self.apply(batch.payload())

    def begin(self):
        self.index += 1
        return self.resolver.begin(self.index, 1_700_000_000_000 + self.index)

    def resolve(self) -> bytes:
        batch = self.begin()
        for write in self.writes:
            request = None
            if self.with_ids:
                self.sequence += 1
                request = RequestId(self.client_id, self.sequence, max(1, self.sequence - 64), False, 1)
            batch.add(write, 1, request)
        assert batch.transactions_count == len(self.writes)
        return batch.payload()

    def apply(self, payload: bytes) -> None:
        run = apply_entries([Entry(1, self.index, EntryKind.DATA, payload)], self.state)
        for key, row in run.writes.items():
            if row is not None:
                self.state.rows[key] = row

    def applied(self) -> None:
        self.resolver.applied(self.index)


def write_of(kind: str, number: int) -> kv_pb2.AtomicWriteRequest:
    """A transaction of the kind, on a key of its own."""
    key = encode_key(("users", f"user-{number:06}"))
    write = kv_pb2.AtomicWriteRequest()
    if kind == "sum":
        write.mutations.add(type=3, key=key, value=kv_pb2.Value(data=bytes(8), encoding=2))
        return write
    if kind == "check and set":
        write.checks.add(key=key + b"\x02lock\x00", versionstamp=b"")
    write.mutations.add(type=1, key=key, value=kv_pb2.Value(data=VALUE, encoding=3))
    return write


def measure_transactions(kind: str, *, with_ids: bool) -> dict[str, float]:
    """Resolve and apply, per transaction, in batches of BATCH_TRANSACTIONS_COUNT."""
    machine = Machine([write_of(kind, number) for number in range(BATCH_TRANSACTIONS_COUNT)], with_ids=with_ids)
    resolved, applied, freed = [], [], []
    for _ in range(ROUNDS_COUNT):
        begun = time.perf_counter()
        payload = machine.resolve()
        after_resolve = time.perf_counter()
        run = apply_entries([Entry(1, machine.index, EntryKind.DATA, payload)], machine.state)
        after_apply = time.perf_counter()
        machine.state.rows.update({key: row for key, row in run.writes.items() if row is not None})
        before_free = time.perf_counter()
        machine.applied()
        freed.append(time.perf_counter() - before_free)
        resolved.append(after_resolve - begun)
        applied.append(after_apply - after_resolve)
    scale = 1e6 / BATCH_TRANSACTIONS_COUNT
    return {"resolve": min(resolved) * scale, "apply": min(applied) * scale, "free": min(freed) * scale}


def per_call(call: Callable[[], object], count: int = 2_000) -> float:
    """Microseconds a call, best of five rounds."""
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, time.perf_counter() - begun)
    return best / count * 1e6


def measure() -> dict[str, float]:
    """All figures, by name."""
    figures: dict[str, float] = {}
    for kind in ("set", "check and set", "sum"):
        for with_ids in (False, True):
            for part, value in measure_transactions(kind, with_ids=with_ids).items():
                figures[f"{kind}{', request id' if with_ids else ''}: {part}"] = value
    write = write_of("set", 1)
    figures["set: validate"] = per_call(lambda: validate_write(write))
    state = Rows()
    key = b"\x00\x00\x00\x01" + write.mutations[0].key
    state.rows[key] = Row(key, VALUE, 3, bytes(10))
    read = kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=key[4:], end=key[4:] + b"\x00", limit=1)])
    figures["point read"] = per_call(lambda: read_ranges(state, read, 1, 1, kv_pb2.ReadResponse()))
    figures["encode key"] = per_call(lambda: encode_key(("users", "user-000001")))
    encoded = encode_v8(NAME)
    figures["encode value"] = per_call(lambda: encode_v8(NAME))
    figures["decode value"] = per_call(lambda: decode_v8(encoded))
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:40} {value:7.2f} us")


if __name__ == "__main__":
    main()
