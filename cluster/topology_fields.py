"""The values of a table of a topology file, each with an error that says where it stands and what is wanted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvnode.base.errors import ConfigError

_MAX_PORT = 65_535
# A node's name is a host name in the compose file, so all labels are held to that.
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"{_PART}(?:\.{_PART})*")


class Fields:
    """A table of the file.

    Args:
        table: its values.
        place: what the table is called in errors.
        known: the keys that it may have. Raises ConfigError for another.
    """

    def __init__(self, table: Mapping[str, Any], place: str, known: Sequence[str]) -> None:
        self._table = table
        self._place = place
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
                raise ConfigError(f"{place} has the unknown key '{key}': {hint}")

    def _wrong(self, key: str, wanted: str) -> ConfigError:
        if key not in self._table:
            return ConfigError(f"{self._place} lacks '{key}': {wanted}")
        return ConfigError(f"'{key}' of {self._place} must be {wanted}, not {self._table[key]!r}")

    def label(self, key: str, default: str = "") -> str:
        """A host's name: letters, digits, '-' and '.', at most 63 between two dots."""
        value = self._table.get(key, default or None)
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise self._wrong(key, "a name of letters, digits, '-' and '.', at most 63 between two dots, '-' at no end")
        return value

    def choice(self, key: str, values: Sequence[str]) -> str:
        """One of `values`."""
        value = self._table.get(key)
        if value not in values:
            raise self._wrong(key, " or ".join(values))
        return str(value)

    def truth(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._table.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def whole(self, key: str, default: int, least: int) -> int:
        """A whole number of at least `least`."""
        value = self._table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._wrong(key, f"a whole number of at least {least}")
        return value

    def port(self, key: str, default: int) -> int:
        """A TCP port."""
        value = self._table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_PORT:
            raise self._wrong(key, f"a port, 1 to {_MAX_PORT}")
        return value

    def number(self, key: str, most: float) -> float:
        """A number from 0 to `most`."""
        value = self._table.get(key)
        if not _is_number(value, most):
            raise self._wrong(key, f"milliseconds, 0 to {most:g}")
        return float(value)  # type: ignore[arg-type]

    def span(self, key: str, default: tuple[float, float], most: float) -> tuple[float, float]:
        """[least, greatest], both from 0 to `most`."""
        value = self._table.get(key, list(default))
        if not isinstance(value, list) or len(value) != 2 or not all(_is_number(part, most) for part in value):
            raise self._wrong(key, f"[least, greatest] in milliseconds, 0 to {most:g}")
        if value[0] > value[1]:
            raise self._wrong(key, "[least, greatest] with the smaller first")
        return float(value[0]), float(value[1])

    def pair(self, key: str, values: Sequence[str]) -> tuple[str, str]:
        """Two different ones of `values`."""
        value = self._table.get(key)
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(part in values for part in value)
            or value[0] == value[1]
        ):
            raise self._wrong(key, f"two different ones of {', '.join(values)}")
        return value[0], value[1]

    def table(self, key: str, known: Sequence[str]) -> Fields:
        """A table with these keys; an empty one when it is absent."""
        value = self._table.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, f"a table [{key}]")
        return Fields(value, f"[{key}]", known)

    def named_tables(self, key: str, known: Sequence[str]) -> Iterator[tuple[str, Fields]]:
        """The tables [key.NAME], at least one, with their names."""
        value = self._table.get(key)
        if not isinstance(value, dict) or not value:
            raise self._wrong(key, f"one [{key}.NAME] for each")
        for name, table in value.items():
            if not _LABEL.fullmatch(name) or not isinstance(table, dict):
                raise ConfigError(f"[{key}.{name}] must be a table whose name has letters, digits, '-' and '.'")
            yield name, Fields(table, f"[{key}.{name}]", known)

    def tables(self, key: str, wanted: str, *, needed: bool = True) -> list[Mapping[str, Any]]:
        """The tables of an array [[key]]; at least one if `needed`."""
        value = self._table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value) or (needed and not value):
            raise self._wrong(key, wanted or f"an array of tables [[{key}]]")
        return value


def _is_number(value: object, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
