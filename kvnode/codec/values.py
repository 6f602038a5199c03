"""Values: between Python objects and (bytes, encoding) as Deno KV stores them.

bytes are VE_BYTES (a Uint8Array), KvU64 is VE_LE64, everything else VE_V8: V8's value serialization, by v8serialize.
What Python has no type for keeps v8serialize's (JSMap, JSSet, JSUndefined, typed arrays, errors, regular expressions),
so that a value which is read and written back stays what it was.

| JavaScript       | Python, read                     | Python, written as it                             |
|------------------|----------------------------------|---------------------------------------------------|
| object           | dict, keys str                   | dict with str or int keys, JSObject               |
| array            | list                             | list, tuple                                       |
| number           | int where it is one, else float  | int up to 2^53, float                             |
| bigint           | BigInt                           | BigInt, int beyond 2^53                           |
| string           | str                              | str                                               |
| true, null       | True, None                       | bool, None                                        |
| undefined        | JSUndefined                      | JSUndefined                                       |
| Uint8Array       | bytes                            | bytes                                             |
| Date             | datetime, UTC                    | datetime                                          |
| Map, Set         | JSMap, JSSet                     | JSMap; JSSet, set                                 |
"""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec import v8plain

V8 = 1
LE64 = 2
BYTES = 3
_LE64_BYTES = 8
_U64_END = 1 << 64


class KvU64:
    """An unsigned 64-bit integer that sum, min and max work on (Deno.KvU64). Not an int, so that it stays one.

    Raises:
        InvalidRequest: KVU64_OUT_OF_RANGE.
    """

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        if not 0 <= value < _U64_END:
            raise InvalidRequest("KVU64_OUT_OF_RANGE", f"A KvU64 is 0 to 2^64-1, not {value}.")
        self.value = int(value)

    def __int__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value

    def __bytes__(self) -> bytes:
        return self.value.to_bytes(_LE64_BYTES, "little")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KvU64) and self.value == other.value

    def __hash__(self) -> int:
        return hash((KvU64, self.value))

    def __repr__(self) -> str:
        return f"KvU64({self.value})"


@dataclass(frozen=True, slots=True)
class EncodedValue:
    """A message's value that is encoded already, and is enqueued just so.

    Attributes:
        data: the bytes.
        encoding: V8, LE64 or BYTES: what they are.
    """

    data: bytes
    encoding: int


def encode_value(value: object) -> tuple[bytes, int]:
    """(bytes, encoding) of a Python value.

    Raises:
        InvalidRequest: VALUE_NOT_SERIALIZABLE.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), BYTES
    if isinstance(value, KvU64):
        return bytes(value), LE64
    return encode_v8(value), V8


def encode_payload(value: object) -> tuple[bytes, int]:
    """(bytes, encoding) of a queue's message: as of a key's value, so that bytes are pushed as they are.

    Raises as encode_value.
    """
    return (value.data, value.encoding) if isinstance(value, EncodedValue) else encode_value(value)


def decode_value(data: bytes, encoding: int) -> object:
    """The Python value of stored bytes.

    Raises:
        KvError: VALUE_NOT_READABLE: a value that this version cannot read; what is stored is unharmed.
    """
    if encoding == BYTES:
        return data
    if encoding == LE64 and len(data) == _LE64_BYTES:
        return KvU64(int.from_bytes(data, "little"))
    if encoding == V8:
        return decode_v8(data)
    raise KvError(
        "VALUE_NOT_READABLE", f"A value of {len(data)} bytes in encoding {encoding} cannot be read.", phase="read"
    )


def encode_v8(value: object) -> bytes:
    """V8's serialization of a Python value, a bytes object included. Raises as encode_value."""
    try:
        return v8plain.encode(value)
    except v8plain.NotPlain:
        from kvnode.codec import v8full  # v8serialize takes 150 ms to import: only for those who need it

        return v8full.encode(value)


def decode_v8(data: bytes) -> object:
    """The Python value of V8's serialization. Raises as decode_value."""
    try:
        return v8plain.decode(data)
    except v8plain.NotPlain:
        from kvnode.codec import v8full

        return v8full.decode(data)
