"""Keys: Deno's order-preserving encoding of a tuple of parts, and the ranges that keys span.

The encoding is a subset of FoundationDB's tuple layer (FoundationDB, design/tuple.md): encoded keys compare by their
bytes as the tuples do, and by type in the order bytes < str < BigInt < number < False < True. Byte for byte what Deno,
@deno/kv and denokv for Python write.

Python's numbers. A JavaScript number literal is a double, so that `1` in Python must meet `1` in Deno: an int becomes a
number, as denokv for Python does by default, and is refused where a double cannot hold it exactly. `BigInt(1)` is
JavaScript's `1n`. Decoding gives float for a number and BigInt for a bigint, so that what was read encodes to the very
same bytes; `1 == 1.0` and both hash alike, so decoded keys compare equal to those that were written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, SupportsIndex, TypeAlias, TypeVar

from kvnode.base.errors import InvalidRequest
from kvnode.codec.bigint import BigInt

KeyPart: TypeAlias = bytes | str | int | float | bool
Key: TypeAlias = tuple[KeyPart, ...]

_Part_co = TypeVar("_Part_co", covariant=True)


class PartSequence(Protocol[_Part_co]):
    """A tuple or a list of parts, as type checkers see it.

    A Sequence[KeyPart] would be a str too, whose parts are its characters, and bytes: `in` of these two takes less than
    any object, which is how a checker tells them from other sequences.
    """

    def __contains__(self, item: object, /) -> bool: ...

    def __getitem__(self, index: SupportsIndex, /) -> _Part_co: ...

    def __iter__(self) -> Iterator[_Part_co]: ...

    def __len__(self) -> int: ...


AnyKey: TypeAlias = PartSequence[KeyPart]

_BYTES, _STRING, _ZERO, _NUMBER, _FALSE, _TRUE = 0x01, 0x02, 0x14, 0x21, 0x26, 0x27
_LONG_NEGATIVE, _LONG_POSITIVE = 0x0B, 0x1D
_SHORT_BYTES = 8  # magnitudes up to this have their length in the tag
_MAX_BIGINT_BYTES = 255
_MAX_SAFE_INTEGER = (1 << 53) - 1
_SIGN = 1 << 63
_MASK = (1 << 64) - 1
_QUIET_NAN = 0x7FF8 << 48
_DOUBLE = struct.Struct(">d")
_BITS = struct.Struct(">Q")


class KeyRange(NamedTuple):
    """Encoded bounds: start <= key < end."""

    start: bytes
    end: bytes


def encode_key(key: AnyKey) -> bytes:
    """The bytes of a key.

    Raises:
        InvalidRequest: BAD_KEY: it is no sequence of parts. BAD_KEY_PART: a part that no key can hold.
    """
    if not isinstance(key, tuple | list):
        _check_sequence(key)
    return b"".join([_encode_part(part) for part in key])


def decode_key(data: bytes) -> Key:
    """The inverse of encode_key. A caller that only passes keys on has no need of it.

    Raises:
        InvalidRequest: BAD_KEY_ENCODING, bytes that encode no key.
    """
    parts: list[KeyPart] = []
    position = 0
    try:
        while position < len(data):
            part, position = _decode_part(data, position)
            parts.append(part)
    except (IndexError, ValueError, struct.error) as error:
        raise InvalidRequest("BAD_KEY_ENCODING", f"{data.hex(' ')} encodes no key: {error}.") from error
    return tuple(parts)


def prefix_range(prefix: AnyKey) -> KeyRange:
    """All keys that begin with the parts of `prefix`, itself excluded."""
    encoded = encode_key(prefix)
    return KeyRange(encoded + b"\x00", encoded + b"\xff")


def list_range(
    prefix: AnyKey | None = None,
    start: AnyKey | None = None,
    end: AnyKey | None = None,
) -> KeyRange:
    """The range that Deno's list selectors name: prefix; prefix and start; prefix and end; start and end; start alone.

    Raises:
        InvalidRequest: BAD_SELECTOR, any other combination, or a start or end outside the prefix.
    """
    if prefix is not None:
        if start is not None and end is not None:
            raise InvalidRequest("BAD_SELECTOR", "A list takes a prefix with a start or an end, not with both.")
        whole = prefix_range(prefix)
        first = whole.start if start is None else encode_key(start)
        last = whole.end if end is None else encode_key(end)
        if not (whole.start <= first <= whole.end and whole.start <= last <= whole.end):
            raise InvalidRequest("BAD_SELECTOR", "The start or end of a list must lie within its prefix.")
        return KeyRange(first, last)
    if start is None:
        raise InvalidRequest("BAD_SELECTOR", "A list needs a prefix, or a start; prefix=() lists everything.")
    first = encode_key(start)
    return KeyRange(first, first + b"\x00" if end is None else encode_key(end))


def point_range(key: bytes) -> KeyRange:
    """The range that holds one encoded key and no other."""
    return KeyRange(key, key + b"\x00")


def _check_sequence(key: object) -> None:
    """A str is a sequence, of parts that nobody means: ("u", "s", "e", "r", "s")."""
    if not isinstance(key, Sequence) or isinstance(key, str | bytes | bytearray | memoryview):
        raise InvalidRequest("BAD_KEY", f'A key is a tuple or list of parts, as ("users", 7), not {key!r:.200}.')


def _encode_part(part: KeyPart) -> bytes:
    if isinstance(part, str):
        return b"\x02" + _escaped(_utf8(part)) + b"\x00"
    if isinstance(part, bytes | bytearray | memoryview):
        return b"\x01" + _escaped(bytes(part)) + b"\x00"
    if isinstance(part, bool):
        return b"\x27" if part else b"\x26"
    if isinstance(part, BigInt):
        return _encode_bigint(part)
    if isinstance(part, int):
        if abs(part) > _MAX_SAFE_INTEGER:
            raise InvalidRequest(
                "BAD_KEY_PART",
                f"{part} is too large for a JavaScript number: write BigInt({part}), which is its bigint.",
            )
        return _encode_number(float(part))
    if isinstance(part, float):
        return _encode_number(part)
    raise InvalidRequest(
        "BAD_KEY_PART",
        f"A key part cannot be {type(part).__name__}: use str, bytes, int, float, bool or BigInt.",
    )


def _utf8(part: str) -> bytes:
    try:
        return part.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("BAD_KEY_PART", f"A key part is not valid Unicode: {error}.") from error


def _escaped(data: bytes) -> bytes:
    return data.replace(b"\x00", b"\x00\xff") if b"\x00" in data else data


def _encode_bigint(value: int) -> bytes:
    if value == 0:
        return b"\x14"
    length = (value.bit_length() + 7) // 8
    if length > _MAX_BIGINT_BYTES:
        raise InvalidRequest("BAD_KEY_PART", f"A bigint in a key has at most {_MAX_BIGINT_BYTES} bytes, not {length}.")
    # A negative number is the ones' complement of its magnitude, so that smaller ones sort first.
    magnitude = (value if value > 0 else value + (1 << 8 * length) - 1).to_bytes(length, "big")
    if length <= _SHORT_BYTES:
        return bytes([_ZERO + length if value > 0 else _ZERO - length]) + magnitude
    return bytes([_LONG_POSITIVE, length] if value > 0 else [_LONG_NEGATIVE, length ^ 0xFF]) + magnitude


def _encode_number(value: float) -> bytes:
    if math.isnan(value):
        bits = _QUIET_NAN | (_SIGN if math.copysign(1.0, value) < 0 else 0)
    else:
        (bits,) = _BITS.unpack(_DOUBLE.pack(value))
    return b"\x21" + _BITS.pack(bits ^ (_MASK if bits & _SIGN else _SIGN))


def _decode_part(data: bytes, position: int) -> tuple[KeyPart, int]:
    tag, position = data[position], position + 1
    if tag in (_STRING, _BYTES):
        raw, position = _decode_escaped(data, position)
        return (raw.decode() if tag == _STRING else raw), position
    if tag == _NUMBER:
        (bits,) = _BITS.unpack_from(data, position)
        return _DOUBLE.unpack(_BITS.pack(bits ^ (_SIGN if bits & _SIGN else _MASK)))[0], position + 8
    if tag in (_FALSE, _TRUE):
        return tag == _TRUE, position
    if _ZERO - _SHORT_BYTES <= tag <= _ZERO + _SHORT_BYTES:
        return _decode_bigint(data, position, abs(tag - _ZERO), tag < _ZERO)
    if tag == _LONG_POSITIVE:
        return _decode_bigint(data, position + 1, data[position], False)
    if tag == _LONG_NEGATIVE:
        return _decode_bigint(data, position + 1, data[position] ^ 0xFF, True)
    raise ValueError(f"byte {tag:#04x} at {position - 1} begins no key part")


def _decode_escaped(data: bytes, position: int) -> tuple[bytes, int]:
    start = position
    while True:
        end = data.find(b"\x00", position)
        if end < 0:
            raise ValueError("a string or bytes part has no end")
        if data[end + 1 : end + 2] != b"\xff":
            return data[start:end].replace(b"\x00\xff", b"\x00"), end + 1
        position = end + 2


def _decode_bigint(data: bytes, position: int, length: int, negative: bool) -> tuple[BigInt, int]:
    magnitude = data[position : position + length]
    if len(magnitude) < length:
        raise ValueError("a bigint is cut short")
    value = int.from_bytes(magnitude, "big")
    return BigInt(value - (1 << 8 * length) + 1 if negative else value), position + length
