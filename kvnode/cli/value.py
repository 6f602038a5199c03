"""Values that the command line names: JSON in the forms of codec/json_values.py, bytes, numbers; also from files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kvnode.base.errors import InvalidRequest

BytesOption = Annotated[bool, typer.Option("--bytes", help="The value is bytes (a Uint8Array), not JSON.")]
U64Option = Annotated[
    bool, typer.Option("--u64", help="The value is a number that sum, min and max work on (Deno.KvU64).")
]
FileOption = Annotated[
    Path | None, typer.Option("--file", metavar="PATH", help="Take the value from this file; - = standard input.")
]


def encoded_value(text: str | None, file: Path | None, *, as_bytes: bool, as_u64: bool) -> tuple[bytes, int]:
    """(bytes, encoding) of the value that an argument and its flags name.

    Args:
        text: the argument; None without one.
        file: where the value stands instead.
        as_bytes, as_u64: what it is, if not JSON.

    Raises:
        InvalidRequest: BAD_VALUE, BAD_VALUE_JSON, KVU64_OUT_OF_RANGE, VALUE_NOT_SERIALIZABLE.
    """
    from kvnode.codec.values import KvU64, encode_value

    if (text is None) == (file is None):
        raise InvalidRequest("BAD_VALUE", "give the value as an argument or with --file, one of the two")
    if as_bytes and as_u64:
        raise InvalidRequest("BAD_VALUE", "--bytes and --u64 exclude each other")
    raw = text.encode(errors="surrogateescape") if text is not None else _read(file)
    if as_bytes:
        return encode_value(raw)
    if not as_u64:
        return json_value(raw, "bytes with --bytes")
    try:
        return encode_value(KvU64(int(raw)))
    except ValueError as error:
        raise InvalidRequest("BAD_VALUE", f"the value is not a number: {error}; --u64 takes a whole number") from None


def json_value(text: str | bytes, bytes_hint: str) -> tuple[bytes, int]:
    """(bytes, encoding) of a value as JSON.

    Args:
        text: the JSON.
        bytes_hint: how the command at hand takes bytes, for the error.

    Raises:
        InvalidRequest: BAD_VALUE, BAD_VALUE_JSON, VALUE_NOT_SERIALIZABLE.
    """
    from kvnode.codec.json_values import value_from_json

    try:
        return value_from_json(json.loads(text))
    except RecursionError:
        raise InvalidRequest("BAD_VALUE", "the value is nested too deep; flatten it") from None
    except ValueError as error:
        raise InvalidRequest(
            "BAD_VALUE", f"the value is not JSON: {error}; a text is written '\"text\"', {bytes_hint}"
        ) from None


def _read(file: Path | None) -> bytes:
    if file is None or str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidRequest("BAD_VALUE", f"cannot read {file}: {error.strerror}") from None
