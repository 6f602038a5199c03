"""A state in memory, and short ways to write requests."""

from kvnode.base import limits
from kvnode.codec.entry import Entry, EntryKind
from kvnode.machine.apply import apply_entries
from kvnode.proto.kv.v1 import kv_pb2

SET, DELETE, SUM, MAX, MIN, DELETE_RANGE, SET_EXPIRY, SUFFIX = 1, 2, 3, 4, 5, 6, 7, 9
V8, LE64, BYTES = 1, 2, 3


class MemoryState:
    """What the machine reads of the state, as a dict."""

    def __init__(self):
        self.rows = {}
        self.log_time_ms = 0

    def get(self, key):
        return self.rows.get(key)

    def scan(self, start, end, limit, *, reverse=False):
        keys = sorted((key for key in self.rows if start <= key < end), reverse=reverse)
        return [self.rows[key] for key in keys[:limit]]

    def scan_within(self, start, end, limit, *, max_bytes, reverse=False):
        rows = self.scan(start, end, limit, reverse=reverse)
        return rows if sum(len(row.value) for row in rows) <= max_bytes else None

    def scan_keys(self, start, end, limit):
        return [row.key for row in self.scan(start, end, limit)]

    def due(self, now_ms, limit=limits.MAX_EXPIRED_KEYS_PER_TICK_COUNT):
        found = [(row.expire_at_ms, key) for key, row in self.rows.items() if 0 < row.expire_at_ms <= now_ms]
        return [(key, at) for at, key in sorted(found)[:limit]]

    def apply(self, entries):
        """Apply a run of entries; returns it."""
        run = apply_entries(entries, self, log_time_ms=self.log_time_ms)
        for key, row in run.writes.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                assert row.key == key
                self.rows[key] = row
        self.log_time_ms = run.log_time_ms or self.log_time_ms
        return run


def entry(index, data, term=1):
    return Entry(term, index, EntryKind.DATA, data)


def u64(number):
    return number.to_bytes(8, "little")


def mutation(kind, key, data=b"", encoding=BYTES, **more):
    made = kv_pb2.Mutation(type=kind, key=key, **more)
    if kind not in (DELETE, DELETE_RANGE, SET_EXPIRY):
        made.value.data = data
        made.value.encoding = encoding
    return made


def write(*mutations, checks=()):
    return kv_pb2.AtomicWriteRequest(
        mutations=mutations, checks=[kv_pb2.Check(key=key, versionstamp=stamp) for key, stamp in checks]
    )


def point(key, **more):
    return kv_pb2.ReadRange(start=key, end=key + b"\0", limit=1, **more)
