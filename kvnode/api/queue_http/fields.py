"""A JSON object whose fields are taken out one by one, each of its type; what is left over is a mistake."""

from __future__ import annotations

import json
from typing import Any

from kvnode.base.errors import InvalidRequest

_REQUIRED: Any = object()


class Fields:
    """One object of a request.

    Args:
        found: as json.loads gave it.
        where: what messages call it.

    A field that is null counts as absent.

    Raises:
        InvalidRequest: MALFORMED_REQUEST, as all of its methods do.
    """

    def __init__(self, found: object, where: str) -> None:
        if not isinstance(found, dict):
            raise _malformed(f"{where} is {_kind(found)} and must be an object")
        self._found = {name: value for name, value in found.items() if value is not None}  # null counts as absent
        self._where = where

    @classmethod
    def of(cls, body: bytes) -> Fields:
        """Of a request's body; an empty one is an empty object."""
        try:
            return cls(json.loads(body) if body.strip() else {}, "the body")
        except (ValueError, RecursionError) as error:
            raise _malformed(f"the body is no JSON ({str(error)[:200]})") from None

    def integer(self, name: str, least: int, most: int, otherwise: int = _REQUIRED) -> int:
        """A number without a fraction, within bounds."""
        found = self._take(name, otherwise)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if not isinstance(found, int) or isinstance(found, bool):
            raise self._wrong(name, found, "a whole number")
        if not least <= found <= most:
            raise _malformed(f"`{name}` in {self._where} is {found} and must be from {least} to {most}")
        return found

    def text(self, name: str, otherwise: str = _REQUIRED) -> str:
        """A string that is text: JSON can spell half of a surrogate pair, which UTF-8 cannot."""
        found = self._take(name, otherwise)
        if not isinstance(found, str):
            raise self._wrong(name, found, "a string")
        try:
            found.encode()
        except UnicodeEncodeError:
            raise _malformed(f"`{name}` in {self._where} has half of a surrogate pair, which is no text") from None
        return found

    def flag(self, name: str) -> bool:
        """true or false; false when it is absent."""
        found = self._take(name, False)
        if not isinstance(found, bool):
            raise self._wrong(name, found, "true or false")
        return found

    def items(self, name: str) -> list[object]:
        """An array; empty when it is absent."""
        found = self._take(name, [])
        if not isinstance(found, list):
            raise self._wrong(name, found, "an array")
        return found

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return name in self._found

    def end(self) -> None:
        """Nothing more is known."""
        if self._found:
            raise _malformed(f"{self._where} has a field `{next(iter(self._found))[:100]}` that is not known")

    def _take(self, name: str, otherwise: object) -> object:
        found = self._found.pop(name, None)
        if found is None:
            if otherwise is _REQUIRED:
                raise _malformed(f"{self._where} lacks `{name}`")
            return otherwise
        return found

    def _wrong(self, name: str, found: object, wanted: str) -> InvalidRequest:
        return _malformed(f"`{name}` in {self._where} is {_kind(found)} and must be {wanted}")


def _kind(found: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(found), "a number")


def _malformed(detail: str) -> InvalidRequest:
    return InvalidRequest("MALFORMED_REQUEST", f"The request is not as docs/reference/queue-http.md has it: {detail}.")
