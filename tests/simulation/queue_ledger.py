"""What must hold for queues and crons in every log, replayed from the committed entries alone.

The ledger knows what the rows of a queue are (kvnode/machine/queue/keys.py) and none of the code that writes them. It
goes through the log in order, judges each transaction by what the ones before left behind, and finds (a message that is
claimed in the entry that makes it need not be listed as waiting; it is due at once, then):

- *lease*: a message under two leases at once, claimed before its time, or taken from nowhere; an extended lease that
  had ended; an ack, or a handler's failure, under a lease that had ended by log time;
- *lost*: a message that goes without an ack and without becoming a dead letter;
- *dead-letter*: one whose handler did not fail to the end of the schedule, or that failed so and was not given up; its
  keys_if_undelivered written at another time or not at all;
- *cron*: a tick that is fired twice, out of order, before its time, or although a newer one has passed;
- *effects*: what a handler writes with its ack, written twice or without that ack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kvnode.base import limits
from kvnode.codec.entry import Entry, EntryKind
from kvnode.machine.keyspace import database_prefix
from kvnode.machine.queue import cron_schedule, keys
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from tests.simulation.observer import Violation

DATABASE = 1
SPACE = keys.space_prefix(DATABASE)
UNDELIVERED = b"~u/"  # user keys that only a dead letter writes
EFFECT = b"~e/"  # user keys that only an ack with a write writes, each with the id of its message behind it
_USER = database_prefix(DATABASE)

Facts = dict[bytes, log_pb2.Fact | None]


class Lease(NamedTuple):
    """A lease as the log has it."""

    message_id: bytes
    expire_at_ms: int
    history: rows.DueRow


@dataclass
class Message:
    """A message as it was made, and how it went."""

    row: rows.MessageRow
    due_ms: int | None = None  # it waits
    lease_id: bytes = b""  # or it is under this lease
    failures_count: int = 0
    losses_count: int = 0
    made_ms: int = 0  # log time
    claimed_ms: int | None = None  # likewise, the first time
    end: str = ""  # "acked" or "dead"


@dataclass
class Cron:
    """A cron as it was set last."""

    schedule: str
    since_ms: int
    allow_overlap: bool
    fired: list[int] = field(default_factory=list)


class Ledger:
    """The replay.

    Args:
        nacked: leases whose handlers said that they failed.
    """

    def __init__(self, nacked: dict[bytes, None]) -> None:
        self._nacked = nacked
        self.messages: dict[bytes, Message] = {}
        self.leases: dict[bytes, Lease] = {}
        self.every_lease: dict[bytes, bytes] = {}  # of all times: its message
        self.crons: dict[str, Cron] = {}
        self.ticks: dict[tuple[str, int], None] = {}
        self.log_time_ms = 0
        self._unlisted: dict[bytes, None] = {}  # messages that this entry made, which neither wait nor are held
        self._before_ms = 0  # log time of the entry before
        self._term = 0
        self._begins_term = False

    def replay(self, entries: dict[int, Entry]) -> None:
        """Go through the whole log. Raises Violation."""
        for index in sorted(entries):
            entry = entries[index]
            if entry.kind is not EntryKind.DATA:
                continue
            payload = log_pb2.EntryPayload.FromString(entry.data)
            self._before_ms, self.log_time_ms = self.log_time_ms, payload.log_time_ms
            self._begins_term, self._term = entry.term != self._term, entry.term
            for order, transaction in enumerate(payload.transactions):
                self._transaction(transaction, f"entry {index}.{order}")
            for message_id in self._unlisted:
                raise Violation("lost", f"entry {index}: message {message_id.hex()} is made and does not wait")

    def open_messages(self) -> list[bytes]:
        """Those that are neither handled nor given up."""
        return [message_id for message_id, message in self.messages.items() if not message.end]

    def has_delivered(self, message_id: bytes, lease_id: bytes, payload: bytes) -> bool:
        """Whether there was a lease of that name on that message."""
        return self.every_lease.get(lease_id) == message_id and self.messages[message_id].row.payload == payload

    def _transaction(self, transaction: log_pb2.Transaction, where: str) -> None:
        facts: Facts = {}
        for fact in transaction.facts:
            facts[fact.key] = fact if fact.kind == log_pb2.FACT_KIND_SET else None
        ended = {key[5:] for key, fact in _of(facts, b"l") if fact is None}
        self._born(facts)
        dead = {rows.DeadLetterRow.FromString(fact.value).message_id for _, fact in _of(facts, b"x") if fact}
        for lease_id in sorted(ended):
            self._lease_ends(lease_id, facts, dead, where)
        for key, fact in _of(facts, b"m"):
            if fact is None and not self.messages[key[5:]].end:
                raise Violation("lost", f"{where}: message {key[5:].hex()} goes, and nobody has acknowledged it")
        for key, fact in _of(facts, b"l"):
            if fact is not None:
                self._lease_is_set(key[5:], fact, facts, where)
        self._crons(facts)
        self._user_keys(facts, dead, where)

    # Messages.

    def _born(self, facts: Facts) -> None:
        due = {keys.due_of_key(key)[1]: keys.due_of_key(key)[0] for key, fact in _of(facts, b"d") if fact}
        for key, fact in _of(facts, b"m"):
            if fact is not None and key[5:] not in self.messages:
                row = rows.MessageRow.FromString(fact.value)
                if key[5:] not in due:
                    self._unlisted[key[5:]] = None
                due_ms = due.get(key[5:], self.log_time_ms)
                self.messages[key[5:]] = Message(row, due_ms, made_ms=self.log_time_ms)
                if row.cron:
                    self._fired(row)

    def _lease_ends(self, lease_id: bytes, facts: Facts, dead: set[bytes], where: str) -> None:
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise Violation("lease", f"{where} ends lease {lease_id.hex()}, which there is not")
        message = self.messages[lease.message_id]
        message.lease_id = b""
        is_current = lease.expire_at_ms > self.log_time_ms
        if lease.message_id in dead:
            self._dies(message, lease_id, is_current, where)
        elif facts.get(keys.message_key(DATABASE, lease.message_id), b"") is None:
            if not is_current:
                raise Violation("lease", f"{where} acknowledges under lease {lease_id.hex()}, which had ended")
            message.end = "acked"
        else:
            self._returns(message, lease, lease_id, facts, is_current, where)

    def _returns(
        self, message: Message, lease: Lease, lease_id: bytes, facts: Facts, is_current: bool, where: str
    ) -> None:
        """It waits again; what the row counts is what happened."""
        found = [(key, fact) for key, fact in _of(facts, b"d") if fact and keys.due_of_key(key)[1] == lease.message_id]
        if len(found) != 1:
            raise Violation("lost", f"{where}: message {lease.message_id.hex()} loses its lease and does not wait")
        message.due_ms = keys.due_of_key(found[0][0])[0]
        history = rows.DueRow.FromString(found[0][1].value)
        failed = history.failures_count - message.failures_count
        lost = history.losses_count - message.losses_count
        if not self._is_reasonable(failed, lost, message, lease_id, is_current):
            raise Violation("dead-letter", f"{where} counts {failed} failures and {lost} losses of {lease_id.hex()}")
        message.failures_count, message.losses_count = history.failures_count, history.losses_count
        if message.failures_count > len(message.row.backoff_intervals_ms):
            raise Violation("dead-letter", f"{where}: {lease.message_id.hex()} has failed to the end, and waits again")

    def _is_reasonable(self, failed: int, lost: int, message: Message, lease_id: bytes, is_current: bool) -> bool:
        if (failed, lost) == (1, 0):
            return is_current and lease_id in self._nacked
        if (failed, lost) == (1, 1):
            return message.losses_count >= limits.MAX_QUEUE_LOSSES_COUNT
        return failed == 0 and lost in (0, 1)

    def _dies(self, message: Message, lease_id: bytes, is_current: bool, where: str) -> None:
        message.end = "dead"
        failed = is_current and lease_id in self._nacked
        if not failed and message.losses_count < limits.MAX_QUEUE_LOSSES_COUNT:
            raise Violation("dead-letter", f"{where} gives up a message under {lease_id.hex()}, which nobody failed")
        if message.failures_count != len(message.row.backoff_intervals_ms):
            raise Violation("dead-letter", f"{where} gives up a message after {message.failures_count + 1} failures")

    # Leases.

    def _lease_is_set(self, lease_id: bytes, fact: log_pb2.Fact, facts: Facts, where: str) -> None:
        row = rows.LeaseRow.FromString(fact.value)
        known = self.leases.get(lease_id)
        self.leases[lease_id] = Lease(row.message_id, fact.expire_at_ms, row.history)
        if known is not None:
            # A new leader's first entries give leases the time back in which nobody led.
            alive_at_ms = self._before_ms if self._begins_term else self.log_time_ms
            if known.expire_at_ms <= alive_at_ms:
                raise Violation("lease", f"{where} extends lease {lease_id.hex()}, which had ended")
            return
        message = self.messages[row.message_id]
        what = f"{where} claims {row.message_id.hex()}"
        if message.end or lease_id in self.every_lease:
            raise Violation("lease", f"{what}, which is {message.end or 'under a lease of an old name'}")
        if message.lease_id:
            raise Violation("lease", f"{what} under {lease_id.hex()} while {message.lease_id.hex()} is current")
        if message.due_ms is None or message.due_ms > self.log_time_ms or fact.expire_at_ms <= self.log_time_ms:
            raise Violation("lease", f"{what} at {self.log_time_ms}, due at {message.due_ms}")
        # One that was never listed needs no fact that takes it off the list.
        listed: bytes | None = None if row.message_id in self._unlisted else b""
        if facts.get(keys.due_key(DATABASE, row.queue, message.due_ms, row.message_id), listed) is not None:
            raise Violation("lease", f"{what} and lets it wait as well")
        message.lease_id, message.due_ms = lease_id, None
        message.claimed_ms = self.log_time_ms if message.claimed_ms is None else message.claimed_ms
        self._unlisted.pop(row.message_id, None)
        self.every_lease[lease_id] = row.message_id

    # Crons.

    def _crons(self, facts: Facts) -> None:
        for key, fact in _of(facts, b"c"):
            name = keys.cron_of_key(key)
            known = self.crons.get(name)
            if fact is None:
                self.crons.pop(name, None)
                continue
            row = rows.CronRow.FromString(fact.value)
            if known is None or known.schedule != row.schedule:
                self.crons[name] = Cron(row.schedule, self.log_time_ms, row.allow_overlap)
            else:
                known.allow_overlap = row.allow_overlap

    def _fired(self, row: rows.MessageRow) -> None:
        what = f"the tick {row.scheduled_at_ms} of cron '{row.cron}'"
        if (row.cron, row.scheduled_at_ms) in self.ticks:
            raise Violation("cron", f"{what} is fired twice")
        self.ticks[row.cron, row.scheduled_at_ms] = None
        cron = self.crons.get(row.cron)
        if cron is None:
            raise Violation("cron", f"{what} is fired, and there is no such cron")
        step_ms = step_of(cron.schedule) * cron_schedule.MINUTE_MS
        if row.scheduled_at_ms % step_ms or not cron.since_ms < row.scheduled_at_ms <= self.log_time_ms:
            raise Violation("cron", f"{what} is none, or not due at {self.log_time_ms}")
        if self.log_time_ms >= row.scheduled_at_ms + step_ms:
            raise Violation("cron", f"{what} is fired at {self.log_time_ms}, when a newer one has passed")
        if cron.fired and cron.fired[-1] > row.scheduled_at_ms:
            raise Violation("cron", f"{what} is fired after a later one")
        cron.fired.append(row.scheduled_at_ms)

    # What stands outside of the queues.

    def _user_keys(self, facts: Facts, dead: set[bytes], where: str) -> None:
        given_up = [self.messages[each].row for each in sorted(dead)]
        promised = {key: row for row in given_up for key in row.keys_if_undelivered}
        for key, row in promised.items():
            fact = facts.get(_USER + key)
            if fact is None or fact.value != row.payload:
                raise Violation("dead-letter", f"{where} does not write the payload to {key!r}")
        for key, fact in facts.items():
            if key.startswith(_USER + UNDELIVERED) and fact and key[4:] not in promised:
                raise Violation("dead-letter", f"{where} writes {key!r}, and its message is not given up")
            if key.startswith(_USER + EFFECT) and fact:
                message_id = key[4 + len(EFFECT) :]
                gone = facts.get(keys.message_key(DATABASE, message_id), b"") is None
                if not gone or int.from_bytes(fact.value, "little") != 1:
                    raise Violation("effects", f"{where} writes the effect of {message_id.hex()} twice, or without ack")


def step_of(schedule: str) -> int:
    """Minutes between the ticks of "* * * * *" or "*/n * * * *"."""
    first = schedule.split(maxsplit=1)[0]
    return 1 if first == "*" else int(first.removeprefix("*/"))


def _of(facts: Facts, kind: bytes) -> list[tuple[bytes, log_pb2.Fact | None]]:
    return [(key, fact) for key, fact in facts.items() if key.startswith(SPACE + kind)]
