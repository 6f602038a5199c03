"""The bodies of requests: JSON to the messages of the protocol."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from kvnode.api.queue_http.fields import Fields
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.codec.json_keys import key_from_parts
from kvnode.codec.keys import encode_key
from kvnode.machine.queue.keys import ID_BYTES as LEASE_BYTES
from kvnode.machine.queue.validate import validate_action, validate_enqueue, validate_queue_name
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

ENCODINGS = {
    "v8": kv_pb2.VALUE_ENCODING_V8,
    "le64": kv_pb2.VALUE_ENCODING_LE64,
    "bytes": kv_pb2.VALUE_ENCODING_BYTES,
}
TIMEOUT_HEADER = "x-kvnode-timeout-ms"
_MAX_TIMEOUT_DIGITS_COUNT = 15  # int() itself refuses some thousands of them
_MAX_COUNT = limits.MAX_CONSUMER_IN_FLIGHT_COUNT
_MAX_DELAY_MS = (1 << 63) - 1  # that the field holds: validate.py says what is wrong with less
_MAX_INTERVAL_MS = (1 << 32) - 1


class Listen(NamedTuple):
    """What is listened to, and how many messages may be held, those in `opening.held` among them."""

    opening: queue_pb2.ListenOpen
    credit: int


class Settle(NamedTuple):
    """What is done to which leases; `leaving`: their listeners are to be sent nothing more."""

    actions: list[tuple[bytes, kv_pb2.QueueAction]]
    extensions: list[bytes]
    lease_ms: int
    leaving: bool


def parse_listen(queue: str, body: bytes) -> Listen:
    """The listener that a body asks for. Raises InvalidRequest."""
    validate_queue_name(queue)
    fields = Fields.of(body)
    held = [_lease(found) for found in fields.items("held")]
    opening = queue_pb2.ListenOpen(
        queue=queue,
        consumer=fields.text("consumer", ""),
        lease_ms=fields.integer("lease_ms", 0, limits.MAX_QUEUE_LEASE_MS, 0),
        held=held,
    )
    credit = fields.integer("credit", 0, _MAX_COUNT, 1)
    fields.end()
    if len(held) > credit or len(set(held)) < len(held):
        raise InvalidRequest(
            "TOO_MUCH_CREDIT",
            f"`held` names {len(held)} leases, and `credit` is {credit}: it counts them in, once each.",
        )
    return Listen(opening, credit)


def parse_settle(queue: str, body: bytes) -> Settle:
    """What a body does to which leases. Raises InvalidRequest."""
    validate_queue_name(queue)
    fields = Fields.of(body)
    actions = [_ack(_lease(found)) for found in fields.items("ack")]
    actions += [_nack(found) for found in fields.items("nack")]
    actions += [_release(_lease(found), unseen=False) for found in fields.items("release")]
    actions += [_release(_lease(found), unseen=True) for found in fields.items("unseen")]
    extensions = [_lease(found) for found in fields.items("extend")]
    lease_ms = fields.integer("lease_ms", 0, limits.MAX_QUEUE_LEASE_MS, 0)
    leaving = fields.flag("leaving")
    fields.end()
    for _, action in actions:
        validate_action(action)
    if lease_ms:
        validate_action(kv_pb2.QueueAction(extend=kv_pb2.QueueExtend(lease=bytes(LEASE_BYTES), lease_ms=lease_ms)))
    count = len(actions) + len(extensions)
    if not 0 < count <= _MAX_COUNT:
        raise InvalidRequest("BAD_COUNT", f"{count} leases are named: give 1 to {_MAX_COUNT}.")
    return Settle(actions, extensions, lease_ms, leaving)


def parse_timeout_ms(header: str) -> int | None:
    """How long the client waits, in milliseconds, the node's own bound at most; None without the header.

    Raises:
        InvalidRequest: BAD_TIMEOUT.
    """
    if not header:
        return None
    is_number = header.isascii() and header.isdecimal() and len(header) <= _MAX_TIMEOUT_DIGITS_COUNT
    if not is_number or not int(header):
        raise InvalidRequest(
            "BAD_TIMEOUT",
            f"{TIMEOUT_HEADER} is {header!r:.60}: give 1 to {limits.CONNECT_HOLD_TIMEOUT_MS} milliseconds.",
        )
    return min(int(header), limits.CONNECT_HOLD_TIMEOUT_MS)


def parse_enqueue(queue: str, body: bytes) -> kv_pb2.AtomicWriteRequest:
    """The transaction that a body asks for. Raises InvalidRequest."""
    validate_queue_name(queue)
    fields = Fields.of(body)
    messages = fields.items("messages")
    fields.end()
    if not 0 < len(messages) <= limits.MAX_QUEUE_TOUCHED_COUNT:
        raise InvalidRequest(
            "BAD_COUNT", f"`messages` has {len(messages)}: give 1 to {limits.MAX_QUEUE_TOUCHED_COUNT} at a time."
        )
    request = kv_pb2.AtomicWriteRequest()
    for position, message in enumerate(messages):
        enqueue = _enqueue(queue, message, position)
        validate_enqueue(enqueue, position)
        request.enqueues.append(enqueue)
    return request


def _enqueue(queue: str, message: object, position: int) -> kv_pb2.Enqueue:
    where = f"message {position}"
    fields = Fields(message, where)
    data = _base64(fields.text("payload"), where)
    name = fields.text("encoding")
    if name not in ENCODINGS:
        raise InvalidRequest("UNKNOWN_ENCODING", f"The encoding of {where} must be one of {', '.join(ENCODINGS)}.")
    enqueue = kv_pb2.Enqueue(
        queue=queue,
        payload=kv_pb2.Value(data=data, encoding=ENCODINGS[name]),
        delay_ms=fields.integer("delay_ms", -_MAX_DELAY_MS, _MAX_DELAY_MS, 0),
        keys_if_undelivered=[_key(found, where) for found in fields.items("keys_if_undelivered")],
    )
    if fields.has("backoff_schedule"):
        intervals = fields.items("backoff_schedule")
        schedule = Fields({str(at): found for at, found in enumerate(intervals)}, f"the back-off schedule of {where}")
        for at in range(len(intervals)):
            enqueue.backoff_intervals_ms.append(schedule.integer(str(at), 0, _MAX_INTERVAL_MS))
        enqueue.no_retries = not intervals
    fields.end()
    return enqueue


def _key(found: object, where: str) -> bytes:
    try:
        return encode_key(key_from_parts(found))
    except (OverflowError, RecursionError):
        raise InvalidRequest("BAD_KEY_JSON", f"A key of {where} has a number that no key can hold.") from None


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("MALFORMED_REQUEST", f"The payload of {where} is no base64.") from None


def _ack(lease: bytes) -> tuple[bytes, kv_pb2.QueueAction]:
    return lease, kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=lease))


def _release(lease: bytes, *, unseen: bool) -> tuple[bytes, kv_pb2.QueueAction]:
    return lease, kv_pb2.QueueAction(release=kv_pb2.QueueRelease(lease=lease, unseen=unseen))


def _nack(found: object) -> tuple[bytes, kv_pb2.QueueAction]:
    fields = Fields(found, "a nack")
    nack = kv_pb2.QueueNack(lease=_lease(fields.text("lease")))
    if fields.has("delay_ms"):
        nack.delay_ms = fields.integer("delay_ms", -_MAX_DELAY_MS, _MAX_DELAY_MS, 0)
    fields.end()
    return nack.lease, kv_pb2.QueueAction(nack=nack)


def _lease(found: object) -> bytes:
    try:
        lease = bytes.fromhex(found) if isinstance(found, str) else b""
    except ValueError:
        lease = b""
    if len(lease) != LEASE_BYTES:
        raise InvalidRequest("BAD_LEASE", "A lease is 24 hexadecimal digits, as the message it came with has it.")
    return lease
