"""YAML of nested mappings, lists and scalars: what a compose file needs, and not a dependency for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# Texts that YAML reads as themselves wherever they stand; all others are quoted.
_PLAIN = re.compile(r"[A-Za-z./][A-Za-z0-9 ._/-]*|<<")
_NOT_TEXTS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


class Alias(NamedTuple):
    """`&name` with the mapping that it names, or `*name`."""

    name: str
    value: Mapping[str, Any] | None = None


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document's text; its sections stand apart."""
    return "\n".join("\n".join(_entry(key, value, 0)) + "\n" for key, value in document.items())


def _entry(key: str, value: Any, depth: int) -> list[str]:
    start = "  " * depth + f"{_scalar(key)}:"
    if isinstance(value, Alias):
        start += f" {value.name}"
        value = value.value
        if value is None:
            return [start]
    if isinstance(value, Mapping):
        if not value:
            return [f"{start} {{}}"]
        return [start, *(line for name, part in value.items() for line in _entry(name, part, depth + 1))]
    if isinstance(value, list):
        return [start, *("  " * (depth + 1) + f"- {_scalar(part)}" for part in value)]
    return [f"{start} {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXTS:
        return value
    return json.dumps(value)  # a JSON scalar is one of YAML
