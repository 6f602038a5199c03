"""Access tokens, data tokens and limits, by themselves."""

from __future__ import annotations

import base64
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.api.auth import access_token, data_token
from kvnode.api.auth.data_token import Claims
from kvnode.api.auth.rate import RateLimit
from kvnode.base.errors import RateLimited
from kvnode.machine.directory.rows import Right, SigningKeyRow
from tests.unit.machine.directory.directory import token

KEY = SigningKeyRow(3, b"k" * 32, 0)
CLAIMS = st.builds(
    Claims,
    st.text("abcdefgh234567", max_size=16),
    st.uuids().map(str),
    st.sampled_from(Right),
    st.integers(0, 2**63),
)


def test_a_fresh_token() -> None:
    fresh = access_token.mint(random.SystemRandom())
    assert re.fullmatch(r"kvn_[a-z2-7]{8}_[a-z2-7]{40}", fresh.text)
    assert access_token.id_of(fresh.text) == fresh.token_id
    assert fresh.text.endswith(fresh.last_characters)
    row = token(fresh.token_id, secret_hash=fresh.secret_hash)
    assert access_token.matches(fresh.text, row)
    assert not access_token.matches(fresh.text[:-1] + "8", row)
    assert fresh.text.encode() not in fresh.secret_hash
    assert access_token.mint(random.SystemRandom()).text != fresh.text


@given(st.text(max_size=80))
def test_any_text_has_an_id_or_none(text: str) -> None:
    assert len(access_token.id_of(text)) in {0, 8}
    assert access_token.same(text, text)
    assert not access_token.same(text, text + "x")


@given(CLAIMS)
def test_what_is_signed_is_read(claims: Claims) -> None:
    text = data_token.sign(claims, KEY)
    signed = data_token.take_apart(text)
    assert signed is not None
    assert (signed.claims, signed.key_id) == (claims, 3)
    assert data_token.is_genuine(signed, KEY)
    assert not data_token.is_genuine(signed, KEY._replace(secret=b"other"))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text), "a header carries it as it is"


@given(CLAIMS, st.integers(0, 2_000), st.integers(1, 255))
def test_a_flipped_bit_is_seen(claims: Claims, position: int, flip: int) -> None:
    text = data_token.sign(claims, KEY)[len(data_token.PREFIX) :]
    data = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    data[position % len(data)] ^= flip
    forged = data_token.PREFIX + base64.urlsafe_b64encode(bytes(data)).decode().rstrip("=")
    signed = data_token.take_apart(forged)
    assert signed is None or signed.key_id != 3 or not data_token.is_genuine(signed, KEY)


@given(st.one_of(st.text(max_size=300), st.text("ABCDabcd0123-_", max_size=300).map(lambda t: data_token.PREFIX + t)))
def test_no_text_breaks_the_reader(text: str) -> None:
    signed = data_token.take_apart(text)
    assert signed is None or not data_token.is_genuine(signed, KEY)


def test_requests_are_counted() -> None:
    rate = RateLimit(10, 0, 0.0)
    for _ in range(10):
        rate.take(1_000_000, 0.0)
    with pytest.raises(RateLimited, match="10 requests a second"):
        rate.take(1, 0.0)
    with pytest.raises(RateLimited):
        rate.take(1, 99.0)
    rate.take(1, 100.0)
    for _ in range(10):
        rate.take(1, 10_000.0)
    with pytest.raises(RateLimited):
        rate.take(1, 10_000.0)


def test_bytes_are_paid_for_afterwards() -> None:
    rate = RateLimit(0, 1_000, 0.0)
    rate.take(5_000, 0.0)
    with pytest.raises(RateLimited, match=r"in 3000 ms"):
        rate.take(1, 1_000.0)
    rate.take(1, 4_001.0)


@given(st.lists(st.tuples(st.floats(0, 500), st.integers(0, 3_000)), max_size=60))
def test_never_more_than_the_limit_and_one_burst(steps) -> None:
    rate, now, passed, passed_bytes, largest = RateLimit(5, 1_000, 0.0), 0.0, 0, 0, 0
    for wait, size in steps:
        now += wait
        try:
            rate.take(size, now)
        except RateLimited:
            continue
        passed, passed_bytes, largest = passed + 1, passed_bytes + size, max(largest, size)
    assert passed <= 5 + 5 * now / 1000 + 1e-6
    assert passed_bytes <= 1_000 + now + largest + 1e-6
