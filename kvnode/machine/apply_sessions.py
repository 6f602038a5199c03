"""The session rows that a run of entries writes; sessions.py says what they mean.

For each session and entry: one row with all outcomes the entry holds for it, and the session's own row. Within a run
the session's own row is written once.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvnode.base import limits
from kvnode.base.invariant import invariant
from kvnode.codec.row import Row
from kvnode.machine.keyspace import outcome_key, outcome_range_end, session_key
from kvnode.machine.sessions import (
    SESSION_LIFE_MS,
    SessionRow,
    decode_session,
    encode_outcome,
    encode_session,
    refreshed_expiry,
)
from kvnode.machine.state_reader import StateReader
from kvnode.proto.kv.internal.v1 import log_pb2


class _Session:
    """One session while a run is applied."""

    __slots__ = ("expire_at_ms", "lowest_unanswered", "max_sequence", "owner", "pruned_below", "stamp",
                 "was_pruned_below")  # fmt: skip

    def __init__(self, row: SessionRow, expire_at_ms: int, stamp: bytes) -> None:
        self.max_sequence, self.lowest_unanswered, self.pruned_below, self.owner = row
        self.was_pruned_below = self.pruned_below
        self.expire_at_ms = expire_at_ms
        self.stamp = stamp


class _Answers:
    """What one entry holds for one session."""

    __slots__ = ("lowest_unanswered", "outcomes", "sequences")

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.lowest_unanswered: list[int] = []
        self.outcomes: list[bytes] = []


class SessionRun:
    """Collects what a run of entries does to sessions, and adds it to the run's writes."""

    __slots__ = ("_answers", "_outcome_rows", "_sessions", "_state", "_writes")

    def __init__(self, state: StateReader, writes: dict[bytes, Row | None]) -> None:
        self._state = state
        self._writes = writes
        self._sessions: dict[bytes, _Session] = {}
        self._answers: dict[bytes, _Answers] = {}
        self._outcome_rows: dict[bytes, list[int]] = {}

    def opened(self, client_id: bytes, log_time_ms: int, transaction: log_pb2.Transaction) -> None:
        """The transaction, whose versionstamp is `client_id`, opens a session."""
        owner = transaction.session_owner if transaction.HasField("session_owner") else None
        self._sessions[client_id] = _Session(SessionRow(0, 0, 0, owner), log_time_ms + SESSION_LIFE_MS, client_id)

    def answered(self, client_id: bytes, order: int, transaction: log_pb2.Transaction) -> None:
        """The transaction, at `order` in its entry, is the answer to a request of the session."""
        answers = self._answers.get(client_id)
        if answers is None:
            answers = self._answers[client_id] = _Answers()
        sequence = transaction.sequence
        answers.outcomes.append(encode_outcome(sequence, order, transaction))
        answers.sequences.append(sequence)
        answers.lowest_unanswered.append(transaction.lowest_unanswered)

    def end_entry(self, stamp: bytes, log_time_ms: int) -> None:
        """The entry with this versionstamp ends: its answers become rows."""
        if not self._answers:
            return
        for client_id, answers in self._answers.items():
            session = self._session(client_id)
            session.stamp = stamp
            max_sequence = max(answers.sequences)
            session.max_sequence = max(session.max_sequence, max_sequence)
            session.lowest_unanswered = max(session.lowest_unanswered, *answers.lowest_unanswered)
            session.expire_at_ms = refreshed_expiry(session.expire_at_ms, log_time_ms)
            if session.lowest_unanswered - session.pruned_below >= limits.OUTCOME_PRUNE_SEQUENCES_COUNT:
                session.pruned_below = session.lowest_unanswered
            key = outcome_key(client_id, max_sequence)
            self._writes[key] = Row(key, b"".join(answers.outcomes), 0, stamp)
            self._outcome_rows.setdefault(client_id, []).append(max_sequence)
        self._answers.clear()

    def expired(self, client_ids: Iterable[bytes]) -> None:
        """Sessions whose time has come, with all that was kept for them."""
        for client_id in client_ids:
            self._sessions.pop(client_id, None)
            self._writes[session_key(client_id)] = None
            for sequence in self._outcome_rows.pop(client_id, ()):
                self._writes[outcome_key(client_id, sequence)] = None
            self._delete(outcome_key(client_id, 0), outcome_range_end(client_id))

    def finish(self) -> None:
        """The run ends: write the sessions it touched and drop the outcomes they no longer need."""
        for client_id, session in self._sessions.items():
            if session.pruned_below > session.was_pruned_below:
                for sequence in self._outcome_rows.get(client_id, ()):
                    if sequence < session.pruned_below:
                        self._writes[outcome_key(client_id, sequence)] = None
                self._delete(outcome_key(client_id, 0), outcome_key(client_id, session.pruned_below))
            key = session_key(client_id)
            row = SessionRow(session.max_sequence, session.lowest_unanswered, session.pruned_below, session.owner)
            self._writes[key] = Row(key, encode_session(row), 0, session.stamp, session.expire_at_ms)

    def _session(self, client_id: bytes) -> _Session:
        session = self._sessions.get(client_id)
        if session is None:
            row = self._state.get(session_key(client_id))
            invariant(row is not None, f"an entry answers session {client_id.hex()}, which does not exist")
            assert row is not None  # for the type checker; the line above holds in production too
            session = _Session(decode_session(row.value), row.expire_at_ms, row.versionstamp)
            self._sessions[client_id] = session
        return session

    def _delete(self, start: bytes, end: bytes) -> None:
        while True:
            page = self._state.scan_keys(start, end, limits.SCAN_PAGE_COUNT)
            self._writes.update(dict.fromkeys(page))
            if len(page) < limits.SCAN_PAGE_COUNT:
                return
            start = page[-1] + b"\x00"
