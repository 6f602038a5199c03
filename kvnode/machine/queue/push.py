"""A queue's push: where its messages are POSTed, as `configure` sets it. Pushing is the leader's (node/push).

It is a row of its own beside the queue's, because that one is written by every transaction. Whoever changes one also
writes PUSH_VERSION_KEY, so that a node that follows the changes looks for one key in each run of the log.
"""

from __future__ import annotations

import base64
import binascii
from typing import Protocol

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.codec.row import Row
from kvnode.machine.queue import keys
from kvnode.machine.queue.push_url import parse_push_url
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2

SECRET_PREFIX = "whsec_"
_PLAIN = 0  # the encoding of a row that is no user's value


class PushRows(Protocol):
    """The part of a transaction's access to rows that is needed."""

    def live(self, key: bytes) -> Row | None:
        """The row as the transaction sees it."""

    def put(self, row: Row) -> None:
        """A fact: this row."""

    def remove(self, key: bytes) -> None:
        """A fact: no such row."""


def encode_secret(key: bytes) -> str:
    """The key of the signatures as Standard Webhooks writes it."""
    return SECRET_PREFIX + base64.b64encode(key).decode()


def decode_secret(secret: str) -> bytes:
    """The key of the signatures. Raises InvalidRequest: BAD_PUSH_SECRET."""
    try:
        if not secret.startswith(SECRET_PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if not limits.MIN_PUSH_KEY_BYTES <= len(key) <= limits.MAX_PUSH_KEY_BYTES:
        raise InvalidRequest(
            "BAD_PUSH_SECRET",
            f"A push's secret is '{SECRET_PREFIX}' and the base64 of {limits.MIN_PUSH_KEY_BYTES} to "
            f"{limits.MAX_PUSH_KEY_BYTES} bytes, as Standard Webhooks has it. Without one, `kvnode queue push` "
            "makes one and prints it once.",
        )
    return key


def validate_push(push: kv_pb2.QueuePush) -> None:
    """Raises InvalidRequest: BAD_PUSH_URL, BAD_PUSH_SECRET, BAD_PUSH_LIMIT."""
    if push.url:
        parse_push_url(push.url)
    if push.secret:
        decode_secret(push.secret)
    if push.concurrency > limits.MAX_PUSH_CONCURRENCY_COUNT:
        raise _bad_limit("concurrency", push.concurrency, 1, limits.MAX_PUSH_CONCURRENCY_COUNT)
    if push.timeout_ms and not limits.MIN_PUSH_TIMEOUT_MS <= push.timeout_ms <= limits.MAX_PUSH_TIMEOUT_MS:
        raise _bad_limit("timeout in ms", push.timeout_ms, limits.MIN_PUSH_TIMEOUT_MS, limits.MAX_PUSH_TIMEOUT_MS)


def validate_note(note: kv_pb2.QueuePushNote) -> None:
    """Raises InvalidRequest: BAD_PUSH_LIMIT."""
    if len(note.error) > limits.MAX_PUSH_ERROR_CHARACTERS_COUNT:
        raise _bad_limit("error in characters", len(note.error), 0, limits.MAX_PUSH_ERROR_CHARACTERS_COUNT)


def changed(present: rows.PushRow, wanted: kv_pb2.QueuePush) -> rows.PushRow:
    """A push after `configure`: what is not named stays, and a failure that was noted is forgotten.

    Args:
        present: empty if there is none.
        wanted: validated.

    Raises:
        InvalidRequest: PUSH_NOT_CONFIGURED, PUSH_SECRET_MISSING.
    """
    url = wanted.url or present.url
    if not url:
        raise InvalidRequest("PUSH_NOT_CONFIGURED", "The queue is not pushed yet: name a URL with `--url`.")
    key = decode_secret(wanted.secret) if wanted.secret else present.key
    if not key:
        raise InvalidRequest("PUSH_SECRET_MISSING", "A queue that was not pushed so far needs a secret with its URL.")
    return rows.PushRow(
        url=url,
        key=key,
        concurrency=wanted.concurrency or present.concurrency,
        timeout_ms=wanted.timeout_ms or present.timeout_ms,
    )


class Pushes:
    """The pushes of one database in one transaction.

    Args:
        access: the transaction.
        database: whose queues.
        stamp: the transaction's versionstamp.
    """

    __slots__ = ("_access", "_database", "_stamp")

    def __init__(self, access: PushRows, database: int, stamp: bytes) -> None:
        self._access = access
        self._database = database
        self._stamp = stamp

    def set(self, queue: str, wanted: kv_pb2.QueuePush) -> None:
        """Push a queue, or push it otherwise. Raises InvalidRequest, as `changed`."""
        self._put(queue, changed(self._find(queue) or rows.PushRow(), wanted))
        self._has_changed()

    def remove(self, queue: str) -> None:
        """Push it no longer."""
        if self._find(queue) is not None:
            self._access.remove(keys.push_key(self._database, queue))
            self._has_changed()

    def note(self, note: kv_pb2.QueuePushNote, now_ms: int) -> None:
        """Why nothing is pushed. It changes nothing about how the queue is to be pushed."""
        queue = note.queue or keys.DEFAULT_QUEUE
        present = self._find(queue)
        if present is not None and present.error != note.error:
            present.error = note.error
            present.failing_since_ms = now_ms if note.error else 0
            self._put(queue, present)

    def _find(self, queue: str) -> rows.PushRow | None:
        row = self._access.live(keys.push_key(self._database, queue))
        return None if row is None else rows.PushRow.FromString(row.value)

    def _put(self, queue: str, push: rows.PushRow) -> None:
        key = keys.push_key(self._database, queue)
        self._access.put(Row(key, push.SerializeToString(), _PLAIN, self._stamp))

    def _has_changed(self) -> None:
        self._access.put(Row(keys.PUSH_VERSION_KEY, b"", _PLAIN, self._stamp))


def _bad_limit(name: str, value: int, least: int, most: int) -> InvalidRequest:
    return InvalidRequest("BAD_PUSH_LIMIT", f"A push's {name} is {least} to {most}, not {value}.")
