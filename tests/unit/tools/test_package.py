"""What an installed kvnode has besides its code."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_type_checkers_see_the_types() -> None:
    """Without the marker of PEP 561 mypy takes everything that comes from an installed kvnode for Any."""
    assert (ROOT / "kvnode" / "py.typed").is_file()
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in packed["kvnode"]
    assert "**/*.pyi" in packed["kvnode.proto"], "the messages are generated, and their types stand beside them"
