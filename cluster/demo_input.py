"""The demo's input: every named character of Python's own Unicode database."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple


class Character(NamedTuple):
    """A character, its record, and the words under which the index lists it."""

    code: str
    words: tuple[str, ...]
    record: dict[str, object]


def named_characters() -> Iterator[Character]:
    """All of them but those named by rule (Unicode Standard, section 4.8: Hangul syllables, and the
    ideographs whose name ends with their own code point), which say nothing that their code does not."""
    for code_point in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code_point), "")
        if name and not _is_named_by_rule(code_point, name):
            yield _character(code_point, name)


def _is_named_by_rule(code_point: int, name: str) -> bool:
    return name.startswith("HANGUL SYLLABLE ") or name.endswith(f"-{code_point:04X}")


def _character(code_point: int, name: str) -> Character:
    character = chr(code_point)
    record: dict[str, object] = {
        "character": character,
        "name": name,
        "category": unicodedata.category(character),
        "bidirectional": unicodedata.bidirectional(character),
        "combining": unicodedata.combining(character),
        "decomposition": unicodedata.decomposition(character),
        "east_asian_width": unicodedata.east_asian_width(character),
        "mirrored": bool(unicodedata.mirrored(character)),
        "numeric": unicodedata.numeric(character, None),
    }
    return Character(f"{code_point:06X}", tuple(sorted(set(name.split()))), record)
