"""What is known of HPACK, held against a library that knows all of it."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.api.http.hpack import content_length, leaves_tables, response_block, split_length

NAMES = st.sampled_from([":method", ":path", "authorization", "content-type", "x-a", "x-" + "n" * 200])
VALUES = st.sampled_from(["", "POST", "/", "v", "v" * 126, "v" * 127, "v" * 400, "\xe9t\xe9"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)


def table_of(encoder: hpack.Encoder) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in encoder.header_table.dynamic_entries]


@given(st.lists(st.tuples(FIELDS, st.booleans()), max_size=6), st.booleans())
def test_a_block_leaves_the_tables_exactly_if_it_changes_none(
    blocks: list[tuple[list[tuple[str, str]], bool]], huffman: bool
) -> None:
    encoder = hpack.Encoder()
    for fields, is_sensitive in blocks:
        before = table_of(encoder)
        block = encoder.encode([(*field, is_sensitive) for field in fields], huffman=huffman)
        assert leaves_tables(block) == (table_of(encoder) == before)


def test_a_new_size_of_the_table_is_a_change() -> None:
    encoder = hpack.Encoder()
    encoder.encode([("a", "b")])
    encoder.header_table_size = 100
    assert not leaves_tables(encoder.encode([("a", "b")]))


@given(st.binary(max_size=40))
def test_any_bytes_are_judged(block: bytes) -> None:
    leaves_tables(block)


@given(FIELDS)
def test_what_is_cut_off_is_no_block(fields: list[tuple[str, str]]) -> None:
    block = hpack.Encoder().encode([(*field, True) for field in fields], huffman=False)
    starts = [len(hpack.Encoder().encode([(*f, True) for f in fields[:n]], huffman=False)) for n in range(len(fields))]
    for end in range(len(block)):
        assert leaves_tables(block[:end]) == (end in starts), end


def test_too_long_an_integer_is_no_block() -> None:
    assert not leaves_tables(b"\xff" + b"\x80" * 20 + b"\x01")


@given(
    st.sampled_from([200, 204, 401, 503]),
    st.sampled_from(["text/plain", "x/" + "y" * 300]),
    st.lists(st.tuples(st.sampled_from(["X-Seen", "kv-age"]), st.sampled_from(["", "1", "w" * 127])), max_size=3),
    st.integers(0, 10**9),
)
def test_an_answer_is_read_as_it_was_meant_and_leaves_the_tables(
    status: int, content_type: str, headers: list[tuple[str, str]], size: int
) -> None:
    block = response_block(status, content_type, "Sun, 29 Nov 2026 07:03:50 GMT", headers) + content_length(size)
    decoder = hpack.Decoder()
    fields = [(name, value) for name, value in decoder.decode(block)]
    assert fields == [
        (":status", str(status)),
        ("content-type", content_type),
        ("cache-control", "no-store"),
        ("date", "Sun, 29 Nov 2026 07:03:50 GMT"),
        *((name.lower(), value) for name, value in headers),
        ("content-length", str(size)),
    ]
    assert leaves_tables(block) and not decoder.header_table.dynamic_entries


@given(st.integers(0, 10**10), st.booleans(), FIELDS, FIELDS, st.booleans())
def test_the_length_is_split_off(
    size: int, huffman: bool, before: list[tuple[str, str]], behind: list[tuple[str, str]], is_sensitive: bool
) -> None:
    def block(length: object) -> bytes:
        fields = [(*field, True) for field in [*before, ("content-length", str(length)), *behind]]
        return hpack.Encoder().encode(fields, huffman=huffman)

    split, other = split_length(block(size)), split_length(block(7))
    assert split is not None and other is not None
    assert split[1] == size and split[0] == other[0]
    further = split_length(hpack.Encoder().encode([("x", "y", True)], huffman=huffman) + block(size))
    assert further is not None and further[0] != split[0]


@pytest.mark.parametrize("fields", [
    [("content-length", "1"), ("content-length", "1")],
    [("x-a", "1")],
    [("content-length", "")],
    [("content-length", "12a")],
    [("content-length", "-1")],
    [("content-length", "1" * 100)],
])  # fmt: skip
@pytest.mark.parametrize("huffman", [True, False])
def test_what_has_no_one_length_is_not_split(fields: list[tuple[str, str]], huffman: bool) -> None:
    assert split_length(hpack.Encoder().encode([(*field, True) for field in fields], huffman=huffman)) is None


def test_what_changes_the_tables_is_not_split() -> None:
    assert split_length(hpack.Encoder().encode([("content-length", "12")])) is None


@given(st.binary(max_size=12))
def test_any_bytes_are_split_or_not(data: bytes) -> None:
    split_length(b"\x0f\x0d" + data)
