"""Values: Python objects, their stored bytes, and their JSON view."""

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from v8serialize.jstypes import JSArray, JSMap, JSSet, JSUndefined

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec import v8full, v8plain
from kvnode.codec.bigint import BigInt
from kvnode.codec.json_values import value_from_json, value_to_json
from kvnode.codec.values import (
    BYTES,
    LE64,
    V8,
    EncodedValue,
    KvU64,
    decode_v8,
    decode_value,
    encode_payload,
    encode_v8,
    encode_value,
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.integers(-(2**200), 2**200).map(BigInt),
    st.floats(allow_nan=False),
    st.text(st.characters(), max_size=8),
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
rich = st.recursive(
    st.one_of(
        scalars,
        st.binary(max_size=9),
        st.datetimes(timezones=st.just(UTC)).map(lambda d: d.replace(microsecond=0, fold=0)),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_each_type_has_its_encoding():
    assert encode_value(b"\0\1") == (b"\0\1", BYTES)
    assert encode_value(KvU64(258)) == (bytes([2, 1, 0, 0, 0, 0, 0, 0]), LE64)
    assert encode_value("a") == (b'\xff\x0f"\x01a', V8)


@pytest.mark.parametrize("value", [b"\0\1", bytearray(b"a"), KvU64(258), "a", {"a": [b"b"]}])
def test_a_message_is_encoded_as_a_value_of_a_key(value: object) -> None:
    assert encode_payload(value) == encode_value(value)
    assert encode_payload(EncodedValue(b"any", V8)) == (b"any", V8)
    assert decode_value(b"\0\1", BYTES) == b"\0\1"
    assert decode_value(bytes([2, 1, 0, 0, 0, 0, 0, 0]), LE64) == KvU64(258)
    assert decode_value(b'\xff\x10"\x01a', V8) == "a"


# Written by V8 (node's v8.serialize, and Deno's header) for the JavaScript on the right.
@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("ff0f49 54", 42),  # 42
        ("ff10 6f 22 01 61 49 02 7b 01", {"a": 1}),  # {a: 1}
        ("ff0f 41 02 49 02 49 04 24 00 02", [1, 2]),  # [1, 2]
        ("ff0f 61 02 49 00 49 02 49 02 49 04 40 02 02", [1, 2]),  # v8.deserialize(v8.serialize([1, 2]))
        ("ff0f 61 01 49 00 42 02 78 78 56 42 00 02 00 40 01 01", [b"xx"]),
        ("ff0f 63 04 e5 65 2c 67", "日本"),
        ("ff0f 5f", JSUndefined),
        ("ff0f 5a 10 0100000000000000", BigInt(1)),  # 1n
        ("ff0f 4e 000000000000f07f", math.inf),
        ("ff0f 6f 49 02 49 04 7b 01", {"1": 2}),  # {1: 2}
        ("ff0f 42 02 78 78 56 42 00 02 00", b"xx"),  # Uint8Array
        ("ff0f 5c 01 02 6162", b"ab"),  # v8.serialize(new Uint8Array([97, 98])) in Node
        ("ff0f 3b 22 01 61 49 02 3a 02", JSMap(a=1)),
        ("ff0f 27 49 02 2c 01", JSSet([1])),
        ("ff0f 44 0000401f25cc7842", datetime(2024, 1, 1, tzinfo=UTC)),
    ],
)
def test_reads_what_v8_writes(data, value):
    decoded = decode_v8(bytes.fromhex(data))
    assert decoded == value
    assert type(decoded) is type(value)


@given(plain)
def test_plain_values_come_back(value):
    decoded = decode_v8(encode_v8(value))
    assert repr(decoded) == repr(_as_javascript(value))


@given(plain)
def test_the_two_codecs_read_each_other(value):
    general = v8full.encode(value)
    assert repr(v8full.decode(general)) == repr(decode_v8(general)) == repr(_as_javascript(value))
    try:
        quick = v8plain.encode(value)
    except v8plain.NotPlain:
        return
    assert repr(v8full.decode(quick)) == repr(v8plain.decode(quick)) == repr(_as_javascript(value))


@given(rich)
def test_rich_values_come_back(value):
    assert repr(decode_v8(encode_v8(value))) == repr(_as_javascript(value))


def _as_javascript(value):
    """What JavaScript cannot tell apart: 1.0 and 1."""
    if isinstance(value, list):
        return [_as_javascript(element) for element in value]
    if isinstance(value, dict):
        return {name: _as_javascript(member) for name, member in value.items()}
    if (
        type(value) is float
        and value.is_integer()
        and abs(value) < 2**53
        and math.copysign(1, value) == math.copysign(1, int(value))
    ):
        return int(value)
    return value


@given(st.binary(max_size=20))
def test_damaged_bytes_give_one_error(data):
    for candidate in (data, b"\xff\x0f" + data, b"\xff\x10" + data):
        try:
            decode_v8(candidate)
        except KvError as error:
            assert error.code == "VALUE_NOT_READABLE"


def test_minus_zero_and_lone_surrogates_survive():
    assert math.copysign(1, decode_v8(encode_v8(-0.0))) == -1
    assert decode_v8(encode_v8("\ud800x")) == "\ud800x"
    assert decode_v8(encode_v8({"a": "\udc00", "b": b"x"})) == {"a": "\udc00", "b": b"x"}


def test_a_later_version_is_refused_by_name():
    with pytest.raises(KvError, match="version 17"):
        decode_v8(b"\xff\x11I\x02")


def test_large_ints_become_bigints():
    assert decode_v8(encode_v8(2**53)) == BigInt(2**53)
    assert type(decode_v8(encode_v8(2**53))) is BigInt
    assert type(decode_v8(encode_v8(2**53 - 1))) is int


def test_cycles_and_deep_trees():
    cycle: list[object] = []
    cycle.append(cycle)
    decoded = decode_v8(encode_v8(cycle))
    assert isinstance(decoded, list) and decoded[0] is decoded
    deep: object = None
    for _ in range(100):
        deep = [deep]
    assert decode_v8(encode_v8(deep)) == deep
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest) as caught:
        encode_v8(deep)
    assert caught.value.code == "VALUE_NOT_SERIALIZABLE"
    while deep:  # take it apart from outside, or its destruction recurses
        deep = deep[0]  # type: ignore[index]


def test_holes_and_properties_of_arrays():
    array = JSArray([1, 2])
    array["name"] = "x"
    decoded = decode_v8(encode_v8(array))
    assert isinstance(decoded, JSArray) and decoded == array
    holes = decode_v8(bytes.fromhex("ff0f 61 03 49 02 49 02 40 01 03"))  # [, 1, ,]
    assert isinstance(holes, JSArray) and len(holes.array) == 3 and holes[1] == 1


@pytest.mark.parametrize("value", [object(), {(1,): 2}, {True: 1}, {None: 1}, print, 1j])
def test_what_cannot_be_stored(value):
    with pytest.raises(InvalidRequest) as caught:
        encode_value(value)
    assert caught.value.code == "VALUE_NOT_SERIALIZABLE"


def test_kvu64():
    assert int(KvU64(2**64 - 1)) == 2**64 - 1
    assert repr(KvU64(3)) == "KvU64(3)" and hash(KvU64(3)) == hash(KvU64(3)) and KvU64(3) != 3
    for wrong in (-1, 2**64):
        with pytest.raises(InvalidRequest):
            KvU64(wrong)
    with pytest.raises(KvError):
        decode_value(b"123", LE64)
    with pytest.raises(KvError):
        decode_value(b"123", 9)


@given(rich)
def test_json_view_round_trip(value):
    data, encoding = encode_value(value)
    shown = json.loads(json.dumps(value_to_json(data, encoding)))
    again, encoding_again = value_from_json(shown)
    assert encoding_again == encoding
    assert repr(decode_value(again, encoding)) == repr(decode_value(data, encoding))


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ({"$u64": "12"}, KvU64(12)),
        ({"$bigint": "-3"}, BigInt(-3)),
        ({"$number": "Infinity"}, math.inf),
        ({"$undefined": True}, JSUndefined),
        ({"$map": [[1, "a"]]}, JSMap([(1, "a")])),
        ({"$set": [1, "a"]}, JSSet([1, "a"])),
        ({"$object": {"$u64": 1}}, {"$u64": 1}),
        ({"a": [{"$bytes": "AA=="}]}, {"a": [b"\0"]}),
    ],
)
def test_json_names(shown, value):
    data, encoding = value_from_json(shown)
    assert decode_value(data, encoding) == value
    assert value_to_json(data, encoding) == shown


def test_what_json_cannot_show_is_shown_as_stored():
    assert value_to_json(b"\xff\x0f\x99", V8) == {"$v8": "/w+Z"}
    assert value_from_json({"$v8": "/w+Z"}) == (b"\xff\x0f\x99", V8)


@pytest.mark.parametrize("shown", [{"$what": 1}, {"$bigint": "x"}, {"$bytes": "?"}, {"$u64": "-"}, {"$date": "soon"}])
def test_wrong_json_is_refused(shown):
    with pytest.raises(InvalidRequest) as caught:
        value_from_json(shown)
    assert caught.value.code == "BAD_VALUE_JSON"


@pytest.mark.parametrize("text", ['{"$byt#s": "%s"}', '{"$bytes": "%s#"}', '{"$date": "%s"}'])
def test_a_large_value_that_is_none_is_not_shown_whole(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        value_from_json(json.loads(text % ("A" * 60_000)))
    assert caught.value.code == "BAD_VALUE_JSON"
    assert len(caught.value.message) < 600
