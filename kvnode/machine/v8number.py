"""The two numeric types of V8's value serialization that sums work on: Number and BigInt.

The format is that of V8's ValueSerializer (src/objects/value-serializer.cc): `ff <version>`, perhaps padding (00), then
`I` zigzag varint, `U` varint, `N` little-endian double, or `Z` bitfield (bit 0 the sign, the rest the byte length) and
a little-endian magnitude. Read here rather than with v8serialize because the leader's loop must not pay 50 us a sum.
"""

from __future__ import annotations

import math
import struct

from kvnode.base.errors import InvalidRequest

_HEADER = b"\xff\x0f"
_NEWEST_VERSION = 16
_DOUBLE = struct.Struct("<d")
_MAX_VARINT_BYTES = 10


class UnsupportedType(Exception):
    """A valid V8 value that is neither Number nor BigInt."""


def parse(data: bytes) -> int | float:
    """The value: int for a BigInt, float for a Number.

    Raises:
        ValueError: not a V8 value of a known version.
        UnsupportedType: a V8 value of another type.
    """
    try:
        return _parse(data)
    except (IndexError, struct.error) as error:
        raise ValueError("truncated V8 value") from error


def _parse(data: bytes) -> int | float:
    if data[0] != 0xFF or not 1 <= data[1] <= _NEWEST_VERSION:
        raise ValueError("not a V8 value of a known version")
    position = 2
    while data[position] == 0:
        position += 1
    tag, position = data[position], position + 1
    if tag == 0x4E:  # N
        return float(_DOUBLE.unpack_from(data, position)[0])
    if tag not in b"IUZ":
        raise UnsupportedType
    number, position = _varint(data, position)
    if tag == 0x49:
        return float((number >> 1) ^ -(number & 1))
    if tag == 0x55:
        return float(number)
    length = number >> 1
    if len(data) < position + length:
        raise ValueError("truncated BigInt")
    magnitude = int.from_bytes(data[position : position + length], "little")
    return -magnitude if number & 1 else magnitude


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint of more than 10 bytes")


def encode(value: int | float) -> bytes:
    """The inverse of parse. A Number becomes a double, whatever its value, as Deno stores the result of a sum."""
    if isinstance(value, float):
        return _HEADER + b"N" + _DOUBLE.pack(math.nan if math.isnan(value) else value)
    length = (value.bit_length() + 63) // 64 * 8
    bitfield = length << 1 | (value < 0)
    header = bytearray()
    while bitfield > 0x7F:
        header.append(bitfield & 0x7F | 0x80)
        bitfield >>= 7
    header.append(bitfield)
    return _HEADER + b"Z" + bytes(header) + abs(value).to_bytes(length, "little")


def type_name(value: int | float) -> str:
    """As Deno's errors call it."""
    return "Number" if isinstance(value, float) else "BigInt"


def parse_parameter(data: bytes, what: str) -> int | float:
    """parse, for what a request brings. Raises InvalidRequest: SUM_BAD_V8."""
    try:
        return parse(data)
    except UnsupportedType:
        raise _bad_parameter(f"{what} is neither Number nor BigInt") from None
    except ValueError as error:
        raise _bad_parameter(f"{what}: {error}") from error


def _bad_parameter(reason: str) -> InvalidRequest:
    return InvalidRequest(
        "SUM_BAD_V8",
        f"Some of the parameters are not valid V8 values: {reason}. Send numbers or bigints in V8 serialization, or a "
        "KvU64.",
    )


def parse_stored(data: bytes) -> int | float:
    """parse, for what the database holds. Raises InvalidRequest: SUM_UNSUPPORTED_TYPE, SUM_STORED_BAD_V8."""
    try:
        return parse(data)
    except UnsupportedType:
        raise InvalidRequest(
            "SUM_UNSUPPORTED_TYPE",
            "unsupported value type: the stored value is neither Number nor BigInt nor KvU64; set the key to a number "
            "first.",
        ) from None
    except ValueError as error:
        raise InvalidRequest(
            "SUM_STORED_BAD_V8", f"invalid v8 value: the stored one: {error}. Set the key to a number first."
        ) from error
