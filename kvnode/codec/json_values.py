"""Values as JSON, for the command line and for files.

What JSON has is itself. The rest is an object with one member whose name says what it is:

    {"$bigint": "12"}   {"$u64": "12"}   {"$bytes": "<base64>"}   {"$date": "2030-01-01T00:00:00.000+00:00"}
    {"$number": "NaN"}, "Infinity", "-Infinity"   {"$undefined": true}   {"$set": [...]}   {"$map": [[key, value], ...]}
    {"$object": {...}}  a plain object whose own single member's name begins with $
    {"$v8": "<base64>"} anything else, as stored: also a value that holds itself, is nested too deep, or holds the same
                        parts again and again
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec import values
from kvnode.codec.bigint import BigInt
from kvnode.codec.json_keys import SPECIAL_NUMBERS, number_to_json
from kvnode.codec.values import KvU64

_SPARE_PARTS_COUNT = 64

_MAX_SHOWN_CHARACTERS_COUNT = 200


def value_to_json(data: bytes, encoding: int) -> object:
    """What json.dumps takes for a stored value; never raises: what cannot be shown is {"$v8": ...}."""
    try:
        # No part of a value takes less than a byte, but a part may be named many times.
        return _Writer(2 * len(data) + _SPARE_PARTS_COUNT).to_json(values.decode_value(data, encoding))
    except (KvError, _Unshown, RecursionError, ValueError):  # ValueError: a bigint of more digits than Python writes
        return {"$v8": base64.b64encode(data).decode()}


def value_from_json(parsed: object) -> tuple[bytes, int]:
    """(bytes, encoding) of a parsed JSON value.

    Raises:
        InvalidRequest: BAD_VALUE_JSON, VALUE_NOT_SERIALIZABLE.
    """
    if isinstance(parsed, dict) and list(parsed) == ["$v8"]:
        return _base64(parsed["$v8"]), values.V8
    return values.encode_value(_from_json(parsed))


class _Unshown(Exception):
    pass


class _Writer:
    """Writes one value; gives up after so many parts."""

    __slots__ = ("_left_count",)

    def __init__(self, parts_count: int) -> None:
        self._left_count = parts_count

    def to_json(self, value: object) -> object:
        self._left_count -= 1
        if self._left_count < 0:
            raise _Unshown
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, BigInt):
            return {"$bigint": str(int(value))}
        if isinstance(value, int):
            return value
        if isinstance(value, float):
            return number_to_json(value)
        if isinstance(value, KvU64):
            return {"$u64": str(int(value))}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, datetime):
            return {"$date": value.isoformat(timespec="milliseconds")}
        if isinstance(value, list):
            return [self.to_json(element) for element in value]
        if isinstance(value, dict):
            shown = {str(name): self.to_json(member) for name, member in value.items()}
            return {"$object": shown} if len(shown) == 1 and next(iter(shown)).startswith("$") else shown
        return self._library_type_to_json(value)

    def _library_type_to_json(self, value: object) -> object:
        from v8serialize.jstypes import JSMap, JSSet, JSUndefined

        if value is JSUndefined:
            return {"$undefined": True}
        if isinstance(value, JSMap):
            return {"$map": [[self.to_json(name), self.to_json(member)] for name, member in value.items()]}
        if isinstance(value, JSSet):
            return {"$set": [self.to_json(element) for element in value]}
        raise _Unshown


def _from_json(parsed: object) -> object:
    if isinstance(parsed, list):
        return [_from_json(element) for element in parsed]
    if not isinstance(parsed, Mapping):
        return parsed
    if len(parsed) == 1:
        ((name, content),) = parsed.items()
        if name.startswith("$"):
            try:
                return _named_from_json(name, content)
            except (ValueError, TypeError, KeyError) as error:
                text = f"{_short(json.dumps(parsed))} stands for no value: {_short(str(error))}."
                raise InvalidRequest("BAD_VALUE_JSON", text) from error
    return {name: _from_json(member) for name, member in parsed.items()}


def _named_from_json(name: str, content: object) -> object:
    if name == "$object" and isinstance(content, dict):
        return {member: _from_json(value) for member, value in content.items()}
    if name == "$bigint" and isinstance(content, str):
        return BigInt(content)
    if name == "$u64" and isinstance(content, str | int):
        return KvU64(int(content))
    if name == "$bytes":
        return _base64(content)
    if name == "$date" and isinstance(content, str):
        return datetime.fromisoformat(content)
    if name == "$number" and isinstance(content, str):
        return SPECIAL_NUMBERS[content]
    return _library_type_from_json(name, content)


def _library_type_from_json(name: str, content: object) -> object:
    from v8serialize.jstypes import JSMap, JSSet, JSUndefined

    if name == "$undefined":
        return JSUndefined
    if name == "$set" and isinstance(content, list):
        return JSSet(_from_json(element) for element in content)
    if name == "$map" and isinstance(content, list):
        return JSMap((_from_json(key), _from_json(value)) for key, value in content)
    raise ValueError(
        "the names are $bigint, $u64, $bytes, $date, $number, $undefined, $set, $map, $object and, outermost, $v8"
    )


def _base64(content: object) -> bytes:
    try:
        return base64.b64decode(str(content), validate=True)
    except ValueError as error:
        raise InvalidRequest("BAD_VALUE_JSON", f"{_short(repr(content))} is not base64: {error}.") from error


def _short(text: str) -> str:
    """For an error: a value may be as large as a whole row."""
    return text if len(text) <= _MAX_SHOWN_CHARACTERS_COUNT else f"{text[:_MAX_SHOWN_CHARACTERS_COUNT]}..."
