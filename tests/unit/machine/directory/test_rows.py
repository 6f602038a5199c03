"""The codec of the directory's rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.machine.directory.rows import (
    DIRECTORY_PREFIX,
    VERSION_KEY,
    DatabaseMode,
    DatabaseRow,
    PurgeRow,
    Right,
    SigningKeyRow,
    TokenRow,
    UnknownRow,
    VersionRow,
    decode,
    encode,
    key_of,
)

NUMBERS = st.integers(1, 2**32 - 1)
TIMES = st.integers(0, 2**53)
TEXTS = st.text(max_size=40)
ROWS = st.one_of(
    st.builds(DatabaseRow, NUMBERS, TEXTS, TEXTS, st.sampled_from(DatabaseMode), NUMBERS, TIMES),
    st.builds(
        TokenRow,
        st.text("abcdefgh234567", min_size=8, max_size=8),
        st.binary(min_size=32, max_size=32),
        TEXTS,
        st.integers(0, 2**32 - 1),
        st.sampled_from(Right),
        TEXTS,
        TIMES,
        TIMES,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**63),
    ),
    st.builds(SigningKeyRow, NUMBERS, st.binary(max_size=64), TIMES),
    st.builds(PurgeRow, NUMBERS, TEXTS, TEXTS, TIMES, TIMES),
    st.builds(VersionRow, NUMBERS),
)


@given(ROWS)
def test_what_is_written_is_read(row) -> None:
    assert decode(key_of(row), encode(row)) == row
    assert key_of(row).startswith(DIRECTORY_PREFIX)


@given(st.lists(ROWS, max_size=8))
def test_no_two_rows_share_a_key_unless_they_are_the_same_thing(rows) -> None:
    identity = {key_of(row): (type(row), row[0] if not isinstance(row, VersionRow) else 0) for row in rows}
    assert len(set(identity.values())) == len(identity)


@given(ROWS, st.integers(2, 255))
def test_a_newer_version_is_told_apart(row, version: int) -> None:
    with pytest.raises(UnknownRow, match=f"version {version}"):
        decode(key_of(row), bytes((version,)) + encode(row)[1:])


@given(st.binary(max_size=30), st.binary(max_size=60))
def test_no_bytes_break_the_reader(key: bytes, value: bytes) -> None:
    try:
        decode(DIRECTORY_PREFIX + key, value)
    except UnknownRow:
        return


def test_a_mode_of_the_future_is_an_unknown_row() -> None:
    row = DatabaseRow(2, "u", "n", DatabaseMode.ENABLED, 1, 1)
    value = encode(row).replace(b"enabled", b"exalted")
    with pytest.raises(UnknownRow):
        decode(key_of(row), value)
    with pytest.raises(UnknownRow):
        decode(VERSION_KEY, b"")
