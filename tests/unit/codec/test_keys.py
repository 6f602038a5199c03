"""Key encoding: Deno's own bytes, order, round trip."""

import math
import struct
from functools import cmp_to_key

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.base.errors import InvalidRequest
from kvnode.codec.bigint import BigInt
from kvnode.codec.json_keys import key_from_json, key_to_json
from kvnode.codec.keys import decode_key, encode_key, list_range, point_range, prefix_range

# Captured from Deno: what it sends for a key.
CAPTURED = [
    (("a",), "02 61 00"),
    (("a\0b",), "02 61 00 ff 62 00"),
    (("é",), "02 c3 a9 00"),
    ((bytes([0, 1, 0xFF]),), "01 00 ff 01 ff 00"),
    ((0.0,), "21 8000000000000000"),
    ((-0.0,), "21 7fffffffffffffff"),
    ((1.0,), "21 bff0000000000000"),
    ((-1.0,), "21 400fffffffffffff"),
    ((math.nan,), "21 fff8000000000000"),
    ((math.inf,), "21 fff0000000000000"),
    ((-math.inf,), "21 000fffffffffffff"),
    ((BigInt(0),), "14"),
    ((BigInt(1),), "15 01"),
    ((BigInt(-1),), "13 fe"),
    ((BigInt(255),), "15 ff"),
    ((BigInt(256),), "16 01 00"),
    ((BigInt(-256),), "12 fe ff"),
    ((BigInt(2**64 - 1),), "1c" + "ff" * 8),
    ((BigInt(2**64),), "1d 09 01" + "00" * 8),
    ((BigInt(-(2**64)),), "0b f6 fe" + "ff" * 8),
    ((True,), "27"),
    ((False,), "26"),
    (("a", 1.0, BigInt(2), True, b"\x01"), "02 61 00 21 bff0000000000000 15 02 27 01 01 00"),
]

bigints = st.one_of(
    st.integers(-(2**80), 2**80), st.integers(-300, 300), st.sampled_from([2**64, 2**64 - 1, -(2**64), 1 - 2**64])
)
parts = st.one_of(
    st.binary(max_size=4),
    st.text(max_size=4),
    bigints.map(BigInt),
    st.floats(allow_nan=False),
    st.booleans(),
    st.sampled_from([b"\0", b"\0\xff", "\0", "\0\xff", ""]),
)
keys = st.lists(parts, max_size=4).map(tuple)


def _rank(part):
    for rank, kind in enumerate((bytes, str, BigInt, float, bool)):
        if isinstance(part, kind):
            return rank
    raise AssertionError(part)


def _order(part):
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, float):
        return (part, math.copysign(1.0, part))
    return part


def _compare(left, right):
    for a, b in zip(left, right, strict=False):
        a, b = (_rank(a), _order(a)), (_rank(b), _order(b))
        if a != b:
            return -1 if a < b else 1
    return len(left) - len(right)


@pytest.mark.parametrize(("key", "expected"), CAPTURED)
def test_encodes_as_deno_does_and_back(key, expected):
    data = bytes.fromhex(expected)
    assert encode_key(key) == data
    decoded = decode_key(data)
    assert encode_key(decoded) == data
    assert [type(part) for part in decoded] == [type(part) for part in key]


def test_an_int_is_a_javascript_number():
    assert encode_key(("a", 1)) == encode_key(("a", 1.0)) != encode_key(("a", BigInt(1)))
    assert decode_key(encode_key(("a", 1))) == ("a", 1)


def test_negative_nan_keeps_its_sign():
    negative = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
    assert encode_key((negative,)) == bytes.fromhex("21 0007ffffffffffff")


@given(keys)
def test_round_trip(key):
    decoded = decode_key(encode_key(key))
    assert decoded == key
    assert encode_key(decoded) == encode_key(key)


@given(keys, keys)
def test_bytes_order_as_the_keys_do(left, right):
    a, b = encode_key(left), encode_key(right)
    assert (a > b) - (a < b) == (_compare(left, right) > 0) - (_compare(left, right) < 0)


@given(st.lists(keys, max_size=6))
def test_sorting_agrees(many):
    by_bytes = sorted(many, key=encode_key)
    assert [encode_key(k) for k in by_bytes] == [encode_key(k) for k in sorted(many, key=cmp_to_key(_compare))]


@given(keys, keys)
def test_a_prefix_range_holds_just_the_longer_keys(prefix, key):
    start, end = prefix_range(prefix)
    inside = len(key) > len(prefix) and encode_key(key[: len(prefix)]) == encode_key(prefix)
    assert (start <= encode_key(key) < end) == inside
    longer = encode_key((*prefix, *key))
    assert (start <= longer < end) == bool(key)


def test_list_selectors():
    a, b, c = ("a",), ("a", "b"), ("a", "c")
    assert list_range(prefix=a) == (encode_key(a) + b"\0", encode_key(a) + b"\xff")
    assert list_range(prefix=a, start=b) == (encode_key(b), encode_key(a) + b"\xff")
    assert list_range(prefix=a, end=c) == (encode_key(a) + b"\0", encode_key(c))
    assert list_range(start=b, end=c) == (encode_key(b), encode_key(c))
    assert list_range(start=b) == (encode_key(b), encode_key(b) + b"\0")
    assert list_range(prefix=()) == (b"\0", b"\xff")
    assert point_range(b"x") == (b"x", b"x\0")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"end": ("a",)},
        {"prefix": ("a",), "start": ("a", "b"), "end": ("a", "c")},
        {"prefix": ("b",), "start": ("a", "b")},
        {"prefix": ("b",), "end": ("c", "b")},
        {"prefix": ("b",), "start": ("c",)},
        {"prefix": ("b",), "end": ("a",)},
    ],
)
def test_other_selectors_are_refused(arguments):
    with pytest.raises(InvalidRequest) as caught:
        list_range(**arguments)
    assert caught.value.code == "BAD_SELECTOR"


@pytest.mark.parametrize("part", [None, (), 2**53, -(2**53), "\ud800", BigInt(2**2040), object()])
def test_what_no_key_can_hold_is_refused(part):
    with pytest.raises(InvalidRequest) as caught:
        encode_key((part,))
    assert caught.value.code == "BAD_KEY_PART"


@pytest.mark.parametrize(
    "data", ["00", "05", "20 00", "02 61", "21 00", "15", "1d", "1d 09 01", "02 ff 00", "02 00 ff"]
)
def test_bytes_that_are_no_key_are_refused(data):
    with pytest.raises(InvalidRequest) as caught:
        decode_key(bytes.fromhex(data))
    assert caught.value.code == "BAD_KEY_ENCODING"


@given(st.binary(max_size=12))
def test_decoding_never_fails_otherwise(data):
    try:
        decode_key(data)
    except InvalidRequest as error:
        assert error.code == "BAD_KEY_ENCODING"


@given(keys)
def test_json_round_trip(key):
    assert encode_key(key_from_json(key_to_json(key))) == encode_key(key)


def test_json_form():
    key = key_from_json('["a", 1, {"$bigint": "-12"}, {"$bytes": "AAE="}, true, {"$number": "-Infinity"}]')
    assert key == ("a", 1.0, BigInt(-12), b"\x00\x01", True, -math.inf)
    assert key_to_json(key) == '["a", 1, {"$bigint": "-12"}, {"$bytes": "AAE="}, true, {"$number": "-Infinity"}]'
    assert key_to_json((math.nan, -0.0)) == '[{"$number": "NaN"}, -0.0]'


@pytest.mark.parametrize(
    "text",
    ["", "{}", '"a"', "[null]", "[[]]", '[{"$bigint": "x"}]', '[{"$bytes": "?"}]', '[{"$number": "1"}]', '[{"a": 1}]'],
)
def test_other_json_is_refused(text):
    with pytest.raises(InvalidRequest) as caught:
        key_from_json(text)
    assert caught.value.code == "BAD_KEY_JSON"
