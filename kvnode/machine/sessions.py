"""Request ids: how a write that is sent again is applied once.

Theory of operation (after Ongaro's thesis, section 6.3, with outcomes kept for every unanswered request rather than
for the last alone, because a client pipelines). A session is opened through the log; its client id is the versionstamp
of the transaction that opened it. A request carries its sequence and the lowest sequence that the client still waits
for. In the state there is one session row (greatest sequence, lowest unanswered, how far outcomes were dropped; its
expiry is the row's own) and for each entry one row with the outcomes that the session got from it.

The leader keeps a window in memory for each session that it met: loaded from the state once, then kept current with
what it resolves, so that it always spans state and overlay. A sequence above the greatest known is new, without any
look-up; one below the lowest unanswered is refused, for its outcome may be gone; one between is found, or was never
seen and is executed.

A session lives SESSION_TTL_MS of log time after its last logged write. The expiry moves in steps of SESSION_REFRESH_MS
and outcomes are dropped in steps of OUTCOME_PRUNE_SEQUENCES_COUNT: each step is decided by entry, not by run, so that
every replica takes it at the same place.

A client id can be guessed, so that it proves nothing: a session has an owner, and whoever else names it is told what is
told of one that never was. The owner is the number of the database for which a client opened it, or NODES_OWN, which
no client comes with: under such a session a node writes to every database. Sessions opened before there were owners
have none (None), and are anybody's until they expire.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, OutcomeUnknown, Unavailable
from kvnode.codec.row import Row
from kvnode.machine.keyspace import outcome_key, outcome_range_end
from kvnode.machine.state_reader import StateReader
from kvnode.machine.verdict import Settled
from kvnode.proto.kv.internal.v1 import log_pb2

SESSION_LIFE_MS = limits.SESSION_TTL_MS + limits.SESSION_REFRESH_MS
NODES_OWN = 0
_SESSION = struct.Struct(">QQQI")
_SESSION_OF_NOBODY = struct.Struct(">QQQ")
_OUTCOME = struct.Struct(">QHBI")
_COMMITTED = int(log_pb2.OUTCOME_KIND_COMMITTED)


class RequestId(NamedTuple):
    """Names one write of one client. `resend`: it may have been sent before. `owner`: whose session it comes in."""

    client_id: bytes
    sequence: int
    lowest_unanswered: int
    resend: bool
    owner: int


class SessionRow(NamedTuple):
    """A session's row, decoded."""

    max_sequence: int
    lowest_unanswered: int
    pruned_below: int
    owner: int | None


class Outcome(NamedTuple):
    """What became of one request. `index` is the entry's, or 0 when it was read from the state."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    order: int
    settled: Settled


def encode_session(row: SessionRow) -> bytes:
    """The value of a session's row."""
    return _SESSION_OF_NOBODY.pack(*row[:3]) if row.owner is None else _SESSION.pack(*row)


def decode_session(value: bytes) -> SessionRow:
    """The inverse of encode_session."""
    if len(value) == _SESSION_OF_NOBODY.size:
        max_sequence, lowest_unanswered, pruned_below = _SESSION_OF_NOBODY.unpack(value)
        return SessionRow(max_sequence, lowest_unanswered, pruned_below, None)
    return SessionRow(*_SESSION.unpack(value))


def encode_outcome(sequence: int, order: int, transaction: log_pb2.Transaction) -> bytes:
    """One outcome for an outcome row's value, which is several of these in sequence."""
    if not transaction.outcome and not transaction.lost_actions:
        return _OUTCOME.pack(sequence, order, 0, 0)
    detail = log_pb2.Transaction(
        failed_checks=transaction.failed_checks,
        error_code=transaction.error_code,
        error_message=transaction.error_message,
        lost_actions=transaction.lost_actions,
    ).SerializeToString(deterministic=True)
    return _OUTCOME.pack(sequence, order, transaction.outcome, len(detail)) + detail


def decode_outcomes(row: Row) -> dict[int, Outcome]:
    """Outcomes by sequence. The row's versionstamp names the entry; each outcome's order completes it."""
    outcomes: dict[int, Outcome] = {}
    value, entry_stamp, position = row.value, row.versionstamp[:8], 0
    while position < len(value):
        sequence, order, kind, detail_bytes = _OUTCOME.unpack_from(value, position)
        position += _OUTCOME.size
        stamp = entry_stamp + order.to_bytes(2, "big")
        settled = Settled(kind, stamp if kind == _COMMITTED else b"", (), None)
        if detail_bytes:
            settled = _detailed(settled, value[position : position + detail_bytes])
            position += detail_bytes
        outcomes[sequence] = Outcome(0, order, settled)
    return outcomes


def _detailed(plain: Settled, detail: bytes) -> Settled:
    transaction = log_pb2.Transaction.FromString(detail)
    error = InvalidRequest(transaction.error_code, transaction.error_message) if transaction.error_code else None
    failed, lost = tuple(transaction.failed_checks), tuple(transaction.lost_actions)
    return plain._replace(failed_checks=failed, error=error, lost_actions=lost)


class SessionWindow:
    """The leader's picture of one session, state and overlay together."""

    __slots__ = ("client_id", "expire_at_ms", "lowest_unanswered", "max_sequence", "outcomes", "owner")

    def __init__(
        self, client_id: bytes, owner: int | None, expire_at_ms: int, max_sequence: int = 0, lowest_unanswered: int = 0
    ) -> None:
        self.client_id = client_id
        self.owner = owner
        self.expire_at_ms = expire_at_ms
        self.max_sequence = max_sequence
        self.lowest_unanswered = lowest_unanswered
        self.outcomes: dict[int, Outcome] = {}

    def advance(self, lowest: int) -> None:
        """Drop what the client has been answered. Cost: the number of sequences passed, or of outcomes held."""
        outcomes = self.outcomes
        if lowest - self.lowest_unanswered <= len(outcomes):
            for sequence in range(self.lowest_unanswered, lowest):
                outcomes.pop(sequence, None)
        elif outcomes:
            self.outcomes = {sequence: outcome for sequence, outcome in outcomes.items() if sequence >= lowest}
        self.lowest_unanswered = lowest


def load_window(state: StateReader, client_id: bytes, row: Row) -> SessionWindow:
    """The session as the state has it, `row` being its own row. Only right while no entry in flight answers it."""
    session = decode_session(row.value)
    window = SessionWindow(client_id, session.owner, row.expire_at_ms, session.max_sequence, session.lowest_unanswered)
    start, end = outcome_key(client_id, session.lowest_unanswered), outcome_range_end(client_id)
    while True:
        page = state.scan(start, end, limits.SCAN_PAGE_COUNT)
        for outcome_row in page:
            window.outcomes.update(decode_outcomes(outcome_row))
        if len(page) < limits.SCAN_PAGE_COUNT:
            return window
        start = page[-1].key + b"\x00"


def refreshed_expiry(expire_at_ms: int, log_time_ms: int) -> int:
    """The session's expiry after a write logged at `log_time_ms`; usually unchanged."""
    return expire_at_ms if expire_at_ms - log_time_ms >= limits.SESSION_TTL_MS else log_time_ms + SESSION_LIFE_MS


def unknown_session(resend: bool) -> KvError:
    """The error for a request of a session that is unknown, has expired, or belongs to somebody else."""
    if resend:
        return OutcomeUnknown(
            "The session is unknown or has expired, so whether this write was applied cannot be told any more. "
            "Read what it would have changed, then open a new session.",
            code="SESSION_UNKNOWN",
        )
    return Unavailable(
        "The session is unknown or has expired; nothing was applied. Open a new session and send the write there.",
        code="SESSION_UNKNOWN",
        phase="commit",
    )


def answered_before(resend: bool, sequence: int, lowest: int) -> KvError:
    """The error for a sequence that the client itself said was answered."""
    if resend:
        return OutcomeUnknown(
            f"Request {sequence} is below {lowest}, the lowest that the client still waits for: its outcome is no "
            "longer kept. Read what it would have changed; keep lowest_unanswered at or below what is sent again.",
            code="SEQUENCE_ANSWERED",
        )
    return Unavailable(
        f"Request {sequence} is below {lowest}, the lowest that the client still waits for; nothing was applied. "
        "Open a new session, or use increasing sequences.",
        code="SEQUENCE_ANSWERED",
        phase="commit",
    )


def too_many_unanswered(sequence: int, lowest: int) -> KvError:
    """The error for a client that never says what it was answered."""
    return Unavailable(
        f"Request {sequence} is {sequence - lowest} ahead of {lowest}, the lowest unanswered; the limit is "
        f"{limits.MAX_SESSION_UNANSWERED_COUNT}. Nothing was applied: wait for answers, and raise lowest_unanswered.",
        code="TOO_MANY_UNANSWERED",
        phase="commit",
    )
