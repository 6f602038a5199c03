"""V8's value serialization for the values that JSON has, ten times as fast as in general.

Most values are trees of objects, arrays, strings, numbers, booleans and null. This module writes and reads those and
bigints. Whatever else turns up (dates, byte arrays, maps, references, names that look like array indexes) raises
NotPlain, and the caller starts again with the general codec (v8full.py). The format is that of V8's ValueSerializer
(src/objects/value-serializer.cc), version 15 written, 13 to 16 read:

    value  = o (key value)* { count | A length value* $ properties=0 length | " length latin-1 | c length UTF-16
           | a length (index value)* @ length length | I zigzag | U varint | N double | Z bigint | T | F | 0
"""

from __future__ import annotations

import math
import struct

from kvnode.codec.bigint import BigInt

HEADER = b"\xff\x0f"
OLDEST_VERSION = 13
NEWEST_VERSION = 16
_MAX_DEPTH = 200
_MAX_SAFE_INTEGER = (1 << 53) - 1
_MAX_INT31 = (1 << 30) - 1  # as V8: integers beyond a small integer are doubles
_DOUBLE = struct.Struct("<d")
_CONSTANTS = {0x54: True, 0x46: False, 0x30: None}
_MAX_VARINT_SHIFT = 63


class NotPlain(Exception):
    """Not one of the plain values, or damaged: ask the general codec, which also knows what to say."""


def encode(value: object) -> bytes:
    """The serialization of a plain value. Raises NotPlain."""
    out = bytearray(HEADER)
    _write(out, value, 0)
    return bytes(out)


def decode(data: bytes) -> object:
    """The plain value of a serialization. Raises NotPlain."""
    if len(data) < 3 or data[0] != 0xFF or not OLDEST_VERSION <= data[1] <= NEWEST_VERSION:
        raise NotPlain
    try:
        value, end = _read(data, 2, 0)
    except (IndexError, struct.error) as error:
        raise NotPlain from error
    if end != len(data):
        raise NotPlain
    return value


def _write(out: bytearray, value: object, depth: int) -> None:
    kind = type(value)
    if kind is str:
        _write_string(out, value)  # type: ignore[arg-type]
    elif kind is int:
        _write_int(out, value)  # type: ignore[arg-type]
    elif kind is dict:
        _write_object(out, value, depth)  # type: ignore[arg-type]
    elif kind is list or kind is tuple:
        _write_array(out, value, depth)  # type: ignore[arg-type]
    elif kind is float:
        out += b"N"
        out += _DOUBLE.pack(value)
    elif value is None:
        out += b"0"
    elif kind is bool:
        out += b"T" if value else b"F"
    elif kind is BigInt:
        _write_bigint(out, value)  # type: ignore[arg-type]
    else:
        raise NotPlain


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_string(out: bytearray, value: str) -> None:
    try:
        data = value.encode("latin-1")
        out += b'"'
        _write_varint(out, len(data))
    except UnicodeEncodeError:
        data = value.encode("utf-16-le", "surrogatepass")
        length = bytearray()
        _write_varint(length, len(data))
        if len(out) + 1 + len(length) & 1:  # two-byte strings begin at an even offset
            out.append(0)
        out += b"c" + length
    out += data


def _write_int(out: bytearray, value: int) -> None:
    if -_MAX_INT31 <= value <= _MAX_INT31:
        out += b"I"
        _write_varint(out, value << 1 if value >= 0 else -value * 2 - 1)
    elif -_MAX_SAFE_INTEGER <= value <= _MAX_SAFE_INTEGER:
        out += b"N"
        out += _DOUBLE.pack(value)
    else:
        _write_bigint(out, value)


def _write_bigint(out: bytearray, value: int) -> None:
    length = (value.bit_length() + 63) // 64 * 8
    out += b"Z"
    _write_varint(out, length << 1 | (value < 0))
    out += abs(value).to_bytes(length, "little")


def _write_object(out: bytearray, value: dict[object, object], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise NotPlain
    out += b"o"
    for name, member in value.items():
        # Integer-like names are numbers in V8's objects, and come first: left to the general codec.
        if type(name) is not str or name.isdigit():
            raise NotPlain
        _write_string(out, name)
        _write(out, member, depth + 1)
    out += b"{"
    _write_varint(out, len(value))


def _write_array(out: bytearray, value: list[object] | tuple[object, ...], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise NotPlain
    out += b"A"
    _write_varint(out, len(value))
    for element in value:
        _write(out, element, depth + 1)
    out += b"$\x00"
    _write_varint(out, len(value))


def _read(data: bytes, position: int, depth: int) -> tuple[object, int]:
    tag = data[position]
    while tag == 0:
        position += 1
        tag = data[position]
    position += 1
    if tag == 0x22 or tag == 0x63:  # noqa: PLR1714 faster than a tuple
        return _read_string(data, position, tag)
    if tag == 0x49:
        number, position = _read_varint(data, position)
        return number >> 1 ^ -(number & 1), position
    if tag == 0x6F:
        return _read_object(data, position, depth)
    if tag == 0x41:
        return _read_array(data, position, depth)
    if tag == 0x61:
        return _read_holey_array(data, position, depth)
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], position
    if tag == 0x4E:
        return _number(_DOUBLE.unpack_from(data, position)[0]), position + 8
    if tag == 0x55:
        return _read_varint(data, position)
    if tag == 0x5A:
        return _read_bigint(data, position)
    raise NotPlain


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = 0, 0
    while byte >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if shift > _MAX_VARINT_SHIFT:
            raise NotPlain
        byte = data[position]
    return value | byte << shift, position + 1


def _read_string(data: bytes, position: int, tag: int) -> tuple[str, int]:
    length, position = _read_varint(data, position)
    end = position + length
    if end > len(data):
        raise NotPlain
    if tag == 0x22:
        return data[position:end].decode("latin-1"), end
    if length & 1:
        raise NotPlain
    return data[position:end].decode("utf-16-le", "surrogatepass"), end


def _read_bigint(data: bytes, position: int) -> tuple[BigInt, int]:
    bitfield, position = _read_varint(data, position)
    end = position + (bitfield >> 1)
    if end > len(data):
        raise NotPlain
    magnitude = int.from_bytes(data[position:end], "little")
    return BigInt(-magnitude if bitfield & 1 else magnitude), end


def _read_object(data: bytes, position: int, depth: int) -> tuple[dict[str, object], int]:
    if depth > _MAX_DEPTH:
        raise NotPlain
    found: dict[str, object] = {}
    count = 0
    while data[position] != 0x7B:
        name, position = _read(data, position, depth + 1)
        if type(name) is not str:
            if type(name) is not int:
                raise NotPlain
            name = str(name)
        found[name], position = _read(data, position, depth + 1)
        count += 1
    expected, position = _read_varint(data, position + 1)
    if expected != count:
        raise NotPlain
    return found, position


def _read_array(data: bytes, position: int, depth: int) -> tuple[list[object], int]:
    if depth > _MAX_DEPTH:
        raise NotPlain
    length, position = _read_varint(data, position)
    found: list[object] = []
    while data[position] != 0x24:
        if len(found) == length:
            raise NotPlain  # properties beside the elements
        element, position = _read(data, position, depth + 1)
        found.append(element)
    properties, position = _read_varint(data, position + 1)
    expected, position = _read_varint(data, position)
    if properties or expected != length or len(found) != length:
        raise NotPlain
    return found, position


def _read_holey_array(data: bytes, position: int, depth: int) -> tuple[list[object], int]:
    """An array that V8 knows as one that may have holes (one that was itself deserialized, say), but has none."""
    if depth > _MAX_DEPTH:
        raise NotPlain
    length, position = _read_varint(data, position)
    found: list[object] = []
    while data[position] != 0x40:
        name, position = _read(data, position, depth + 1)
        if type(name) is not int or name != len(found):
            raise NotPlain  # a hole, or a property beside the elements
        element, position = _read(data, position, depth + 1)
        found.append(element)
    properties, position = _read_varint(data, position + 1)
    expected, position = _read_varint(data, position)
    if properties != length or expected != length or len(found) != length:
        raise NotPlain
    return found, position


def _number(value: float) -> int | float:
    """An int where the double is one that Python and JavaScript agree on; -0 stays a float."""
    if (
        value.is_integer()
        and -_MAX_SAFE_INTEGER <= value <= _MAX_SAFE_INTEGER
        and (value or math.copysign(1, value) > 0)
    ):
        return int(value)
    return value
