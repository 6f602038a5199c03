"""The seeds that once failed, as seeds.txt has them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("seeds.txt")


@cache
def pinned_seeds() -> tuple[int, ...]:
    """In their order; what follows a # in the file says what each once found."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    return tuple(int(line.split("#")[0]) for line in lines if line.split("#")[0].strip())
