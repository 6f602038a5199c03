"""Transactions: checks and mutations that are applied together or not at all."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from kvnode.base.errors import InvalidRequest
from kvnode.client.numbers import parse_backoff_ms, parse_delay_ms, whole_number
from kvnode.client.queue import QueueMessage
from kvnode.client.results import CommitResult, Entry, parse_versionstamp
from kvnode.client.texts import QUEUE_NAME, sendable
from kvnode.codec.keys import AnyKey, KeyPart, PartSequence, encode_key, prefix_range
from kvnode.codec.values import KvU64, encode_payload, encode_v8, encode_value
from kvnode.proto.kv.v1 import kv_pb2

_T = TypeVar("_T")
Commit = Callable[[kv_pb2.AtomicWriteRequest, int | None], Awaitable[kv_pb2.AtomicWriteResponse]]

_MAX_MS: Final = 1 << 62  # a time of which the sum with any other fits into a message


class CommitVersionstamp:
    """Stands, as the last part of a key, for the versionstamp that the commit will have."""

    def __repr__(self) -> str:
        return "commit_versionstamp()"


COMMIT_VERSIONSTAMP: Final = CommitVersionstamp()
WritableKey = PartSequence[KeyPart | CommitVersionstamp]


class AtomicOperation:
    """A transaction in the making; every method but commit returns it, so that calls can be chained.

    Mutations are applied in their order, later ones seeing earlier ones, after all checks have held.
    """

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._acked: list[QueueMessage] = []
        self.request = kv_pb2.AtomicWriteRequest()

    def check(self, entry_or_key: Entry | AnyKey, versionstamp: str | None = None) -> AtomicOperation:
        """Commit only if a key still has a versionstamp.

        Args:
            entry_or_key: an entry as it was read, whose versionstamp then counts, or a key.
            versionstamp: for a key: what it must have; None = it must not exist.
        """
        if isinstance(entry_or_key, Entry):
            key, versionstamp = entry_or_key.encoded_key, entry_or_key.versionstamp
        else:
            key = encode_key(entry_or_key)
        self.request.checks.add(key=key, versionstamp=parse_versionstamp(versionstamp) if versionstamp else b"")
        return self

    def set(self, key: WritableKey, value: object, *, expire_in: int | None = None) -> AtomicOperation:
        """Set a key.

        Args:
            key: its last part may be commit_versionstamp().
            value: what codec/values.py can write: JSON-like values, bytes, KvU64, datetime, ...
            expire_in: milliseconds until the entry is gone; None = it stays.
        """
        data, encoding = encode_value(value)
        return self.set_raw(key, data, encoding, expire_in=expire_in)

    def set_raw(self, key: WritableKey, data: bytes, encoding: int, *, expire_in: int | None = None) -> AtomicOperation:
        """As set, with the value as stored: its bytes and kv.v1.ValueEncoding."""
        kind = kv_pb2.MUTATION_TYPE_SET
        if isinstance(key, tuple | list) and key and isinstance(key[-1], CommitVersionstamp):
            kind = kv_pb2.MUTATION_TYPE_SET_SUFFIX_VERSIONSTAMPED_KEY
            key = key[:-1]
        encoded = encode_key(key)  # type: ignore[arg-type]  # a marker elsewhere is refused there
        value = kv_pb2.Value(data=data, encoding=encoding)  # type: ignore[arg-type]
        self.request.mutations.add(type=kind, key=encoded, value=value, expire_at_ms=_expire_at_ms(expire_in))
        return self

    def set_expiry(
        self, key: AnyKey, *, expire_in: int | None = None, expire_at_ms: int | None = None
    ) -> AtomicOperation:
        """Set when an entry goes away, and leave its value; its versionstamp is new, as after every write.

        Nothing happens if the key does not exist, or no longer does. Check an entry of it to be told.

        Args:
            key: of the entry.
            expire_in: milliseconds from now.
            expire_at_ms: or the time itself, milliseconds since 1970. One of the two; see clear_expiry for neither.
        """
        if (expire_in is None) == (expire_at_ms is None):
            raise InvalidRequest("BAD_EXPIRE_IN", "set_expiry takes expire_in or expire_at_ms, one of the two.")
        # 0 would mean never: a time before 1970 is over as 1 is.
        at = _expire_at_ms(expire_in) if expire_at_ms is None else whole_number(expire_at_ms, -_MAX_MS, _MAX_MS)
        if at is None:
            raise InvalidRequest("BAD_EXPIRE_IN", f"expire_at_ms is milliseconds since 1970, not {expire_at_ms!r}.")
        return self._add_expiry(key, max(1, at))

    def clear_expiry(self, key: AnyKey) -> AtomicOperation:
        """Have an entry stay until it is deleted. Otherwise as set_expiry."""
        return self._add_expiry(key, 0)

    def _add_expiry(self, key: AnyKey, expire_at_ms: int) -> AtomicOperation:
        kind = kv_pb2.MUTATION_TYPE_SET_EXPIRY
        self.request.mutations.add(type=kind, key=encode_key(key), expire_at_ms=expire_at_ms)
        return self

    def delete(self, key: AnyKey) -> AtomicOperation:
        """Delete a key; nothing happens if it does not exist."""
        self.request.mutations.add(type=kv_pb2.MUTATION_TYPE_DELETE, key=encode_key(key))
        return self

    def delete_range(self, start: AnyKey, end: AnyKey) -> AtomicOperation:
        """Delete every key from start to end, end excluded: at most MAX_DELETE_RANGE_KEYS_COUNT of them."""
        return self._delete_encoded(encode_key(start), encode_key(end))

    def delete_prefix(self, prefix: AnyKey) -> AtomicOperation:
        """Delete every key below a prefix, itself excluded: at most MAX_DELETE_RANGE_KEYS_COUNT of them."""
        return self._delete_encoded(*prefix_range(prefix))

    def _delete_encoded(self, start: bytes, end: bytes) -> AtomicOperation:
        self.request.mutations.add(type=kv_pb2.MUTATION_TYPE_DELETE_RANGE, key=start, end_key=end)
        return self

    def sum(
        self,
        key: AnyKey,
        value: int | float | KvU64,
        *,
        minimum: int | float | None = None,
        maximum: int | float | None = None,
        clamp: bool = False,
    ) -> AtomicOperation:
        """Add to a number; a key that does not exist becomes `value`.

        Args:
            key: of a KvU64, or of a V8 number or bigint if the operand is one.
            value: KvU64, or a plain int of 0 and more that stands for one: wraps at 2^64. A float or a BigInt is added
                to a stored number or bigint.
            minimum: the least that the result may be; for a float or BigInt operand only.
            maximum: the most that it may be.
            clamp: keep the result within the bounds rather than fail.
        """
        mutation = self._number(kv_pb2.MUTATION_TYPE_SUM, key, value)
        if minimum is not None:
            mutation.sum_min = encode_v8(minimum)
        if maximum is not None:
            mutation.sum_max = encode_v8(maximum)
        mutation.sum_clamp = clamp
        return self

    def min(self, key: AnyKey, value: int | KvU64) -> AtomicOperation:
        """Set a KvU64 to the smaller of itself and `value`."""
        self._number(kv_pb2.MUTATION_TYPE_MIN, key, value)
        return self

    def max(self, key: AnyKey, value: int | KvU64) -> AtomicOperation:
        """Set a KvU64 to the larger of itself and `value`."""
        self._number(kv_pb2.MUTATION_TYPE_MAX, key, value)
        return self

    def _number(self, kind: kv_pb2.MutationType, key: AnyKey, value: int | float | KvU64) -> kv_pb2.Mutation:
        operand: object = KvU64(value) if type(value) is int else value
        data, encoding = encode_value(operand)
        encoded = kv_pb2.Value(data=data, encoding=encoding)  # type: ignore[arg-type]
        return self.request.mutations.add(type=kind, key=encode_key(key), value=encoded)

    def enqueue(
        self,
        value: object,
        *,
        queue: str = "",
        delay: float = 0,
        keys_if_undelivered: Sequence[AnyKey] = (),
        backoff_schedule: Sequence[float] | None = None,
    ) -> AtomicOperation:
        """Put a message in a queue; it is there when the transaction commits.

        Args:
            value: up to 65,536 bytes when encoded.
            queue: its name; empty = the default one, where Deno's `enqueue` puts its own.
            delay: milliseconds until it is delivered, 30 days at most, rounded.
            keys_if_undelivered: up to 10 keys that get the value when the last attempt has failed.
            backoff_schedule: milliseconds before each further attempt, up to 10 of an hour at most; None = 100, 1,000,
                5,000, 30,000, 60,000; empty = the first failure is the last.

        Raises:
            InvalidRequest: BAD_DEADLINE: the delay or an interval is negative, too long, or no number.
                BAD_BACKOFF_SCHEDULE, BAD_KEYS_IF_UNDELIVERED: it is no list. BAD_QUEUE_NAME: the name is no text.
        """
        message = message_of(value, queue, keys_if_undelivered, backoff_schedule)
        message.delay_ms = parse_delay_ms(delay)
        self.request.enqueues.append(message)
        return self

    def ack(self, message: QueueMessage) -> AtomicOperation:
        """Acknowledge a message: only while its lease is current, together with everything else here or not at all.

        So what a handler writes happens once, however often the message is delivered. When the lease is lost, commit
        raises LEASE_LOST and nothing has happened.

        Raises:
            TypeError: it is no message: a lease alone would not tell its listener that a place is free.
        """
        if not isinstance(message, QueueMessage):
            raise TypeError(
                "ack() takes the QueueMessage that kv.messages() gave, or kv.listen_queue() its handler, not "
                f"{message!r:.200}"
            )
        self.request.actions.add().ack.lease = message.lease
        self._acked.append(message)
        return self

    async def commit(self, *, timeout_ms: int | None = None) -> CommitResult:
        """Apply all or nothing, exactly once.

        Raises:
            InvalidRequest: something in it is wrong; nothing was applied. QueueFull: an enqueue found no room.
            DeadlineExceeded, Unavailable: nothing was applied.
            OutcomeUnknown: it was sent and not confirmed in time: it may or may not have been applied.
        """
        response = await self._commit(self.request, timeout_ms)
        if response.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS:
            for message in self._acked:
                message.acknowledged()
            return CommitResult(True, response.versionstamp.hex())
        return CommitResult(False, None, tuple(response.failed_checks))


def message_of(
    value: object,
    queue: str,
    keys_if_undelivered: Sequence[AnyKey],
    backoff_schedule: Sequence[float] | None,
) -> kv_pb2.Enqueue:
    """A message, as AtomicOperation.enqueue describes it. Raises InvalidRequest."""
    data, encoding = encode_payload(value)
    message = kv_pb2.Enqueue(queue=sendable("queue", queue, QUEUE_NAME))
    message.payload.data, message.payload.encoding = data, encoding  # type: ignore[assignment]
    keys = _listed("keys_if_undelivered", keys_if_undelivered, "keys", code="BAD_KEYS_IF_UNDELIVERED")
    message.keys_if_undelivered.extend(encode_key(key) for key in keys)
    if backoff_schedule is not None:
        intervals = _listed("backoff_schedule", backoff_schedule, "milliseconds", code="BAD_BACKOFF_SCHEDULE")
        message.backoff_intervals_ms.extend(map(parse_backoff_ms, intervals))
        message.no_retries = not message.backoff_intervals_ms
    return message


def _listed(argument: str, given: Sequence[_T], of: str, *, code: str) -> Sequence[_T]:
    """`given` itself, if it is a list of something. Raises InvalidRequest with that code."""
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return given
    raise InvalidRequest(code, f"{argument} is {given!r}: give a list of {of}.")


def _expire_at_ms(expire_in: int | None) -> int:
    if expire_in is None:
        return 0
    after_ms = whole_number(expire_in, 0, _MAX_MS)
    if after_ms is None:
        raise InvalidRequest("BAD_EXPIRE_IN", f"expire_in is a number of milliseconds from now on, not {expire_in!r}.")
    return max(1, time.time_ns() // 1_000_000 + after_ms)
