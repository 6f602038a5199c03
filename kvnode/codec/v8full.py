"""V8's value serialization for everything, by v8serialize; values.py says which Python types stand for what.

v8serialize 0.4 is widened in four places: header version 16, which current V8 writes, is read as 15 (the tags are the
same); strings with a lone surrogate pass; -0 stays -0; objects become dict and arrays without holes become list, also
those that V8 wrote as sparse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import v8serialize
from v8serialize.constants import FLOAT64_SAFE_INT_RANGE, SerializationTag
from v8serialize.decode import ReadableTagStream, TagReader, TagReaderRegistry
from v8serialize.encode import TagWriter, serialize_object_references
from v8serialize.extensions import NodeJsArrayBufferViewHostObjectHandler
from v8serialize.jstypes import JSArrayBuffer, JSUint8Array

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec.bigint import BigInt
from kvnode.codec.v8plain import HEADER, NEWEST_VERSION, OLDEST_VERSION


def encode(value: object) -> bytes:
    """V8's serialization. Raises InvalidRequest VALUE_NOT_SERIALIZABLE."""
    try:
        return bytes(_ENCODER.encode(value))
    except (v8serialize.V8SerializeError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InvalidRequest(
            "VALUE_NOT_SERIALIZABLE",
            f"A {type(value).__name__} cannot be stored: {str(error) or type(error).__name__}. Use dict, list, str, "
            "int, float, bool, None, bytes, datetime, set, BigInt or KvU64.",
        ) from error


def decode(data: bytes) -> object:
    """The Python value. Raises KvError VALUE_NOT_READABLE."""
    if len(data) < 3 or data[0] != 0xFF:
        raise _unreadable("it does not begin as V8's serialization does")
    if not OLDEST_VERSION <= data[1] <= NEWEST_VERSION:
        raise _unreadable(
            f"it is in version {data[1] & 0x7F} of V8's serialization, and this client reads {OLDEST_VERSION} to "
            f"{NEWEST_VERSION}; a newer kvnode may read it"
        )
    known = HEADER + data[2:] if data[1] == NEWEST_VERSION else data
    try:
        try:
            return _DECODER.decodes(known)
        except _ArrayWithProperties:
            return _EXACT_DECODER.decodes(known)
    except (v8serialize.V8SerializeError, ValueError, TypeError, IndexError, RecursionError, OverflowError) as error:
        raise _unreadable(str(error) or type(error).__name__) from error


def _unreadable(why: str) -> KvError:
    return KvError("VALUE_NOT_READABLE", f"A stored value cannot be read: {why}.", phase="read")


def _write_python(value: object, /, ctx: Any, next: Any) -> None:
    """The types that are written otherwise than v8serialize would."""
    if isinstance(value, BigInt):
        ctx.stream.write_bigint(int(value))
    elif isinstance(value, str):
        _write_string(ctx.stream, value)
    elif isinstance(value, dict):
        _write_dict(value, ctx)
    elif isinstance(value, bytes | bytearray | memoryview):
        next(JSUint8Array(JSArrayBuffer(bytes(value))))
    else:
        next(value)


def _write_string(stream: Any, value: str) -> None:
    try:
        value.encode("latin-1")
        stream.write_string_onebyte(value)
    except UnicodeEncodeError:
        data = value.encode("utf-16-le", "surrogatepass")
        start = len(stream.data)
        stream.write_tag(SerializationTag.kTwoByteString)
        stream.write_varint(len(data))
        if len(stream.data) & 1:  # two-byte strings begin at an even offset
            stream.data.insert(start, SerializationTag.kPadding)
        stream.data.extend(data)


def _write_dict(value: Mapping[object, object], ctx: Any) -> None:
    for name in value:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(
                f"an object's keys are strings, not {type(name).__name__}; v8serialize's JSMap takes any key"
            )
    ctx.stream.write_js_object(value.items(), ctx=ctx, identity=value)


class _PythonReader(TagReader):
    """Reads into Python's own types where one stands for exactly that."""

    def __init__(self) -> None:
        readers = TagReaderRegistry()
        readers.register(SerializationTag.kTwoByteString, _read_two_byte_string)
        readers.register(SerializationTag.kBigInt, _read_bigint)
        readers.register(SerializationTag.kDouble, _read_double)
        readers.register(SerializationTag.kArrayBuffer, _read_array_buffer)
        readers.register(SerializationTag.kHostObject, _read_host_object)
        self.register_containers(readers)
        super().__init__(
            tag_readers=readers,
            default_timezone=UTC,
            host_object_deserializer=NodeJsArrayBufferViewHostObjectHandler(),
        )

    def register_containers(self, readers: TagReaderRegistry) -> None:
        readers.register(SerializationTag.kBeginJSObject, _read_object)
        readers.register(SerializationTag.kBeginDenseJSArray, _read_array)
        readers.register(SerializationTag.kBeginSparseJSArray, _read_holey_array)


class _ExactReader(_PythonReader):
    """For arrays that have holes, or properties beside their elements: containers keep v8serialize's types."""

    def register_containers(self, readers: TagReaderRegistry) -> None:
        return


class _ArrayWithProperties(Exception):
    pass


def _read_two_byte_string(reader: TagReader, tag: Any, ctx: Any) -> str:
    stream: ReadableTagStream = ctx.stream
    return bytes(stream.read_bytes(stream.read_varint())).decode("utf-16-le", "surrogatepass")


def _read_bigint(reader: TagReader, tag: Any, ctx: Any) -> BigInt:
    return BigInt(ctx.stream.read_bigint())


def _read_double(reader: TagReader, tag: Any, ctx: Any) -> int | float:
    value: float = ctx.stream.read_double()
    if value.is_integer() and int(value) in FLOAT64_SAFE_INT_RANGE and (value or math.copysign(1, value) > 0):
        return int(value)
    return value


def _read_array_buffer(reader: TagReader, tag: Any, ctx: Any) -> object:
    value = reader.deserialize_js_array_buffer(tag, ctx)
    return bytes(value.get_buffer_as_memoryview()) if isinstance(value, JSUint8Array) else value


def _read_host_object(reader: TagReader, tag: Any, ctx: Any) -> object:
    """Node's v8.serialize, and so @deno/kv there, writes byte arrays as objects of its own."""
    value = reader.deserialize_host_object(tag, ctx)
    return bytes(value.get_buffer_as_memoryview()) if isinstance(value, JSUint8Array) else value


def _read_object(reader: TagReader, tag: Any, ctx: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, member in ctx.stream.read_js_object(ctx, identity=found):
        found[name if isinstance(name, str) else str(int(name)) if float(name).is_integer() else str(name)] = member
    return found


def _read_array(reader: TagReader, tag: Any, ctx: Any) -> list[object]:
    found: list[object] = []
    for name, element in ctx.stream.read_js_array_dense(ctx, identity=found):
        if name != len(found):
            raise _ArrayWithProperties
        found.append(element)
    return found


def _read_holey_array(reader: TagReader, tag: Any, ctx: Any) -> list[object]:
    found: list[object] = []
    length, items = ctx.stream.read_js_array_sparse(ctx, identity=found)
    for name, element in items:
        if name != len(found):
            raise _ArrayWithProperties
        found.append(element)
    if len(found) != length:
        raise _ArrayWithProperties
    return found


_ENCODER = v8serialize.Encoder(encode_steps=(serialize_object_references, _write_python, TagWriter()))
_DECODER = v8serialize.Decoder(decode_steps=(_PythonReader(),))
_EXACT_DECODER = v8serialize.Decoder(decode_steps=(_ExactReader(),))
