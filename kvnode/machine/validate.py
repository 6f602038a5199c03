"""What a request must satisfy before anything is looked up: the limits of Deno KV, judged by its server's formulas.

Every text begins with the sentence that Deno's own server answers, then says which part, how large, and what to do.
Nothing here reads state; every node validates what it receives, so that a bad request costs no hop.
"""

from __future__ import annotations

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.machine.queue.validate import validate_actions, validate_enqueue
from kvnode.proto.kv.v1 import kv_pb2

_SET = int(kv_pb2.MUTATION_TYPE_SET)
_DELETE = int(kv_pb2.MUTATION_TYPE_DELETE)
_DELETE_RANGE = int(kv_pb2.MUTATION_TYPE_DELETE_RANGE)
_SET_EXPIRY = int(kv_pb2.MUTATION_TYPE_SET_EXPIRY)
_VALUED = frozenset(
    map(
        int,
        (
            kv_pb2.MUTATION_TYPE_SET,
            kv_pb2.MUTATION_TYPE_SUM,
            kv_pb2.MUTATION_TYPE_MIN,
            kv_pb2.MUTATION_TYPE_MAX,
            kv_pb2.MUTATION_TYPE_SET_SUFFIX_VERSIONSTAMPED_KEY,
        ),
    )
)
_SUMS = frozenset(map(int, (kv_pb2.MUTATION_TYPE_SUM, kv_pb2.MUTATION_TYPE_MIN, kv_pb2.MUTATION_TYPE_MAX)))
_V8 = int(kv_pb2.VALUE_ENCODING_V8)
_LE64 = int(kv_pb2.VALUE_ENCODING_LE64)
_BYTES = int(kv_pb2.VALUE_ENCODING_BYTES)
_CONSISTENCIES = frozenset((int(kv_pb2.CONSISTENCY_STRONG), int(kv_pb2.CONSISTENCY_EVENTUAL)))
_LE64_BYTES = 8
_NEVER_EXPIRES = -1  # clients write 0 or -1
_OPAQUE = frozenset((_V8, _BYTES))  # encodings of any length
_MUTATIONS = kv_pb2.AtomicWriteRequest.MUTATIONS_FIELD_NUMBER


def validate_read(request: kv_pb2.ReadRequest) -> int | None:
    """Refuse a read that is over a limit or makes no sense.

    Returns:
        How many entries it brings at most; None: it counts, and what that costs cannot be told from its limits.

    Raises:
        InvalidRequest: UNKNOWN_CONSISTENCY, TOO_MANY_RANGES, TOO_MANY_ENTRIES, LIMIT_NOT_POSITIVE, KEY_TOO_LARGE,
            START_BEYOND_END, BAD_VERSIONSTAMP.
    """
    if request.consistency not in _CONSISTENCIES:
        raise InvalidRequest(
            "UNKNOWN_CONSISTENCY",
            f"The consistency {request.consistency} is unknown: a read needs 0 (strong) or 1 (eventual).",
        )
    ranges = request.ranges
    if len(ranges) > limits.MAX_READ_RANGES_COUNT:
        raise InvalidRequest(
            "TOO_MANY_RANGES",
            f"Too many read ranges requested in one read request. It has {len(ranges)}; the limit is "
            f"{limits.MAX_READ_RANGES_COUNT}: split it into several reads.",
        )
    entries_count = 0
    counts = False
    for position, wanted in enumerate(ranges):
        _check_bounds(wanted.start, wanted.end, "range", position)
        if wanted.count_only:
            counts = True
            continue
        limit = wanted.limit
        if limit <= 0:
            raise InvalidRequest(
                "LIMIT_NOT_POSITIVE",
                "The read range limit of the snapshot read request is invalid. "
                f"That of range {position} is {limit}: give one of 1 to {limits.MAX_READ_ENTRIES_COUNT}.",
            )
        entries_count += limit
    if entries_count > limits.MAX_READ_ENTRIES_COUNT:
        raise InvalidRequest(
            "TOO_MANY_ENTRIES",
            "The total number of entries requested across read ranges in the read request is too large. "
            f"The limits add up to {entries_count}; at most {limits.MAX_READ_ENTRIES_COUNT} fit in one read: page.",
        )
    if request.min_versionstamp:
        _check_versionstamp(request.min_versionstamp, "min_versionstamp")
    return None if counts else entries_count


def validate_write(request: kv_pb2.AtomicWriteRequest, max_value_bytes: int = limits.MAX_VALUE_BYTES) -> bool:
    """Refuse a write that is over a limit or makes no sense.

    Args:
        max_value_bytes: of the database that it is for.

    Returns:
        Whether it is blind: sets and deletes of keys and nothing else, for which no state has to be read.

    Raises:
        InvalidRequest: TOO_MANY_CHECKS, TOO_MANY_MUTATIONS, EMPTY_KEY, KEY_TOO_LARGE, BAD_VERSIONSTAMP,
            UNKNOWN_MUTATION, UNKNOWN_ENCODING, LE64_NOT_8_BYTES, VALUE_TOO_LARGE, BAD_EXPIRE_AT, START_BEYOND_END,
            TRANSACTION_TOO_LARGE, TRANSACTION_KEYS_TOO_LARGE, and those of kvnode.machine.queue.validate.
    """
    if _is_blind(request, max_value_bytes):
        return True
    checks, mutations = request.checks, request.mutations
    if len(checks) > limits.MAX_CHECKS_COUNT:
        raise InvalidRequest(
            "TOO_MANY_CHECKS",
            f"Too many checks included in atomic write. It has {len(checks)}; the limit is {limits.MAX_CHECKS_COUNT}: "
            "check one key that stands for many.",
        )
    enqueues = request.enqueues
    if len(mutations) + len(enqueues) > limits.MAX_MUTATIONS_COUNT:
        raise InvalidRequest(
            "TOO_MANY_MUTATIONS",
            f"Too many mutations / enqueues included in atomic write. It has {len(mutations) + len(enqueues)}; the "
            f"limit is {limits.MAX_MUTATIONS_COUNT}: split it into several writes.",
        )
    key_bytes = value_bytes = 0
    for position, check in enumerate(checks):
        key_bytes += _check_write_key(check.key, "check", position)
        _check_versionstamp(check.versionstamp, f"the versionstamp of check {position}")
    for position, mutation in enumerate(mutations):
        kind = mutation.type
        if kind in _VALUED:
            key_bytes += _check_write_key(mutation.key, "mutation", position)
            value_bytes += _check_value(mutation, kind, position, max_value_bytes)
        elif kind == _DELETE:
            key_bytes += _check_write_key(mutation.key, "mutation", position)
        elif kind == _DELETE_RANGE:
            _check_bounds(mutation.key, mutation.end_key, "mutation", position)
            key_bytes += len(mutation.key) + len(mutation.end_key)
        elif kind == _SET_EXPIRY:
            key_bytes += _check_write_key(mutation.key, "mutation", position)
            _check_expiry(mutation, position)
        else:
            raise InvalidRequest(
                "UNKNOWN_MUTATION",
                f"Invalid mutation kind or arguments. Mutation {position} is of type {kind}, which is not known.",
            )
    for position, enqueue in enumerate(enqueues):
        more_key_bytes, more_value_bytes = validate_enqueue(enqueue, position)
        key_bytes += more_key_bytes
        value_bytes += more_value_bytes
    if request.actions:
        validate_actions(request)
    _check_total(key_bytes, value_bytes)
    return False


def _is_blind(request: kv_pb2.AtomicWriteRequest, max_value_bytes: int) -> bool:
    """Whether it is blind and valid, as most are: 1.5 us for one set, and 2.6 the long way. False says nothing."""
    fields = request.ListFields()  # what is not there is not asked for: each empty list would be made first
    if len(fields) != 1 or fields[0][0].number != _MUTATIONS:
        return False
    mutations = fields[0][1]
    key_bytes = value_bytes = 0
    for mutation in mutations:
        kind = mutation.type
        size = len(mutation.key)
        if not 0 < size <= limits.MAX_WRITE_KEY_BYTES:
            return False
        key_bytes += size
        if kind == _SET:
            value = mutation.value
            size = len(value.data)
            if size > max_value_bytes or value.encoding not in _OPAQUE or mutation.expire_at_ms < _NEVER_EXPIRES:
                return False
            value_bytes += size
        elif kind != _DELETE:
            return False
    return (
        len(mutations) <= limits.MAX_MUTATIONS_COUNT
        and key_bytes + value_bytes <= limits.MAX_TRANSACTION_BYTES
        and key_bytes <= limits.MAX_TRANSACTION_KEY_BYTES
    )


def _check_write_key(key: bytes, what: str, position: int) -> int:
    if not key:
        raise InvalidRequest("EMPTY_KEY", f"key cannot be empty: that of {what} {position} has no parts.")
    if len(key) > limits.MAX_WRITE_KEY_BYTES:
        raise InvalidRequest(
            "KEY_TOO_LARGE",
            f"A key exceeds the key size limit. That of {what} {position} has {len(key)} bytes; the limit is "
            f"{limits.MAX_WRITE_KEY_BYTES}: shorten it, or put a hash in the key and the text in the value.",
        )
    return len(key)


def _check_value(mutation: kv_pb2.Mutation, kind: int, position: int, max_value_bytes: int) -> int:
    value = mutation.value
    data, encoding = value.data, value.encoding
    if encoding != _V8:
        _check_encoding(data, encoding, position)
    size = len(data)
    if kind in _SUMS:  # its limits are values of their own
        size = max(size, len(mutation.sum_min), len(mutation.sum_max))
    if size > max_value_bytes:
        raise InvalidRequest(
            "VALUE_TOO_LARGE",
            f"A value exceeds the value size limit. That of mutation {position} has {size} bytes; the limit is "
            f"{max_value_bytes}: split it over several keys, or let the database take larger ones "
            "(`kvnode database set --max-value-bytes`).",
        )
    _check_expiry(mutation, position)
    return len(data)


def _check_encoding(data: bytes, encoding: int, position: int) -> None:
    if encoding == _LE64:
        if len(data) != _LE64_BYTES:
            raise InvalidRequest(
                "LE64_NOT_8_BYTES",
                f"Invalid mutation kind or arguments. The LE64 value of mutation {position} has {len(data)} bytes: "
                "a KvU64 is exactly 8, little-endian.",
            )
    elif encoding != _BYTES:
        raise InvalidRequest(
            "UNKNOWN_ENCODING",
            f"The value encoding {encoding} is unknown. Mutation {position} needs 1 (V8), 2 (LE64) or 3 (bytes).",
        )


def _check_expiry(mutation: kv_pb2.Mutation, position: int) -> None:
    if mutation.expire_at_ms < _NEVER_EXPIRES:
        raise InvalidRequest(
            "BAD_EXPIRE_AT",
            f"Invalid mutation expire at. That of mutation {position} is {mutation.expire_at_ms}: give milliseconds "
            "since the epoch, or 0 for never.",
        )


def _check_total(key_bytes: int, value_bytes: int) -> None:
    if key_bytes + value_bytes > limits.MAX_TRANSACTION_BYTES:
        raise InvalidRequest(
            "TRANSACTION_TOO_LARGE",
            f"The total size of the atomic write is too large. Keys and values have {key_bytes + value_bytes} bytes; "
            f"the limit is {limits.MAX_TRANSACTION_BYTES}: split it into several writes.",
        )
    if key_bytes > limits.MAX_TRANSACTION_KEY_BYTES:
        raise InvalidRequest(
            "TRANSACTION_KEYS_TOO_LARGE",
            f"The total size of the keys in the atomic write is too large. They have {key_bytes} bytes; the limit is "
            f"{limits.MAX_TRANSACTION_KEY_BYTES}: split it into several writes.",
        )


def _check_bounds(start: bytes, end: bytes, what: str, position: int) -> None:
    if len(start) > limits.MAX_BOUND_BYTES or len(end) > limits.MAX_BOUND_BYTES:
        raise InvalidRequest(
            "KEY_TOO_LARGE",
            f"A key exceeds the key size limit. A bound of {what} {position} has {max(len(start), len(end))} bytes; "
            f"the limit is {limits.MAX_BOUND_BYTES}.",
        )
    if start > end:
        raise InvalidRequest(
            "START_BEYOND_END",
            f"The start of {what} {position} is beyond its end. Swap them; `reverse` only turns the order.",
        )


def _check_versionstamp(stamp: bytes, what: str) -> None:
    if stamp and len(stamp) != VERSIONSTAMP_BYTES:
        raise InvalidRequest(
            "BAD_VERSIONSTAMP",
            f"Invalid versionstamp. {what} has {len(stamp)} bytes: it is {VERSIONSTAMP_BYTES} bytes (20 hex digits), "
            "or empty.",
        )


def resolved_too_large() -> InvalidRequest:
    """What a write makes of the rows that it finds is more than a transaction may be."""
    return InvalidRequest(
        "TRANSACTION_TOO_LARGE",
        "The total size of the atomic write is too large. The values that its sums make and whose expiry it sets "
        f"bring it above {limits.MAX_RESOLVED_TRANSACTION_BYTES} bytes: split it into several writes.",
    )
