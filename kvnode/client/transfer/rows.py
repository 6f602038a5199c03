"""A row in a file: one JSON object a line.

    {"key": ["users", 1], "value": {"born": 1815}, "encoding": "v8", "versionstamp": "0001...", "expire_at_ms": null}

`key` and `value` are for people (codec/json_keys.py, codec/json_values.py). Where the readable form would not give the
same bytes back, the bytes stand beside it in base64 and count on import: `data` for the value (an object with holes, a
header of another version of V8), `encoded_key` for the key (one that is not Deno's; `key` is then null).
`after_start`: the row was written while the export ran.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvnode.base.errors import InvalidRequest
from kvnode.codec import values
from kvnode.codec.json_keys import key_from_parts, key_to_parts
from kvnode.codec.json_values import value_from_json, value_to_json
from kvnode.codec.keys import decode_key, encode_key

ENCODING_NAMES = {values.V8: "v8", values.LE64: "u64", values.BYTES: "bytes"}
AFTER_START_ENDING = b'"after_start": true}\n'  # of a line so marked
_ENCODINGS = {name: number for number, name in ENCODING_NAMES.items()}
_FIELDS = frozenset(("key", "encoded_key", "value", "data", "encoding", "versionstamp", "expire_at_ms", "after_start"))


class TransferRow(NamedTuple):
    """A row on its way: what a set needs.

    Attributes:
        place: where it stands in its source, for errors: "line 7".
        key: encoded.
        data: the value's bytes.
        encoding: kv.v1.ValueEncoding.
        expire_at_ms: 0 = never.
    """

    place: str
    key: bytes
    data: bytes
    encoding: int
    expire_at_ms: int


def row_to_line(
    key: bytes, data: bytes, encoding: int, versionstamp: str, expire_at_ms: int | None, *, after_start: bool = False
) -> bytes:
    """The line of a stored row, its newline included."""
    described: dict[str, Any] = {"key": None, "value": value_to_json(data, encoding)}
    parts = _readable_key(key)
    if parts is None:
        described["encoded_key"] = _to_base64(key)
    else:
        described["key"] = parts
    if not _gives(described["value"], data, encoding):
        described["data"] = _to_base64(data)
    described |= {
        "encoding": ENCODING_NAMES.get(encoding, str(encoding)),
        "versionstamp": versionstamp,
        "expire_at_ms": expire_at_ms,
    }
    if after_start:
        described["after_start"] = True
    return _to_json(described) + b"\n"


def line_to_row(line: bytes, place: str) -> TransferRow:
    """The inverse of row_to_line.

    Raises:
        InvalidRequest: BAD_IMPORT_LINE, which names the place.
    """
    try:
        described = json.loads(line.decode())
        if not isinstance(described, dict):
            raise ValueError("it is not a JSON object")
        unknown = sorted(described.keys() - _FIELDS)
        if unknown:
            raise ValueError(f"it has no {unknown[0]!r}; a row may have {', '.join(sorted(_FIELDS))}")
        data, encoding = _value_of(described)
        return TransferRow(place, _key_of(described), data, encoding, _expiry_of(described))
    except InvalidRequest as error:
        raise bad_row(place, error.message) from error
    except json.JSONDecodeError as error:
        raise bad_row(place, f"it is not a JSON object: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:  # whose text is another with each Python
        raise bad_row(place, "it is nested too deeply") from error
    except (ValueError, TypeError) as error:
        raise bad_row(place, str(error) or type(error).__name__) from error


def bad_row(place: str, why: str) -> InvalidRequest:
    """The error for a row that cannot be imported."""
    return InvalidRequest("BAD_IMPORT_LINE", f"{place}: {why}")


def _readable_key(key: bytes) -> list[object] | None:
    try:
        parts = key_to_parts(decode_key(key))
        return parts if encode_key(key_from_parts(parts)) == key else None
    except InvalidRequest:
        return None


def _gives(readable: object, data: bytes, encoding: int) -> bool:
    try:
        return value_from_json(readable) == (data, encoding)
    except (InvalidRequest, ValueError, TypeError, RecursionError):
        return False


def _to_json(described: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(described, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JavaScript's strings may hold
        return json.dumps(described).encode()


def _key_of(described: Mapping[str, Any]) -> bytes:
    encoded = described.get("encoded_key")
    if encoded is not None:
        key = _from_base64(encoded, "encoded_key")
    elif "key" not in described:
        raise ValueError('"key" is missing')
    else:
        key = encode_key(key_from_parts(described["key"]))
    if not key:
        raise ValueError("a key has at least one part")
    return key


def _value_of(described: Mapping[str, Any]) -> tuple[bytes, int]:
    name = described.get("encoding")
    if name is not None and name not in _ENCODINGS:
        raise ValueError(f'"encoding" is one of {", ".join(_ENCODINGS)}, not {name!r}')
    if described.get("data") is not None:
        if name is None:
            raise ValueError('"data" needs "encoding" beside it')
        return _from_base64(described["data"], "data"), _ENCODINGS[name]
    if "value" not in described:
        raise ValueError('"value" is missing, and so is "data"')
    data, encoding = value_from_json(described["value"])
    if name is not None and _ENCODINGS[name] != encoding:
        raise ValueError(f'"encoding" says {name!r}, and the value is of {ENCODING_NAMES[encoding]!r}')
    return data, encoding


def _expiry_of(described: Mapping[str, Any]) -> int:
    expire_at_ms = described.get("expire_at_ms")
    if expire_at_ms is None:
        return 0
    if not isinstance(expire_at_ms, int) or isinstance(expire_at_ms, bool) or not 0 < expire_at_ms < 1 << 63:
        raise ValueError('"expire_at_ms" is milliseconds since 1970, or null')
    return expire_at_ms


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: object, name: str) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f'"{name}" is a text of base64')
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f'"{name}" is not base64: {error}') from None
