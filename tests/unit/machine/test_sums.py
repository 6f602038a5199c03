"""sum, min, max: LE64 and V8, with Deno's errors."""

import math

import pytest
import v8serialize
from hypothesis import given
from hypothesis import strategies as st
from v8serialize.jstypes.jsbigint import JSBigInt

from kvnode.base.errors import InvalidRequest
from kvnode.codec.row import Row
from kvnode.machine import v8number
from kvnode.machine.sums import combine
from tests.unit.machine.fakes import BYTES, LE64, MAX, MIN, SUM, V8, mutation, u64

KEY = b"k"


def stored(data, encoding):
    return Row(KEY, data, encoding, bytes(10), 99)


def number(value):
    return v8number.encode(float(value))


def bigint(value):
    return v8number.encode(int(value))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_u64(left, right):
    row = stored(u64(left), LE64)
    assert combine(mutation(SUM, KEY, u64(right), LE64), row) == (u64((left + right) % 2**64), LE64)
    assert combine(mutation(MIN, KEY, u64(right), LE64), row) == (u64(min(left, right)), LE64)
    assert combine(mutation(MAX, KEY, u64(right), LE64), row) == (u64(max(left, right)), LE64)


@pytest.mark.parametrize("kind", [SUM, MIN, MAX])
def test_an_absent_key_becomes_the_operand(kind):
    assert combine(mutation(kind, KEY, u64(7), LE64), None) == (u64(7), LE64)


@given(st.integers(-(2**130), 2**130), st.integers(-(2**130), 2**130))
def test_bigints(left, right):
    assert combine(mutation(SUM, KEY, bigint(right), V8), stored(bigint(left), V8)) == (bigint(left + right), V8)
    assert v8serialize.loads(bigint(left)) == left
    assert v8number.parse(v8serialize.dumps(JSBigInt(left))) == left


@given(st.floats(), st.floats())
def test_numbers(left, right):
    data, encoding = combine(mutation(SUM, KEY, number(right), V8), stored(number(left), V8))
    assert encoding == V8 and data == number(left + right)


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_any_spelling_of_a_number_is_read(value):
    assert v8number.parse(v8serialize.dumps(value)) == float(value)
    assert type(v8number.parse(v8serialize.dumps(value))) is float


@given(st.binary(max_size=14))
def test_damaged_values_give_the_two_errors(data):
    for candidate in (data, b"\xff\x0f" + data):
        try:
            v8number.parse(candidate)
        except (ValueError, v8number.UnsupportedType):
            pass


def test_a_bigint_onto_a_kvu64():
    assert combine(mutation(SUM, KEY, bigint(2), V8), stored(u64(2**64 - 1), LE64)) == (u64(1), LE64)


@pytest.mark.parametrize(
    ("low", "high", "clamp", "operand", "expected"),
    [
        (0, 44, False, 4, 44),
        (0, 44, True, 40, 44),
        (0, 44, True, -99, 0),
        (None, 44, True, -99, -59),
        (0, None, False, 2, 42),
    ],
)
@pytest.mark.parametrize("kind", [number, bigint])
def test_limits(kind, low, high, clamp, operand, expected):
    limits = {"sum_clamp": clamp}
    if low is not None:
        limits["sum_min"] = kind(low)
    if high is not None:
        limits["sum_max"] = kind(high)
    made = mutation(SUM, KEY, kind(operand), V8, **limits)
    assert combine(made, stored(kind(40), V8)) == (kind(expected), V8)


TEXT = b'\xff\x0f"\x01a'

ERRORS = [
    (
        "SUM_NON_U64_OPERAND",
        "Failed to perform 'sum' mutation on a non-U64 operand",
        mutation(SUM, KEY, b"x", BYTES),
        None,
    ),
    (
        "SUM_NON_U64_OPERAND",
        "Failed to perform 'min' mutation on a non-U64 operand",
        mutation(MIN, KEY, number(1), V8),
        None,
    ),
    (
        "SUM_NON_U64_OPERAND",
        "Failed to perform 'max' mutation on a non-U64 operand",
        mutation(MAX, KEY, bigint(1), V8),
        None,
    ),
    (
        "SUM_NON_U64_VALUE",
        "Failed to perform 'sum' mutation on a non-U64 value in the database",
        mutation(SUM, KEY, u64(1), LE64),
        stored(TEXT, V8),
    ),
    (
        "SUM_NON_U64_VALUE",
        "Failed to perform 'max' mutation on a non-U64 value in the database",
        mutation(MAX, KEY, u64(1), LE64),
        stored(b"x", BYTES),
    ),
    ("SUM_TYPE_MISMATCH", "Cannot sum KvU64 with Number", mutation(SUM, KEY, number(1), V8), stored(u64(1), LE64)),
    ("SUM_TYPE_MISMATCH", "Cannot sum BigInt with Number", mutation(SUM, KEY, number(1), V8), stored(bigint(1), V8)),
    ("SUM_TYPE_MISMATCH", "Cannot sum Number with BigInt", mutation(SUM, KEY, bigint(1), V8), stored(number(1), V8)),
    (
        "SUM_LIMITS_WITH_U64",
        "Cannot use min/max parameters with KvU64 operands",
        mutation(SUM, KEY, u64(1), LE64, sum_max=number(1)),
        None,
    ),
    (
        "SUM_TYPE_MISMATCH",
        "Cannot sum KvU64 with BigInt",
        mutation(SUM, KEY, bigint(1), V8, sum_max=bigint(9)),
        stored(u64(1), LE64),
    ),
    (
        "SUM_TYPE_MISMATCH",
        "Cannot sum KvU64 with BigInt",
        mutation(SUM, KEY, bigint(1), V8, sum_clamp=True),
        stored(u64(1), LE64),
    ),
    ("SUM_TYPE_MISMATCH", "Cannot sum KvU64 with BigInt", mutation(SUM, KEY, bigint(-1), V8), stored(u64(1), LE64)),
    ("SUM_TYPE_MISMATCH", "Cannot sum KvU64 with BigInt", mutation(SUM, KEY, bigint(2**64), V8), stored(u64(1), LE64)),
    (
        "SUM_LIMIT_TYPE_MISMATCH",
        "Min/max parameters have different types than the operand",
        mutation(SUM, KEY, bigint(1), V8, sum_max=number(9)),
        None,
    ),
    ("SUM_BAD_V8", "Some of the parameters are not valid V8 values", mutation(SUM, KEY, b"zz", V8), None),
    (
        "SUM_BAD_V8",
        "Some of the parameters are not valid V8 values",
        mutation(SUM, KEY, bigint(1), V8, sum_min=b"\xff\x0fN"),
        None,
    ),
    (
        "SUM_OUT_OF_RANGE",
        "The result of a Sum operation would exceed its range limit",
        mutation(SUM, KEY, bigint(2), V8, sum_max=bigint(44)),
        stored(bigint(43), V8),
    ),
    ("SUM_BAD_V8", "Some of the parameters are not valid V8 values", mutation(SUM, KEY, TEXT, V8), None),
    ("SUM_BAD_V8", "Some of the parameters are not valid V8 values", mutation(SUM, KEY, b"", V8), None),
    ("SUM_STORED_BAD_V8", "invalid v8 value", mutation(SUM, KEY, number(1), V8), stored(b"zz", V8)),
    ("SUM_UNSUPPORTED_TYPE", "unsupported value type", mutation(SUM, KEY, number(1), V8), stored(TEXT, V8)),
    ("SUM_UNSUPPORTED_TYPE", "unsupported value type", mutation(SUM, KEY, number(1), V8), stored(b"x", BYTES)),
    (
        "VALUE_TOO_LARGE",
        "A value exceeds",
        mutation(SUM, KEY, bigint(1), V8),
        stored(bigint(2 ** (65_528 * 8) - 1), V8),
    ),
]


@pytest.mark.parametrize(("code", "text", "made", "row"), ERRORS)
def test_errors(code, text, made, row):
    with pytest.raises(InvalidRequest) as caught:
        combine(made, row)
    assert caught.value.code == code
    assert caught.value.message.startswith(text)


@pytest.mark.parametrize("kind", [number, bigint])
def test_limits_that_exclude_each_other_end_at_the_upper(kind):
    made = mutation(SUM, KEY, kind(0), V8, sum_min=kind(50), sum_max=kind(45), sum_clamp=True)
    assert combine(made, stored(kind(40), V8)) == (kind(45), V8)


@pytest.mark.parametrize("kind", [number, bigint])
def test_limits_hold_for_a_key_that_does_not_exist_yet(kind):
    assert combine(mutation(SUM, KEY, kind(9), V8, sum_max=kind(5), sum_clamp=True), None) == (kind(5), V8)
    with pytest.raises(InvalidRequest, match="range limit"):
        combine(mutation(SUM, KEY, kind(9), V8, sum_max=kind(5)), None)


def test_nan_is_one_value():
    assert number(math.nan) == number(-math.nan)


@pytest.mark.parametrize("limit", [65_536, 200_000, 100])
def test_the_result_may_be_as_large_as_a_value_of_its_database(limit):
    longest = (limit - 8) // 8 * 8  # bytes of a magnitude whose encoding just fits
    row = stored(bigint(1 << 8 * longest - 2), V8)
    data, _ = combine(mutation(SUM, KEY, bigint(1 << 8 * longest - 2), V8), row, limit)
    assert v8number.parse(data) == 1 << 8 * longest - 1 and len(data) <= limit
    row = stored(data, V8)
    with pytest.raises(InvalidRequest, match=f"the limit is {limit}") as refused:
        combine(mutation(SUM, KEY, data, V8), row, limit)
    assert refused.value.code == "VALUE_TOO_LARGE"


def test_a_limit_that_the_result_is_moved_to_is_measured_as_well():
    low = bigint(1 << 1_000)
    with pytest.raises(InvalidRequest) as refused:
        combine(mutation(SUM, KEY, bigint(1), V8, sum_min=low, sum_clamp=True), None, 100)
    assert refused.value.code == "VALUE_TOO_LARGE"
