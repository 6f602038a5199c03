"""What the queue part of a request must satisfy before anything is looked up: the limits of Deno's server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.machine.queue.cron import validate_cron_name
from kvnode.machine.queue.cron_schedule import parse_schedule
from kvnode.machine.queue.errors import bad_deadline, unknown_action
from kvnode.machine.queue.keys import ID_BYTES
from kvnode.machine.queue.push import validate_note, validate_push
from kvnode.proto.kv.v1 import kv_pb2

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")
_ENCODINGS = frozenset(map(int, (kv_pb2.VALUE_ENCODING_V8, kv_pb2.VALUE_ENCODING_LE64, kv_pb2.VALUE_ENCODING_BYTES)))
_LE64 = int(kv_pb2.VALUE_ENCODING_LE64)
_BACKOFF_BYTES = 4


@lru_cache(maxsize=1024)
def validate_queue_name(name: str) -> None:
    """Raises InvalidRequest: BAD_QUEUE_NAME. Empty is the default queue."""
    if name and (len(name) > limits.MAX_QUEUE_NAME_BYTES or not _NAME.fullmatch(name)):
        raise InvalidRequest(
            "BAD_QUEUE_NAME",
            f"A queue cannot be called '{name[:120]}': a name has 1 to {limits.MAX_QUEUE_NAME_BYTES} letters, digits "
            "and any of _ . : / - after the first.",
        )


def validate_enqueue(enqueue: kv_pb2.Enqueue, position: int) -> tuple[int, int]:
    """Bytes of its keys and of the rest.

    Raises:
        InvalidRequest: BAD_QUEUE_NAME, PAYLOAD_TOO_LARGE, UNKNOWN_ENCODING, LE64_NOT_8_BYTES, BAD_DEADLINE,
            TOO_MANY_KEYS_IF_UNDELIVERED, EMPTY_KEY, KEY_TOO_LARGE, TOO_MANY_BACKOFF_INTERVALS, BACKOFF_TOO_LONG.
    """
    validate_queue_name(enqueue.queue)
    payload = enqueue.payload
    payload_bytes = len(payload.data)
    if payload_bytes > limits.MAX_VALUE_BYTES:
        raise InvalidRequest(
            "PAYLOAD_TOO_LARGE",
            f"enqueue payload too large (max {limits.MAX_VALUE_BYTES} bytes). That of enqueue {position} has "
            f"{payload_bytes} bytes: put it under a key, and the key in the message.",
        )
    _check_encoding(payload.encoding, payload_bytes, position)
    delay_ms, due_at_ms = enqueue.delay_ms, enqueue.due_at_ms
    if due_at_ms and delay_ms:
        raise bad_deadline(f"Enqueue {position} has both a delay and a point in time")
    if not 0 <= delay_ms <= limits.MAX_QUEUE_DELAY_MS or due_at_ms < 0:
        raise bad_deadline(f"That of enqueue {position} is {delay_ms or due_at_ms}")
    undelivered, intervals = enqueue.keys_if_undelivered, enqueue.backoff_intervals_ms
    key_bytes = _check_keys(undelivered, position) if undelivered else 0
    if not intervals:
        return key_bytes, payload_bytes
    _check_schedule(intervals, position)
    return key_bytes, payload_bytes + _BACKOFF_BYTES * len(intervals)


def validate_actions(request: kv_pb2.AtomicWriteRequest) -> None:
    """Raises InvalidRequest: UNKNOWN_QUEUE_ACTION, BAD_QUEUE_NAME, BAD_LEASE, BAD_LEASE_TIME, BAD_DEADLINE,
    BAD_COUNT, TOO_MANY_QUEUE_ACTIONS, CONSUMER_NAME_TOO_LONG, BAD_CRON_NAME, BAD_CRON_SCHEDULE, and what
    validate_enqueue and push.validate_push raise."""
    touched = sum(map(validate_action, request.actions))
    if touched > limits.MAX_QUEUE_TOUCHED_COUNT:
        raise InvalidRequest(
            "TOO_MANY_QUEUE_ACTIONS",
            f"The queue actions of this write may touch {touched} messages; the limit is "
            f"{limits.MAX_QUEUE_TOUCHED_COUNT}: split it into several writes.",
        )


def validate_pull(pull: kv_pb2.QueuePull) -> None:
    """Raises InvalidRequest: BAD_QUEUE_NAME, BAD_COUNT, BAD_LEASE_TIME, CONSUMER_NAME_TOO_LONG."""
    if pull.cancel:
        validate_queue_name(pull.queue)
        return
    claim = kv_pb2.QueueClaim(
        queue=pull.queue, max_count=pull.max_count, consumer=pull.consumer, lease_ms=pull.lease_ms
    )
    validate_action(kv_pb2.QueueAction(claim=claim))


def _check_encoding(encoding: int, payload_bytes: int, position: int) -> None:
    if encoding not in _ENCODINGS:
        raise InvalidRequest(
            "UNKNOWN_ENCODING",
            f"The value encoding {encoding} is unknown. Enqueue {position} needs 1 (V8), 2 (LE64) or 3 (bytes).",
        )
    if encoding == _LE64 and payload_bytes != 8:
        raise InvalidRequest(
            "LE64_NOT_8_BYTES",
            f"Invalid mutation kind or arguments. The LE64 payload of enqueue {position} has {payload_bytes} "
            "bytes: a KvU64 is exactly 8, little-endian.",
        )


def _check_keys(undelivered: Sequence[bytes], position: int) -> int:
    if len(undelivered) > limits.MAX_KEYS_IF_UNDELIVERED_COUNT:
        raise InvalidRequest(
            "TOO_MANY_KEYS_IF_UNDELIVERED",
            f"Too many dead letter keys for a single queue message. Enqueue {position} has {len(undelivered)}; the "
            f"limit is {limits.MAX_KEYS_IF_UNDELIVERED_COUNT}.",
        )
    for key in undelivered:
        if not key:
            raise InvalidRequest(
                "EMPTY_KEY", f"key cannot be empty: a dead letter key of enqueue {position} has no parts."
            )
        if len(key) > limits.MAX_WRITE_KEY_BYTES:
            raise InvalidRequest(
                "KEY_TOO_LARGE",
                f"A key exceeds the key size limit. A dead letter key of enqueue {position} has {len(key)} bytes; the "
                f"limit is {limits.MAX_WRITE_KEY_BYTES}.",
            )
    return sum(map(len, undelivered))


def _check_schedule(intervals: Sequence[int], position: int) -> None:
    if len(intervals) > limits.MAX_BACKOFF_INTERVALS_COUNT:
        raise InvalidRequest(
            "TOO_MANY_BACKOFF_INTERVALS",
            f"Too many backoff intervals for a single queue message. Enqueue {position} has {len(intervals)}; the "
            f"limit is {limits.MAX_BACKOFF_INTERVALS_COUNT}.",
        )
    if max(intervals) > limits.MAX_BACKOFF_INTERVAL_MS:
        raise InvalidRequest(
            "BACKOFF_TOO_LONG",
            f"A backoff interval exceeds the maximum allowed backoff interval. Enqueue {position} has one of "
            f"{max(intervals)} ms; the limit is {limits.MAX_BACKOFF_INTERVAL_MS}.",
        )


def validate_action(action: kv_pb2.QueueAction) -> int:
    """How many messages it may touch. Raises InvalidRequest, as validate_actions."""
    kind = action.WhichOneof("action")
    if kind == "ack":  # of these there are as many as messages
        _check_lease(action.ack.lease)
        return 1
    if kind is None:
        raise unknown_action()
    named = getattr(action, kind)
    if kind in ("cron_set", "cron_delete"):
        _check_cron(named)
        return 1
    if kind in ("nack", "extend", "release"):
        _check_lease(named.lease)
    else:
        validate_queue_name(named.queue)
    if kind in ("claim", "extend"):
        _check_lease_time(named.lease_ms)
    if kind == "nack" and not 0 <= named.delay_ms <= limits.MAX_QUEUE_DELAY_MS:
        raise bad_deadline(f"That of a nack is {named.delay_ms}")
    if kind == "configure" and named.max_messages_count > limits.HARD_MAX_QUEUE_MESSAGES_COUNT:
        raise _bad_count(named.max_messages_count, limits.HARD_MAX_QUEUE_MESSAGES_COUNT)
    if kind == "configure" and named.HasField("push"):
        validate_push(named.push)
    if kind == "push_note":
        validate_note(named)
    if kind == "claim" and len(named.consumer.encode()) > limits.MAX_QUEUE_CONSUMER_BYTES:
        raise InvalidRequest(
            "CONSUMER_NAME_TOO_LONG",
            f"A consumer's name has at most {limits.MAX_QUEUE_CONSUMER_BYTES} bytes; shorten it.",
        )
    if kind == "claim" or (kind in ("requeue", "purge") and not named.dead_letter):
        if not 0 < named.max_count <= limits.MAX_QUEUE_TOUCHED_COUNT:
            raise _bad_count(named.max_count, limits.MAX_QUEUE_TOUCHED_COUNT)
        return int(named.max_count)
    return 1


def _check_cron(named: kv_pb2.CronSet | kv_pb2.CronDelete) -> None:
    validate_cron_name(named.name)
    if isinstance(named, kv_pb2.CronDelete):
        return
    parse_schedule(named.schedule)
    validate_enqueue(named.message, 0)
    if named.message.delay_ms or named.message.due_at_ms:
        raise bad_deadline("A cron's message has no delay of its own")


def _check_lease(lease: bytes) -> None:
    if len(lease) != ID_BYTES:
        raise InvalidRequest(
            "BAD_LEASE", f"A lease is {ID_BYTES} bytes, as the message it came with has it; this one has {len(lease)}."
        )


def _check_lease_time(lease_ms: int) -> None:
    if lease_ms and not limits.MIN_QUEUE_LEASE_MS <= lease_ms <= limits.MAX_QUEUE_LEASE_MS:
        raise InvalidRequest(
            "BAD_LEASE_TIME",
            f"A lease lasts {limits.MIN_QUEUE_LEASE_MS} to {limits.MAX_QUEUE_LEASE_MS} ms, not {lease_ms}: take a "
            "shorter one and extend it while the handler runs.",
        )


def _bad_count(count: int, bound: int) -> InvalidRequest:
    return InvalidRequest("BAD_COUNT", f"A queue action names the count {count}: give one of 1 to {bound}.")
