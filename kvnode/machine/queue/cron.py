"""Crons: messages that are sent at the ticks of a schedule.

Theory of operation. A cron is three rows (keys.py): its own, what it sends, and an empty one that expires at its next
tick. So the leader finds the tick as it finds an expired key or lease, by the index on expiry, and judges it by log
time in its tick's entry. What happens then is part of that one transaction: the message goes into its queue, and the
cron moves on to the first tick later than the log time. Ticks of a cron are therefore fired in ascending order, each
once at most, whoever leads: an entry that did not commit changed nothing, and one that did has moved the row. A cron
that is deleted and made again begins later than the log time too, which no tick that was fired exceeds.

Late. While nobody leads, nothing is fired. The next leader's first tick finds the row due and fires once: the newest
tick that has passed. The ones before it are passed over and counted (missed_total). The same happens while the queue
has no room: the row is looked at again every CRON_RETRY_MS, and `blocked_by` says why.

Overlap. As for Deno.cron, a tick that comes while the message of the one before is still undelivered, or being handled,
sends nothing and is counted (skipped_total), unless the cron allows it.
"""

from __future__ import annotations

import re
from typing import Protocol

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.codec.row import Row
from kvnode.machine.queue import errors, keys
from kvnode.machine.queue.cron_schedule import parse_schedule
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2

_NAME = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_ -]*[A-Za-z0-9_-])?")
_PLAIN = 0  # the encoding of a row that is no user's value


class CronRows(Protocol):
    """What a transaction in the making can read and write (transaction.py, TransactionRows)."""

    def live(self, key: bytes) -> Row | None:
        """The newest row, unless it has expired."""

    def scan_applied(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """Rows of the applied state, in key order."""

    def put(self, row: Row) -> None:
        """A fact: this row."""

    def remove(self, key: bytes) -> None:
        """A fact: no such row."""


class Messages(Protocol):
    """The queues of the same transaction (QueueTransaction)."""

    now_ms: int

    def message_of(self, request: kv_pb2.Enqueue) -> rows.MessageRow:
        """What is to be delivered."""

    def require_queue(self, name: str) -> None:
        """Make the queue if there is none. Raises InvalidRequest: TOO_MANY_QUEUES."""

    def send(self, message: rows.MessageRow) -> bytes:
        """A message that is due now; its id. Raises InvalidRequest: QUEUE_FULL, TOO_MANY_QUEUES."""


def validate_cron_name(name: str) -> None:
    """Raises InvalidRequest: BAD_CRON_NAME."""
    if len(name.encode()) > limits.MAX_CRON_NAME_BYTES or not _NAME.fullmatch(name):
        raise InvalidRequest(
            "BAD_CRON_NAME",
            f"A cron cannot be called '{name[:120]}': a name has 1 to {limits.MAX_CRON_NAME_BYTES} letters, digits, "
            "spaces, _ and -, and no space at either end.",
        )


class Crons:
    """The crons of one database in one transaction.

    Args:
        access: the transaction.
        database: whose crons.
        stamp: the transaction's versionstamp.
        messages: its queues.
    """

    __slots__ = ("_access", "_database", "_messages", "_now_ms", "_stamp")

    def __init__(self, access: CronRows, database: int, stamp: bytes, messages: Messages) -> None:
        self._access = access
        self._database = database
        self._stamp = stamp
        self._messages = messages
        self._now_ms = messages.now_ms

    def set(self, request: kv_pb2.CronSet) -> int:
        """Make or change a cron, which has been validated; returns its next tick.

        Raises:
            InvalidRequest: CRON_EXISTS, TOO_MANY_CRONS, TOO_MANY_QUEUES.
        """
        name = request.name
        cron = self._find(name)
        if cron is None:
            self._require_place()
            cron = rows.CronRow(created_at_ms=self._now_ms)
        elif request.must_be_new:
            raise errors.cron_exists(name)
        body = self._messages.message_of(request.message)
        body.cron = name
        self._messages.require_queue(body.queue)
        self._put(keys.cron_body_key(self._database, name), body.SerializeToString())
        cron.queue, cron.allow_overlap = body.queue, request.allow_overlap
        if cron.schedule != request.schedule:
            cron.schedule = request.schedule
            cron.next_at_ms = parse_schedule(cron.schedule).next_after(self._now_ms) or 0
            cron.blocked_by = ""
            self._look_again(name, cron.next_at_ms)
        self._put_cron(name, cron)
        return cron.next_at_ms

    def delete(self, name: str) -> None:
        """Remove a cron. What it has sent stays. Raises InvalidRequest: CRON_NOT_FOUND."""
        if self._find(name) is None:
            raise errors.cron_not_found(name)
        for key in (keys.cron_key, keys.cron_body_key, keys.cron_tick_key):
            self._access.remove(key(self._database, name))

    def tick(self, row: Row) -> int | None:
        """The time of a cron's tick row has come; returns by how many ms the tick that is fired is late, or None."""
        name = keys.cron_of_key(row.key)
        cron = self._find(name)
        body = self._access.live(keys.cron_body_key(self._database, name))
        if cron is None or body is None:  # its database is being removed
            self._access.remove(row.key)
            return None
        late_ms = self._fire(cron, rows.MessageRow.FromString(body.value))
        self._look_again(name, self._now_ms + limits.CRON_RETRY_MS if cron.blocked_by else cron.next_at_ms)
        self._put_cron(name, cron)
        return late_ms

    def _fire(self, cron: rows.CronRow, message: rows.MessageRow) -> int | None:
        """Send the message of the newest tick that has passed, and move on; or stay when it finds no room."""
        schedule = parse_schedule(cron.schedule)
        scheduled_at_ms = max(schedule.latest_until(self._now_ms) or 0, cron.next_at_ms)
        sent = False
        if cron.allow_overlap or not self._is_unhandled(cron.last_message_id):
            message.enqueued_at_ms, message.scheduled_at_ms = self._now_ms, scheduled_at_ms
            try:
                cron.last_message_id = self._messages.send(message)
            except InvalidRequest as error:
                cron.blocked_by = error.code
                return None
            cron.last_at_ms, cron.fired_at_ms = scheduled_at_ms, self._now_ms
            cron.fired_total += 1
            sent = True
        else:
            cron.skipped_total += 1
        cron.blocked_by = ""
        cron.missed_total += schedule.count_between(cron.next_at_ms, scheduled_at_ms)
        cron.next_at_ms = schedule.next_after(self._now_ms) or 0
        return self._now_ms - scheduled_at_ms if sent else None

    def _is_unhandled(self, message_id: bytes) -> bool:
        return bool(message_id) and self._access.live(keys.message_key(self._database, message_id)) is not None

    def _find(self, name: str) -> rows.CronRow | None:
        row = self._access.live(keys.cron_key(self._database, name))
        return None if row is None else rows.CronRow.FromString(row.value)

    def _put_cron(self, name: str, cron: rows.CronRow) -> None:
        self._put(keys.cron_key(self._database, name), cron.SerializeToString())

    def _put(self, key: bytes, value: bytes, expire_at_ms: int = 0) -> None:
        self._access.put(Row(key, value, _PLAIN, self._stamp, expire_at_ms))

    def _look_again(self, name: str, at_ms: int) -> None:
        key = keys.cron_tick_key(self._database, name)
        if at_ms:
            self._put(key, b"", at_ms)
        else:
            self._access.remove(key)

    def _require_place(self) -> None:
        start, end = keys.cron_bounds(self._database)
        bound = limits.MAX_CRONS_COUNT
        if len(self._access.scan_applied(start, end, bound)) >= bound:
            raise errors.too_many_crons(bound)
