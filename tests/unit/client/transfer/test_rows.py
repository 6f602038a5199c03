"""Rows as lines: what is stored comes back byte for byte, and a bad line names itself."""

from __future__ import annotations

import io
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.base.errors import InvalidRequest
from kvnode.client.transfer.lines import LinePosition, read_rows, read_tail
from kvnode.client.transfer.rows import line_to_row, row_to_line
from kvnode.codec import v8full
from kvnode.codec.bigint import BigInt
from kvnode.codec.keys import encode_key
from kvnode.codec.values import BYTES, LE64, V8, encode_value

KEY = encode_key(("a", 1))
STAMP = "00010000000000000001"

KEYS = st.lists(
    st.text(max_size=4) | st.binary(max_size=4) | st.floats() | st.booleans() | st.integers().map(BigInt),
    min_size=1,
    max_size=4,
).map(encode_key)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers().map(BigInt) | st.integers(-(2**53), 2**53),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("$u64"), inner, max_size=3)
    ),
    max_leaves=8,
).map(lambda value: (v8full.encode(value), V8))
STORED = st.one_of(
    VALUES,
    st.binary(max_size=40).map(lambda data: (data, V8)),
    st.binary(max_size=40).map(lambda data: (data, BYTES)),
    st.binary(min_size=8, max_size=8).map(lambda data: (data, LE64)),
)


@given(KEYS | st.binary(min_size=1, max_size=20), STORED, st.none() | st.integers(1, 2**63 - 1), st.booleans())
def test_a_row_comes_back_as_it_was(key, stored, expire_at_ms, after_start):
    line = row_to_line(key, *stored, STAMP, expire_at_ms, after_start=after_start)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert line_to_row(line, "line 1") == ("line 1", key, *stored, expire_at_ms or 0)
    described = json.loads(line)
    assert described["versionstamp"] == STAMP and described.get("after_start", False) == after_start


def test_bytes_stand_beside_a_value_only_where_they_must():
    plain = json.loads(row_to_line(KEY, *encode_value({"born": 1815}), STAMP, None))
    assert plain == {
        "key": ["a", 1],
        "value": {"born": 1815},
        "encoding": "v8",
        "versionstamp": STAMP,
        "expire_at_ms": None,
    }
    data, encoding = encode_value({"born": 1815})
    of_newer_v8 = json.loads(row_to_line(KEY, b"\xff\x10" + data[2:], encoding, STAMP, None))
    assert of_newer_v8["value"] == {"born": 1815} and of_newer_v8["data"]
    assert "encoded_key" in json.loads(row_to_line(b"\x00no key of Deno's", data, encoding, STAMP, None))


def test_a_value_that_holds_itself_or_grows_beyond_measure_is_shown_as_bytes():
    cyclic = b'\xff\x0fo"\x04self^\x00{\x01'
    assert list(json.loads(row_to_line(KEY, cyclic, V8, STAMP, None))["value"]) == ["$v8"]
    doubled: object = ["x"]
    for _ in range(60):
        doubled = [doubled, doubled]
    assert list(json.loads(row_to_line(KEY, v8full.encode(doubled), V8, STAMP, None))["value"]) == ["$v8"]


def test_a_line_that_people_write():
    row = line_to_row(b'{"key": ["a", 1], "value": {"born": 1815}}', "line 3")
    assert row == ("line 3", KEY, *encode_value({"born": 1815}), 0)
    assert line_to_row(b'{"key": ["a", 1], "value": {"$u64": "7"}}', "x").encoding == LE64


BAD = [
    (b"{", "Expecting"),
    (b"[1]", "not a JSON object"),
    (b'{"value": 1}', '"key" is missing'),
    (b'{"key": [], "value": 1}', "at least one part"),
    (b'{"key": "a", "value": 1}', "JSON array"),
    (b'{"key": [null], "value": 1}', "stands for no key part"),
    (b'{"key": ["a"]}', '"value" is missing'),
    (b'{"key": ["a"], "value": 1, "expires": 1}', "it has no 'expires'"),
    (b'{"key": ["a"], "value": 1, "expire_at_ms": "soon"}', "milliseconds"),
    (b'{"key": ["a"], "value": 1, "expire_at_ms": -1}', "milliseconds"),
    (b'{"key": ["a"], "value": 1, "encoding": "json"}', '"encoding" is one of v8, u64, bytes'),
    (b'{"key": ["a"], "value": 1, "encoding": "u64"}', "the value is of 'v8'"),
    (b'{"key": ["a"], "data": "AA=="}', 'needs "encoding"'),
    (b'{"key": ["a"], "data": "A", "encoding": "v8"}', "not base64"),
    (b'{"key": ["a"], "value": {"$date": "soon"}}', "stands for no value"),
    (b'{"encoded_key": 7, "value": 1}', "text of base64"),
    (b"\xff\xfe", "decode"),
    (b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("line", "text"), BAD)
def test_a_bad_line_says_which_it_is_and_why(line, text):
    with pytest.raises(InvalidRequest) as caught:
        line_to_row(line, "line 7")
    assert caught.value.code == "BAD_IMPORT_LINE"
    assert caught.value.message.startswith("line 7: ")
    assert text in caught.value.message


@given(st.binary(max_size=60))
def test_no_line_breaks_the_reader(line):
    try:
        line_to_row(line, "line 1")
    except InvalidRequest as error:
        assert error.code == "BAD_IMPORT_LINE"


def lines(count):
    return [
        row_to_line(encode_key(("n", n)), *encode_value(n), STAMP, None, after_start=n % 2 == 1) for n in range(count)
    ]


def test_a_file_is_read_from_any_line_on():
    data = b"\n".join([*lines(5), b""])  # with blank lines
    whole = list(read_rows(io.BytesIO(data)))
    assert [row.place for row, _ in whole] == ["line 1", "line 3", "line 5", "line 7", "line 9"]
    _, position = random.Random(1).choice(whole)
    file = io.BytesIO(data)
    file.seek(position.offset_bytes)
    rest = list(read_rows(file, position))
    assert rest == [item for item in whole if item[1] > position]
    assert list(read_rows(io.BytesIO(b""), LinePosition())) == []


def test_a_file_may_come_from_windows():
    data = b"\xef\xbb\xbf" + b"".join(lines(3)).replace(b"\n", b"\r\n")
    assert [row.key for row, _ in read_rows(io.BytesIO(data))] == [encode_key(("n", n)) for n in range(3)]
    with pytest.raises(InvalidRequest, match=r"line 2: it is not a JSON object: .* at character 1 "):
        list(read_rows(io.BytesIO(b"\n\xef\xbb\xbf{}\n")))


def test_a_line_that_breaks_off_at_the_end_of_the_file_is_said_to():
    good, torn = lines(2)
    with pytest.raises(InvalidRequest, match=r"line 2: it is not a JSON object: .*; the file ends in this line"):
        list(read_rows(io.BytesIO(good + torn[:20])))
    assert len(list(read_rows(io.BytesIO(good + torn[:-1])))) == 2, "whole, but for its newline"


def test_a_line_has_a_greatest_length(monkeypatch):
    monkeypatch.setattr("kvnode.base.limits.MAX_IMPORT_LINE_BYTES", 100)
    with pytest.raises(InvalidRequest, match="line 2: a line has at most 100 bytes"):
        list(read_rows(io.BytesIO(b"\n" + b"x" * 101)))


def test_the_tail_of_a_torn_file():
    made = lines(4)
    torn = b"".join(made) + made[0][:-1]
    tail = read_tail(io.BytesIO(torn))
    assert tail == (len(torn) - len(made[0]) + 1, 4, 2, encode_key(("n", 3)))
    assert read_tail(io.BytesIO(b"")) == (0, 0, 0, None)
    assert read_tail(io.BytesIO(b"torn")) == (0, 0, 0, None)
    with pytest.raises(InvalidRequest, match="line 1"):
        read_tail(io.BytesIO(b"something else\n"))
