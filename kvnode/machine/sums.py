"""sum, min and max: what a mutation's operand and the stored value make together.

LE64 (Deno.KvU64) wraps modulo 2^64. V8 operands: two BigInts or two Numbers, for sum alone, with an optional range
that either refuses or clamps, also where the key does not exist yet (Deno's own store lets the operand in unjudged).
The result has no expiry, as in Deno's own store. The texts are Deno's, followed by what to do.
"""

from __future__ import annotations

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.codec.row import Row
from kvnode.machine import v8number
from kvnode.proto.kv.v1 import kv_pb2

V8 = int(kv_pb2.VALUE_ENCODING_V8)
LE64 = int(kv_pb2.VALUE_ENCODING_LE64)
_U64_MASK = (1 << 64) - 1
_NAMES = {kv_pb2.MUTATION_TYPE_SUM: "sum", kv_pb2.MUTATION_TYPE_MIN: "min", kv_pb2.MUTATION_TYPE_MAX: "max"}


def combine(
    mutation: kv_pb2.Mutation, stored: Row | None, max_value_bytes: int = limits.MAX_VALUE_BYTES
) -> tuple[bytes, int]:
    """(value, encoding) that the mutation leaves where `stored` is.

    Args:
        max_value_bytes: that the result may have: the database's limit, which can be other than Deno KV's.

    Raises:
        InvalidRequest: SUM_NON_U64_OPERAND, SUM_NON_U64_VALUE, SUM_TYPE_MISMATCH, SUM_LIMITS_WITH_U64,
            SUM_LIMIT_TYPE_MISMATCH, SUM_OUT_OF_RANGE, SUM_BAD_V8, SUM_STORED_BAD_V8, SUM_UNSUPPORTED_TYPE,
            VALUE_TOO_LARGE.
    """
    name = _NAMES[mutation.type]
    operand = mutation.value
    if operand.encoding == LE64 and len(operand.data) == 8:
        return _combine_u64(name, mutation, stored), LE64
    if operand.encoding == V8 and name == "sum":
        data, encoding = _sum_v8(mutation, stored)
        if len(data) > max_value_bytes:
            raise _result_too_large(len(data), max_value_bytes)
        return data, encoding
    raise InvalidRequest(
        "SUM_NON_U64_OPERAND",
        f"Failed to perform '{name}' mutation on a non-U64 operand. Pass a KvU64 (LE64, 8 bytes)"
        + (" or a V8 number or bigint." if name == "sum" else "."),
    )


def _combine_u64(name: str, mutation: kv_pb2.Mutation, stored: Row | None) -> bytes:
    if mutation.sum_min or mutation.sum_max or mutation.sum_clamp:
        raise InvalidRequest(
            "SUM_LIMITS_WITH_U64",
            "Cannot use min/max parameters with KvU64 operands. Leave them out, or use numbers or bigints.",
        )
    data = mutation.value.data
    if stored is None:
        return data
    if stored.encoding != LE64:
        raise InvalidRequest(
            "SUM_NON_U64_VALUE",
            f"Failed to perform '{name}' mutation on a non-U64 value in the database. "
            "Set the key to a KvU64 first, or use another key.",
        )
    left, right = int.from_bytes(stored.value, "little"), int.from_bytes(data, "little")
    if name == "sum":
        return (left + right & _U64_MASK).to_bytes(8, "little")
    return (min(left, right) if name == "min" else max(left, right)).to_bytes(8, "little")


def _sum_v8(mutation: kv_pb2.Mutation, stored: Row | None) -> tuple[bytes, int]:
    operand = v8number.parse_parameter(mutation.value.data, "the operand")
    low, high = _limit(mutation.sum_min, operand), _limit(mutation.sum_max, operand)
    if stored is not None and stored.encoding == LE64:
        # A bigint stands for a KvU64 where it can be one and nothing limits the result.
        is_limited = low is not None or high is not None or mutation.sum_clamp
        if isinstance(operand, float) or is_limited or not 0 <= operand <= _U64_MASK:
            raise _mismatch("KvU64", v8number.type_name(operand))
        return (int.from_bytes(stored.value, "little") + operand & _U64_MASK).to_bytes(8, "little"), LE64
    if stored is None:
        return v8number.encode(_within(operand, low, high, mutation.sum_clamp)), V8
    if stored.encoding != V8:
        raise InvalidRequest("SUM_UNSUPPORTED_TYPE", "unsupported value type: the stored value is bytes, not a number.")
    current = v8number.parse_stored(stored.value)
    if isinstance(current, float) != isinstance(operand, float):
        raise _mismatch(v8number.type_name(current), v8number.type_name(operand))
    return v8number.encode(_within(current + operand, low, high, mutation.sum_clamp)), V8


def _result_too_large(size_bytes: int, max_value_bytes: int) -> InvalidRequest:
    return InvalidRequest(
        "VALUE_TOO_LARGE",
        f"A value exceeds the value size limit. The sum has {size_bytes} bytes; the limit is {max_value_bytes}: start "
        "from a smaller bigint, or let the database take larger values (`kvnode database set --max-value-bytes`).",
    )


def _limit(data: bytes, operand: int | float) -> int | float | None:
    if not data:
        return None
    limit = v8number.parse_parameter(data, "a limit")
    if isinstance(limit, float) != isinstance(operand, float):
        raise InvalidRequest(
            "SUM_LIMIT_TYPE_MISMATCH",
            "Min/max parameters have different types than the operand. Make all three numbers, or all three bigints.",
        )
    return limit


def _within(result: int | float, low: int | float | None, high: int | float | None, clamp: bool) -> int | float:
    clamped = result
    if low is not None and clamped < low:
        clamped = low
    if high is not None and clamped > high:
        clamped = high
    if clamped is not result and not clamp:
        raise InvalidRequest(
            "SUM_OUT_OF_RANGE",
            "The result of a Sum operation would exceed its range limit. Nothing was changed; "
            "pass clamp to stop at the limit instead.",
        )
    return clamped


def _mismatch(stored: str, operand: str) -> InvalidRequest:
    return InvalidRequest(
        "SUM_TYPE_MISMATCH", f"Cannot sum {stored} with {operand}. Use an operand of the stored value's type."
    )
