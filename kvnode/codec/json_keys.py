"""Keys as JSON, for the command line and for files.

A key is an array: a string is a string, a number a JavaScript number, true and false are themselves;
{"$bigint": "12"} is a bigint, {"$bytes": "<base64>"} bytes, {"$number": "NaN"} a number that JSON has no literal for
(NaN, Infinity, -Infinity).
"""

from __future__ import annotations

import base64
import json
import math

from kvnode.base.errors import InvalidRequest
from kvnode.codec.bigint import BigInt
from kvnode.codec.keys import Key, KeyPart

SPECIAL_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def key_from_json(text: str) -> Key:
    """The key that a JSON array stands for.

    Raises:
        InvalidRequest: BAD_KEY_JSON.
    """
    try:
        parts = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            "BAD_KEY_JSON",
            f'{text!r} is not JSON ({error.msg} at character {error.pos + 1}). A key is an array: ["users", 1]; a '
            "shell needs it in single quotes.",
        ) from error
    return key_from_parts(parts)


def key_from_parts(parts: object) -> Key:
    """The key that a parsed JSON array stands for. Raises as key_from_json."""
    if not isinstance(parts, list):
        raise InvalidRequest("BAD_KEY_JSON", f'A key is a JSON array, such as ["users", 1], not {json.dumps(parts)}.')
    return tuple(_part_from_json(part) for part in parts)


def key_to_parts(key: Key) -> list[object]:
    """The inverse of key_from_parts: what json.dumps takes."""
    return [_part_to_json(part) for part in key]


def key_to_json(key: Key) -> str:
    """The inverse of key_from_json."""
    return json.dumps(key_to_parts(key), ensure_ascii=False)


def number_to_json(value: float) -> object:
    """A number as JSON, integers without a point."""
    if math.isnan(value):
        return {"$number": "NaN"}
    if math.isinf(value):
        return {"$number": "Infinity" if value > 0 else "-Infinity"}
    # -0 and integers that a double holds only roughly keep the float's own spelling.
    if value.is_integer() and abs(value) < 1 << 53 and math.copysign(1.0, value) == math.copysign(1.0, int(value)):
        return int(value)
    return value


def _part_from_json(part: object) -> KeyPart:
    if isinstance(part, str | bool):
        return part
    if isinstance(part, int | float):
        return float(part)
    if isinstance(part, dict) and len(part) == 1:
        ((name, text),) = part.items()
        try:
            if name == "$bigint":
                return BigInt(text)
            if name == "$bytes":
                return base64.b64decode(text, validate=True)
            if name == "$number":
                return SPECIAL_NUMBERS[text]
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidRequest("BAD_KEY_JSON", f"{json.dumps(part)} stands for no key part: {error}.") from error
    raise InvalidRequest(
        "BAD_KEY_JSON",
        f"{json.dumps(part)} stands for no key part: use a string, a number, true, false, "
        '{"$bigint": "12"} or {"$bytes": "<base64>"}.',
    )


def _part_to_json(part: KeyPart) -> object:
    if isinstance(part, str | bool):
        return part
    if isinstance(part, bytes):
        return {"$bytes": base64.b64encode(part).decode()}
    if isinstance(part, BigInt):
        return {"$bigint": str(int(part))}
    return number_to_json(float(part))
