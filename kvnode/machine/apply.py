"""Apply: from committed entries to the rows that the state becomes.

Theory of operation. Entries hold facts, so nothing is judged here: no check, no clock, no chance. A run of entries is
folded into one mapping from key to final row (None = gone), which the state writes in one transaction. A fact sees what
earlier facts of the run did, through that mapping. However a log is cut into runs, the state at its end is the same.

Most rows of queues come and go within a run: a message that was handled has been three of them. Their keys end in an id
that is given once, so that the state cannot hold one before the transaction that gave the id; what the same run
removes, then, is in no mapping, and costs the state nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.base import limits
from kvnode.base.invariant import invariant
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.epoch import decode_epoch_start
from kvnode.codec.row import Row
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.apply_sessions import SessionRun
from kvnode.machine.epochs import epoch_began, sealed
from kvnode.machine.queue.keys import FIRST_SPACE_BYTE, is_made_by
from kvnode.machine.state_reader import StateReader
from kvnode.proto.kv.internal.v1 import log_pb2

_SET = int(log_pb2.FACT_KIND_SET)
_DELETE_RANGE = int(log_pb2.FACT_KIND_DELETE_RANGE)
_new_row = tuple.__new__  # Row(...) in half the time; Row adds no checks


class AppliedRun:
    """What a run of entries comes to.

    Attributes:
        writes: final row by key, None for a key that is gone. A key listed as gone may never have existed.
        made: keys of rows in it that the state before the run cannot hold.
        log_time_ms: of the last data entry; 0 if the run holds none.
        epoch: of the last entry that holds data or begins an epoch; 0 if there is none.
    """

    __slots__ = ("epoch", "log_time_ms", "made", "writes")

    def __init__(self) -> None:
        self.writes: dict[bytes, Row | None] = {}
        self.made: set[bytes] = set()
        self.log_time_ms = 0
        self.epoch = 0


def apply_entries(entries: Sequence[Entry], state: StateReader, *, log_time_ms: int = 0) -> AppliedRun:
    """Fold committed entries into the writes they make on `state`.

    Args:
        entries: in log order, directly after what the state shows. No-ops and memberships are passed over.
        state: shows exactly the entry before the first.
        log_time_ms: of the state; an entry below it breaks an invariant.
    """
    run = AppliedRun()
    sessions = SessionRun(state, run.writes)
    for entry in entries:
        if entry.kind != EntryKind.DATA:
            _apply_mark(run, entry)
            continue
        payload = log_pb2.EntryPayload.FromString(entry.data)
        invariant(payload.log_time_ms >= log_time_ms, f"log time goes back to {payload.log_time_ms} in {entry.index}")
        log_time_ms = payload.log_time_ms
        _apply_entry(run, sessions, payload, versionstamp(payload.epoch, entry.index, 0)[:8], state)
    sessions.finish()
    return run


def _apply_mark(run: AppliedRun, entry: Entry) -> None:
    if entry.kind is EntryKind.EPOCH:
        start = decode_epoch_start(entry.data)
        run.writes.update(epoch_began(start, entry.index))
        run.epoch = start.epoch
    elif entry.kind is EntryKind.SEAL:
        run.writes.update(sealed(entry))


def _apply_entry(
    run: AppliedRun, sessions: SessionRun, payload: log_pb2.EntryPayload, entry_stamp: bytes, state: StateReader
) -> None:
    writes, made = run.writes, run.made
    for order, transaction in enumerate(payload.transactions):
        stamp = entry_stamp + order.to_bytes(2, "big")
        for fact in transaction.facts:
            kind = fact.kind
            key = fact.key
            if kind == _SET:
                writes[key] = _new_row(Row, (key, fact.value, fact.encoding, stamp, fact.expire_at_ms))
                if key[0] >= FIRST_SPACE_BYTE and is_made_by(key, stamp):
                    made.add(key)
            elif kind == _DELETE_RANGE:
                _delete_range(writes, state, key, fact.end_key)
            elif key in made:
                made.remove(key)
                del writes[key]
            else:
                writes[key] = None
        client_id = transaction.client_id
        if client_id:
            sessions.answered(client_id, order, transaction)
        elif transaction.opens_session:
            sessions.opened(stamp, payload.log_time_ms, transaction)
        elif transaction.expired_sessions:
            sessions.expired(transaction.expired_sessions)
    sessions.end_entry(entry_stamp + b"\x00\x00", payload.log_time_ms)
    run.log_time_ms = payload.log_time_ms
    run.epoch = payload.epoch


def _delete_range(writes: dict[bytes, Row | None], state: StateReader, start: bytes, end: bytes) -> None:
    for key in [key for key, row in writes.items() if row is not None and start <= key < end]:
        writes[key] = None
    while start < end:
        page = state.scan_keys(start, end, limits.SCAN_PAGE_COUNT)
        writes.update(dict.fromkeys(page))
        if len(page) < limits.SCAN_PAGE_COUNT:
            return
        start = page[-1] + b"\x00"
