"""Which rows each transaction of the demo writes, as a node must show them.

("character", code)              the record
("word", word, code)             one row for each word of the name
("applied", code, versionstamp)  appended by the commit itself: a second application would leave a second row
("count",)                       + 1: a second application would count twice
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cluster.demo_input import Character
from cluster.replay import suffixed
from kvnode.codec.keys import KeyRange, encode_key, prefix_range
from kvnode.codec.values import encode_value

CHARACTER, WORD, APPLIED = "character", "word", "applied"
COUNT_KEY = ("count",)
SPACES = (CHARACTER, WORD, APPLIED)
INDEX_VALUE = b""


class ExpectedRow(NamedTuple):
    """A row that must be there, and the transaction that it belongs to."""

    code: str
    value: bytes
    versionstamp: bytes


def expected_rows(characters: Iterable[Character], acknowledged: Mapping[str, bytes]) -> dict[bytes, ExpectedRow]:
    """Every row that the acknowledged transactions promise."""
    rows: dict[bytes, ExpectedRow] = {}
    for character in characters:
        stamp = acknowledged.get(character.code)
        if stamp is None:
            continue
        record, _ = encode_value(character.record)
        rows[encode_key((CHARACTER, character.code))] = ExpectedRow(character.code, record, stamp)
        for word in character.words:
            rows[encode_key((WORD, word, character.code))] = ExpectedRow(character.code, INDEX_VALUE, stamp)
        applied = suffixed(encode_key((APPLIED, character.code)), stamp)
        rows[applied] = ExpectedRow(character.code, INDEX_VALUE, stamp)
    return rows


def space_range(space: str) -> KeyRange:
    """All rows under one first part."""
    return prefix_range((space,))
